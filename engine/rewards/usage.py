"""How much memory a process and all its descendants have, and how much room a folder takes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Resident memory of the process and its descendants, each counted whole; 0 where it has ended."""
    if sys.platform == "darwin":
        listed = subprocess.run(["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
        return int(listed.strip() or 0) * 1024
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total, family = 0, [pid]
    while family:
        member = family.pop()
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            total += int(Path(f"/proc/{member}/statm").read_text(encoding="ascii").split()[1]) * page_bytes
            for thread in os.listdir(f"/proc/{member}/task"):
                family += map(int, Path(f"/proc/{member}/task/{thread}/children").read_text(encoding="ascii").split())
    return total


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in the folder, as far as they are still there."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total
