"""What a measured figure was taken with: when, on which machine, with which versions and which revision of these sources."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from engine import hardware

_ROOT = Path(__file__).resolve().parents[1]


def provenance() -> dict[str, Any]:
    """For a result file: `date`, `machine`, `versions` (our own among them) and `revision`, None where it is no git checkout."""
    known = hardware.facts()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {
            **{name: getattr(known, name) for name in ("system", "machine", "chip", "backend", "cores", "memory_bytes")},
            "blas": None if known.blas is None else Path(known.blas).name,
        },
        "versions": dict(known.versions),
        "revision": revision(_ROOT),
    }


def revision(root: Path) -> str | None:
    """The short commit that is checked out at `root`, with -dirty behind it where files differ from it."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--exclude", "*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # a machine without git
        return None
    return done.stdout.strip() or None
