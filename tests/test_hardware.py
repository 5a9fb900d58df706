"""What is read of the machine, and what is made of it. Foreign systems' texts are as those systems print them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine import hardware
from engine.blas import blas_environment, find_openblas
from engine.errors import InputError
from engine.hardware import GIB, MIB, Hardware

ON_LINUX = pytest.mark.skipif(platform.system() != "Linux", reason="reads Linux's own files")

MAC = Hardware("Darwin", "arm64", "Apple M2 Ultra", "metal", 24, 16, 192 * GIB, 100 * GIB)
LINUX = Hardware("Linux", "x86_64", "a chip", "cpu", 2, None, 16 * GIB, 8 * GIB, blas="/x", versions={"mlx": "1", "mlx-cpu": "1"})

VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                              400000.
Pages active:                           3000000.
Pages inactive:                         2000000.
Pages speculative:                       100000.
Pages throttled:                              0.
Pages wired down:                        300000.
Pages purgeable:                          50000.
"Translation faults":                 900000000.
"""

MEMINFO = "MemTotal:       24684096 kB\nMemFree:          412340 kB\nMemAvailable:   23688748 kB\nBuffers:  1 kB\n"


@ON_LINUX
def test_this_machine() -> None:
    """Against the kernel's own files and what mlx's worker says."""
    found = hardware.facts()
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert found.memory_bytes == total and 0 < (found.memory_available_bytes or 0) <= total
    assert found.cores == os.cpu_count() and found.chip
    assert found.versions["python"] == platform.python_version() and "mlx" in found.versions
    assert json.loads(json.dumps(found.as_dict()))["memory_bytes"] == total
    assert 0 < hardware.memory_limit_bytes(found) < total


def test_the_worker_tells_its_device() -> None:
    found = hardware.device_facts()
    assert found["device"] in ("cpu", "gpu") and found["matmul_gflops"] > 0
    assert (found["device"] == "gpu") == (found["metal"] or found["cuda"])


def test_a_worker_that_cannot_start_is_a_clear_error(tmp_path: Path) -> None:
    """A package called mlx that fails to load stands before the real one."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')")
    root = str(Path(hardware.__file__).parents[1])
    with pytest.raises(InputError, match=r"libmlx\.so: cannot open"):
        hardware.device_facts({**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])})


def test_asking_for_facts_loads_no_mlx() -> None:
    code = "import sys; from engine import estimate, hardware; hardware.facts(); print('mlx' in sys.modules)"
    root = str(Path(hardware.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_a_run_may_use() -> None:
    """A Mac: its wired limit where set, else 3/4 of 192 = 144 GiB. A card: 9/10 of 80 = 72. A CPU: 9/10 of the lesser limit."""
    assert hardware.memory_limit_bytes(MAC) == 144 * GIB
    assert hardware.memory_limit_bytes(replace(MAC, gpu_limit_bytes=170 * GIB)) == 170 * GIB
    assert hardware.memory_limit_bytes(replace(LINUX, backend="cuda", gpu_limit_bytes=80 * GIB)) == 72 * GIB
    assert hardware.memory_limit_bytes(LINUX) == 16 * GIB * 9 // 10
    assert hardware.memory_limit_bytes(replace(LINUX, memory_cgroup_bytes=10 * GIB)) == 9 * GIB
    assert hardware.memory_limit_bytes(replace(LINUX, memory_cgroup_bytes=100 * GIB)) == 16 * GIB * 9 // 10


def test_warnings() -> None:
    assert hardware.warnings(LINUX) == () == hardware.warnings(MAC)
    (no_blas,) = hardware.warnings(replace(LINUX, blas=None))
    assert "OpenBLAS" in no_blas and "libopenblas0-pthread" in no_blas
    (both,) = hardware.warnings(replace(LINUX, versions={"mlx-cpu": "1", "mlx-cuda-13": "1"}))
    assert "mlx-cpu and mlx-cuda-13" in both and "libmlx.so" in both
    (none,) = hardware.warnings(replace(LINUX, versions={"mlx": "1"}))
    assert "droid-tune[cpu]" in none
    (low,) = hardware.warnings(replace(LINUX, memory_available_bytes=GIB))
    assert low.startswith("1.0 of 16.0 GiB")
    assert hardware.warnings(replace(LINUX, memory_available_bytes=GIB, memory_cgroup_bytes=4 * GIB)) == ()  # a quarter is free


def test_the_backend_is_what_is_installed() -> None:
    assert hardware.backend_of("Darwin", {"mlx": "1"}) == "metal"
    assert hardware.backend_of("Linux", {"mlx": "1", "mlx-cpu": "1"}) == "cpu"
    assert hardware.backend_of("Linux", {"mlx": "1", "mlx-cuda-13": "1"}) == "cuda"
    assert hardware.backend_of("Linux", {"mlx": "1", "mlx-cuda-13": "1", "mlx-cpu": "1"}) == "cpu"


def test_keep_awake() -> None:
    assert hardware.keep_awake_command(42, system="Darwin") == ["/usr/bin/caffeinate", "-i", "-w", "42"]
    assert hardware.keep_awake_command(42, system="Linux") is None


def test_texts_of_other_systems() -> None:
    """vm_stat: (400,000 + 2,000,000 + 100,000 + 50,000) pages of 16,384 bytes = 41,779,200,000. meminfo is in KiB."""
    assert hardware.vm_stat_available(VM_STAT) == 41_779_200_000
    assert hardware.vm_stat_available("") is None
    assert hardware.meminfo(MEMINFO) == (24_684_096 * 1024, 23_688_748 * 1024) and hardware.meminfo("") == (None, None)
    assert hardware.cpu_name("processor : 0\nmodel name\t: AMD EPYC 7B13\n") == "AMD EPYC 7B13"
    assert hardware.cpu_name("processor : 0\nBogoMIPS : 50.00\n") is None


def test_control_group_limits(tmp_path: Path) -> None:
    """The least of a group and those above it; "max" and 2^63 are no limit; a path that the container does not see is skipped."""
    group = tmp_path / "user.slice" / "run.scope"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert hardware.cgroup_limit("0::/user.slice/run.scope\n", tmp_path) is None
    (tmp_path / "user.slice" / "memory.max").write_text(f"{512 * MIB}\n")
    assert hardware.cgroup_limit("0::/user.slice/run.scope\n", tmp_path) == 512 * MIB
    (group / "memory.max").write_text(f"{256 * MIB}\n")
    assert hardware.cgroup_limit("0::/user.slice/run.scope\n", tmp_path) == 256 * MIB
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert hardware.cgroup_limit("0::/docker/0123\n", tmp_path) == 2 * GIB
    assert hardware.cgroup_limit("", tmp_path) is None

    old = tmp_path / "memory" / "docker"
    old.mkdir(parents=True)
    membership = "5:cpu,cpuacct:/elsewhere\n4:memory:/docker\n"
    (old.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert hardware.cgroup_limit(membership, tmp_path) is None
    (old / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert hardware.cgroup_limit(membership, tmp_path) == GIB


@ON_LINUX
def test_the_preloaded_blas_is_the_one_that_facts_name() -> None:
    found = find_openblas()
    if found is None or hardware.facts().backend != "cpu":
        pytest.skip("no OpenBLAS here, or mlx computes on a GPU")
    assert hardware.facts().blas == str(found) and blas_environment({})["LD_PRELOAD"] == str(found)
