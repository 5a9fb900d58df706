"""The folder that holds everything which the product keeps for its user: runs, and models made from .gguf files."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """DROID_TUNE_HOME, else ~/.droid-tune."""
    value = os.environ.get("DROID_TUNE_HOME")
    return Path(value).expanduser().absolute() if value else Path.home() / ".droid-tune"


def models() -> Path:
    """Where converted .gguf files are kept."""
    return home() / "models"
