"""The machine: chip, memory and what a run may use of it, packages, sleep prevention. Imports no mlx.

What mlx itself says of the device is asked of a worker process (`device_facts`); everything else is read from files and
sysctl. The functions that read the machine are thin; those that make sense of what was read are pure.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from engine.blas import blas_environment, find_openblas
from engine.errors import InputError

GIB = 1 << 30
MIB = 1 << 20
FACTS_SECONDS = 120.0  # a first CUDA start compiles kernels

_PACKAGES = ("droid-tune", "mlx", "mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-lm", "textual")
_GET_OPENBLAS = "get it with `apt-get install libopenblas0-pthread` (Fedora: `dnf install openblas-threads`)"

Backend = Literal["metal", "cuda", "cpu"]


@dataclass(frozen=True)
class Hardware:
    """What is known of this machine without loading mlx; None where it does not say. Sizes in bytes."""

    system: str  # Darwin, Linux
    machine: str  # arm64, x86_64
    chip: str
    backend: Backend  # what mlx computes on here
    cores: int
    performance_cores: int | None  # Apple silicon
    memory_bytes: int
    memory_available_bytes: int | None
    memory_cgroup_bytes: int | None = None  # the container's limit
    gpu_limit_bytes: int | None = None  # macOS: what the GPU may wire, where set; CUDA: the card's memory
    blas: str | None = None  # Linux: the OpenBLAS that a worker preloads
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json`."""
        return {**asdict(self), "versions": dict(self.versions), "warnings": list(self.warnings)}


def facts() -> Hardware:
    """Read this machine; a few milliseconds, no network."""
    system, machine = platform.system(), platform.machine()
    versions = {"python": platform.python_version(), **installed(_PACKAGES)}
    backend = backend_of(system, versions)
    performance_cores = gpu_limit = cgroup = blas = None
    if system == "Darwin":
        chip = _sysctl("machdep.cpu.brand_string") or machine
        performance_cores = _number(_sysctl("hw.perflevel0.physicalcpu"))
        memory = _number(_sysctl("hw.memsize")) or _physical_memory()
        available = vm_stat_available(_output(["/usr/bin/vm_stat"]) or "")
        gpu_limit = (_number(_sysctl("iogpu.wired_limit_mb")) or 0) * MIB or None  # 0: macOS decides, and sysctl does not say
    else:
        chip = cpu_name(_text(Path("/proc/cpuinfo"))) or platform.processor() or machine
        total, available = meminfo(_text(Path("/proc/meminfo")))
        memory = total or _physical_memory()
        cgroup = cgroup_limit(_text(Path("/proc/self/cgroup")), Path("/sys/fs/cgroup"))
        found = find_openblas() if backend == "cpu" else None
        blas = None if found is None else str(found)
        gpu_limit = _cuda_memory() if backend == "cuda" else None
    known = Hardware(
        system=system,
        machine=machine,
        chip=chip,
        backend=backend,
        cores=os.cpu_count() or 1,
        performance_cores=performance_cores,
        memory_bytes=memory,
        memory_available_bytes=available,
        memory_cgroup_bytes=cgroup,
        gpu_limit_bytes=gpu_limit,
        blas=blas,
        versions=versions,
    )
    return replace(known, warnings=warnings(known))


def memory_limit_bytes(known: Hardware) -> int:
    """What a run may use: the GPU's limit where it is known (of a card nine tenths, since the driver keeps some), three
    quarters of a Mac's memory where it is not, and on a CPU nine tenths of the memory or of the container's limit."""
    if known.backend == "metal":
        return known.gpu_limit_bytes or known.memory_bytes * 3 // 4
    if known.backend == "cuda" and known.gpu_limit_bytes:
        return known.gpu_limit_bytes * 9 // 10
    return min(known.memory_bytes, known.memory_cgroup_bytes or known.memory_bytes) * 9 // 10


def backend_of(system: str, versions: Mapping[str, str]) -> Backend:
    """What mlx computes on, by what is installed. With both a CPU and a CUDA wheel the CPU is taken (and a warning made)."""
    if system == "Darwin":
        return "metal"
    return "cuda" if "mlx-cpu" not in versions and any(name.startswith("mlx-cuda") for name in versions) else "cpu"


def warnings(known: Hardware) -> tuple[str, ...]:
    """What is amiss, each with what to do about it."""
    found = []
    cuda = [name for name in known.versions if name.startswith("mlx-cuda")]
    if known.system == "Linux":
        if cuda and "mlx-cpu" in known.versions:
            found.append(f"mlx-cpu and {cuda[0]} are both installed and own the same libmlx.so: uninstall both, then install one")
        if not cuda and "mlx-cpu" not in known.versions:
            found.append("mlx has no backend: pip install 'droid-tune[cpu]', or 'droid-tune[cuda]' with an NVIDIA card")
        if known.backend == "cpu" and known.blas is None:
            found.append(f"no OpenBLAS: training takes about 50 times as long; {_GET_OPENBLAS}")
    total = min(known.memory_bytes, known.memory_cgroup_bytes or known.memory_bytes)
    available = known.memory_available_bytes
    if available is not None and available < total / 10:
        free = f"{available / GIB:.1f} of {total / GIB:.1f} GiB"
        found.append(f"{free} of memory are free: end what else runs, or choose a smaller model")
    return tuple(found)


def device_facts(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What mlx says of its device, and a measured speed, from a worker process: device, metal, cuda, memory_size and
    max_recommended_working_set_size in bytes, matmul_gflops (float32 256x576x1536).

    `environment` defaults to this process's with OpenBLAS preloaded, as a run has it. Raises InputError where mlx fails.
    """
    env = {**os.environ, **blas_environment(os.environ)} if environment is None else dict(environment)
    command = [sys.executable, "-P", "-m", "engine.worker", "facts"]
    where, remedy = "engine.worker facts", "reinstall: `make install`, or pip install 'droid-tune[cpu]' on Linux"
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FACTS_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"mlx gave no answer within {FACTS_SECONDS:.0f} s", where=where, remedy=remedy) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise InputError(f"mlx does not work here: {last}", where=where, remedy=remedy)
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        raise InputError(f"not JSON: {done.stdout[:80]!r}", where=where, remedy=remedy) from error
    if not isinstance(answer, dict):
        raise InputError(f"not a JSON object: {done.stdout[:80]!r}", where=where, remedy=remedy)
    return answer


def keep_awake_command(pid: int, system: str | None = None) -> list[str] | None:
    """What keeps this Mac from idle sleep until process `pid` ends; None on other systems (their servers do not idle)."""
    if (system or platform.system()) != "Darwin":
        return None
    return ["/usr/bin/caffeinate", "-i", "-w", str(pid)]


# Making sense of what was read.


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's name in /proc/cpuinfo; ARM kernels mostly give none."""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else None


def meminfo(text: str) -> tuple[int | None, int | None]:
    """Total and available bytes in /proc/meminfo."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    return (None if total is None else total * 1024), (None if available is None else available * 1024)


def vm_stat_available(text: str) -> int | None:
    """Bytes that macOS can hand out without swapping, from `vm_stat`: free, inactive, speculative and purgeable pages."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", text, re.MULTILINE)
    return int(size.group(1)) * sum(map(int, pages)) if size and pages else None


def cgroup_limit(membership: str, mount: Path) -> int | None:
    """The least memory limit in bytes of this process's control group and those above it (version 2 or 1), None for no limit.

    `membership` is /proc/self/cgroup. Inside a container the path it names may not exist; the mount's own limit counts then.
    """
    limits = []
    for line in membership.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            value = _number(_text(folder / name))
            if value is not None:
                limits.append(value)
            if folder == root:
                break
    return min((limit for limit in limits if limit < 1 << 60), default=None)  # version 1 writes "none" as about 2^63


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# Reading.


def _text(path: Path) -> str:
    """The file's text; "" where the kernel has no such file or does not let it be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str | None:
    """What the program prints, None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def _sysctl(name: str) -> str | None:
    value = _output(["/usr/sbin/sysctl", "-n", name])
    return None if value is None else value.strip()


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cuda_memory() -> int | None:
    """Memory of the first NVIDIA card, in bytes."""
    listed = _output(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"])
    first = _number(listed.splitlines()[0]) if listed else None
    return None if first is None else first * MIB
