"""The first code in a sandbox: sets the resource limits, tells the parent, and runs what it is sent.

argv[1] is JSON, {"RLIMIT_...": value}. Standard input starts with HEADER_BYTES of decimal length and a JSON payload of that
many bytes; what follows it is left for the program. `modules` of the payload maps names to source texts in the order in which
they are to be run; `main(payload)` of the last one takes over.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from types import ModuleType
from typing import Any

HEADER_BYTES = 12
BOOTED = b"booted\n"  # on standard output, before anything that the program could write


def read_exactly(descriptor: int, count: int) -> bytes:
    """`count` bytes, unbuffered: the next one stays where it is. EOFError where there are fewer."""
    pieces = b""
    while len(pieces) < count:
        piece = os.read(descriptor, count - len(pieces))
        if not piece:
            raise EOFError("the payload was cut off")
        pieces += piece
    return pieces


def limit(limits: dict[str, int]) -> None:
    """Soft and hard limits alike: nothing in here may raise them again."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bounded, bounded))


def main() -> None:
    limit(json.loads(sys.argv[1]))
    payload: dict[str, Any] = json.loads(read_exactly(0, int(read_exactly(0, HEADER_BYTES))))
    module = ModuleType("")
    for name, text in payload["modules"].items():
        module = sys.modules[name] = ModuleType(name)
        exec(compile(text, name, "exec"), module.__dict__)
    sys.argv = ["program.py"]
    os.write(1, BOOTED)
    module.main(payload)


if __name__ == "__main__":
    main()
