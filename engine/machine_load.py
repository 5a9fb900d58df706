"""What else a machine computes while something is timed on it: a figure from a busy machine must say so. Imports no mlx.

Linux: /proc. macOS: the CPU times that `ps` shows; those of processes that ended meanwhile are not seen.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

IDLE_CORES = 0.1  # others may use this much of one core on an idle machine


@dataclass(frozen=True, slots=True)
class Load:
    """What went on beside the timed work."""

    seconds: float  # from mark to since
    others_cores: float | None  # mean number of cores that other processes kept busy; None where the system does not say
    cores: int
    loadavg_before: float  # over one minute
    loadavg_after: float

    @property
    def idle(self) -> bool:
        """Whether the timed work had the machine to itself, as far as is known."""
        return self.others_cores is not None and self.others_cores <= IDLE_CORES

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "idle": self.idle}


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the counters stood when the timed work began."""

    t: float  # monotonic seconds
    loadavg: float
    busy: float | None  # CPU seconds of all processes
    own: float  # of this process, its ended children and `pids`
    pids: tuple[int, ...]


def mark(pids: Sequence[int] = ()) -> Mark:
    """Begin; `pids` are other processes that belong to the timed work and live until `since`."""
    return Mark(time.monotonic(), os.getloadavg()[0], _busy_seconds(), _own_seconds(pids), tuple(pids))


def since(start: Mark) -> Load:
    """What the others did since `start`."""
    seconds = time.monotonic() - start.t
    busy, own = _busy_seconds(), _own_seconds(start.pids)
    others = None
    if busy is not None and start.busy is not None:
        others = max(0.0, busy - start.busy - (own - start.own)) / max(seconds, 1e-3)
    return Load(seconds, others, os.cpu_count() or 1, start.loadavg, os.getloadavg()[0])


def sentence(load: Load) -> str:
    """The load in a line for people."""
    averages = f"load average {load.loadavg_before:.1f} to {load.loadavg_after:.1f}"
    if load.others_cores is None:
        return f"what else ran is not known; {averages}"
    used = f"others used {load.others_cores:.2f} of {load.cores} cores, {averages}"
    return f"idle machine: {used}" if load.idle else f"busy machine, trust the CPU-time ratios: {used}"


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a living process has used; 0 for one that is gone."""
    if platform.system() == "Linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        fields = text.rpartition(")")[2].split()  # the name before it may hold anything
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    done = subprocess.run(["/bin/ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True)
    return ps_seconds(done.stdout.split())


def ps_seconds(times: Iterable[str]) -> float:
    """The sum of CPU times as `ps` writes them: [days-][hours:]minutes:seconds."""
    total = 0.0
    for text in times:
        days, _, clock = text.rpartition("-")
        value = 0.0
        for part in clock.split(":"):
            value = 60 * value + float(part)
        total += value + 86400 * int(days or 0)
    return total


def stat_seconds(text: str, ticks: int) -> float:
    """CPU seconds of everything that ran, from the first line of /proc/stat; what a hypervisor took for others is among them."""
    user, nice, system, _, _, irq, softirq, steal = map(int, text.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks


def _busy_seconds() -> float | None:
    if platform.system() == "Linux":
        try:
            first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        except OSError:  # a container may hide it
            return None
        return stat_seconds(first, os.sysconf("SC_CLK_TCK"))
    done = subprocess.run(["/bin/ps", "-A", "-o", "time="], capture_output=True, text=True)
    return ps_seconds(done.stdout.split()) if done.returncode == 0 else None


def _own_seconds(pids: Sequence[int]) -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system + sum(map(cpu_seconds, pids))
