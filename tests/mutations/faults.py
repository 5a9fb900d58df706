"""The table of deliberate faults: mistakes that trainers of this field have made, or could make without a test noticing.

Left out because nothing could notice it: the stop_gradient of the importance weight (its gap holds no gradient as it is).
"""

from __future__ import annotations

from . import in_the_credit, in_the_loss, in_the_path, in_the_update
from .fault import Fault

FAULTS: tuple[Fault, ...] = (*in_the_loss.FAULTS, *in_the_credit.FAULTS, *in_the_path.FAULTS, *in_the_update.FAULTS)
