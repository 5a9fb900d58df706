"""Which config a command line means."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import config as configs
from engine import share
from engine.safe_text import safe_text


def load(config: str, settings: Sequence[str] | None, seed: int | None = None) -> configs.LoadedConfig:
    """The YAML file or packaged recipe `config`, with the flags `--set KEY=VALUE` and `--seed` applied. Raises InputError.

    What there is to say of a config of another tool goes to the error stream.
    """
    overrides: dict[str, Any] = dict(configs.setting(setting) for setting in settings or [])
    if seed is not None:
        overrides["run.seed"] = seed
    path = Path(config)
    packaged = share.share_root("configs") / f"{config.removesuffix('.yaml')}.yaml"
    found = configs.load(packaged if not path.is_file() and packaged.exists() else path, overrides)
    for note in found.notes:
        print(f"note  {safe_text(note)}", file=sys.stderr)
    return found
