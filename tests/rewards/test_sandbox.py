"""Programs that mean harm, each in every sandbox that this machine has: contained within seconds, and nobody else is hurt."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.rewards import enclosures, sandbox
from engine.rewards.sandbox import Limits, Sandbox

SHORT = Limits(seconds=2.0, memory_bytes=256 << 20)
MARK = 8_000_000 + 10 * os.getpid()  # of this run's sandboxes alone
NAMES = ("sandbox-exec",) if sys.platform == "darwin" else ("bubblewrap", "namespaces")
WORKS = {  # whether the system allows each of them at all
    "bubblewrap": ["bwrap", "--unshare-all", "--unshare-user", "--ro-bind", "/", "/", "true"],
    "namespaces": ["unshare", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "true"],
    "sandbox-exec": ["sandbox-exec", "-p", "(version 1)(allow default)", "true"],
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's namespaces")


def _sandbox(name: str) -> Sandbox:
    python = enclosures.interpreter()
    found = {enclosure.name: enclosure for enclosure in enclosures.candidates(python)}
    if name not in found:
        pytest.skip(f"{name} is not installed")
    made = Sandbox(found[name], python)
    if why := sandbox.probe(made):
        bare = subprocess.run(WORKS[name], capture_output=True, check=False)
        if why.startswith("reached") or bare.returncode == 0:
            pytest.fail(f"the system allows {name}, yet: {why}")
        pytest.skip(f"{name} does not work here: {why}")
    return made


@pytest.fixture(scope="module", params=NAMES)
def box(request: pytest.FixtureRequest) -> Sandbox:
    return _sandbox(request.param)


def _marked(number: int) -> Limits:
    """Limits that show in the command line of every process of the sandbox."""
    return Limits(seconds=2.0, file_bytes=number)


def _processes(number: int) -> list[int]:
    """Processes on this machine that belong to the sandbox with the limits `_marked(number)`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                continue
            if re.search(rb"RLIMIT_FSIZE\W+%d," % number, command):
                found.append(int(folder.name))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""


def _await(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)  # the condition is asked of other processes, which send no word
    return True


def test_a_program_runs(box: Sandbox) -> None:
    outcome = box.run("import sys, math\nprint(input()[::-1], math.factorial(5), sys.stdin.read())", b"abc\nrest")
    assert (outcome.exit_code, outcome.stdout, outcome.killed_for) == (0, b"cba 120 rest\n", "")
    assert box.run("raise SystemExit(7)").exit_code == 7
    failed = box.run("1 / 0")
    assert failed.exit_code == 1 and b"ZeroDivisionError" in failed.stderr
    assert b"SyntaxError" in box.run("def f(:").stderr


def test_large_input_and_output(box: Sandbox) -> None:
    """Both at once: whoever sent all before it reads would wait for ever."""
    data = b"0123456789abcdef\n" * 50_000  # 850 kB, more than a pipe holds
    outcome = box.run("import sys\nfor line in sys.stdin: sys.stdout.write(line)", data)
    assert outcome.stdout == data and outcome.exit_code == 0


@linux
def test_endless_forks(box: Sandbox) -> None:
    started = time.monotonic()
    outcome = box.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", limits=_marked(MARK + 1))
    assert outcome.killed_for == "time" and time.monotonic() - started < 30
    assert _await(lambda: not _processes(MARK + 1)), "none is left"


@linux
def test_number_of_processes(box: Sandbox) -> None:
    """A fork bomb is stopped by the limit of processes, before that of time."""
    program = """
import os, time
count = 0
try:
    while count < 100:
        if os.fork() == 0:
            time.sleep(60)
        count += 1
except BlockingIOError:
    print("refused after", count, flush=True)
"""
    words = box.run(program, limits=SHORT).stdout.split()
    assert words[:2] == [b"refused", b"after"]
    assert 5 < int(words[2]) < SHORT.processes


def test_memory_of_one_process(box: Sandbox) -> None:
    limits = Limits(seconds=20.0, memory_bytes=SHORT.memory_bytes)  # a busy machine may take long to fill it
    outcome = box.run("held = []\nwhile True: held.append(bytearray(10_000_000))", limits=limits)
    assert outcome.killed_for == "memory" or b"MemoryError" in outcome.stderr


@linux
def test_memory_of_many_processes(box: Sandbox) -> None:
    """Each of 8 processes stays below its own 256 MiB: 8 x 150 MB is beyond the 256 MiB of the whole."""
    program = "import os, time\nfor _ in range(3): os.fork()\nheld = bytearray(os.urandom(1) * 150_000_000)\ntime.sleep(60)"
    assert box.run(program, limits=Limits(seconds=20.0, memory_bytes=256 << 20)).killed_for == "memory"


def test_the_network_is_closed(box: Sandbox) -> None:
    """The listener answers out here, on loopback; in there nothing does, by TCP, UDP, a raw address or an abstract name."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        server.accept()[0].close()
        datagrams.bind(("127.0.0.1", 0))
        program = f"""
import socket
for address in ("127.0.0.1", "localhost", "192.0.2.1"):
    try:
        socket.create_connection((address, {port}), timeout=0.5)
        print("reached", address)
    except OSError:
        pass
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", {datagrams.getsockname()[1]}))
except OSError:
    pass
print("tried")
"""
        assert box.run(program).stdout == b"tried\n"
        for listener in (server, datagrams):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.recv(1) if listener is datagrams else listener.accept()


def test_nothing_is_written_outside(box: Sandbox, open_folder: Path) -> None:
    """A folder that is open to everybody, by its name and by a link; the home; the system; the interpreter."""
    places = [str(open_folder / "x"), str(Path.home() / "droid-x"), "/usr/droid-x", "/droid-x", "/etc/droid-x", "/dev/droid-x"]
    program = f"""
import os
for place in {places!r} + [os.path.join(os.path.dirname(os.__file__), "droid-x"), "/proc/1/root/droid-x", "/sys/droid-x"]:
    try:
        open(place, "w").close()
        print("wrote", place)
    except OSError:
        pass
os.symlink({str(open_folder)!r}, "link")
try:
    open("link/x", "w").close()
    print("wrote by a link")
except OSError:
    pass
open("own", "w").write("x")
print(open("own").read())
"""
    assert box.run(program).stdout == b"x\n"
    assert list(open_folder.iterdir()) == [] and not (Path.home() / "droid-x").exists()


def test_nothing_private_is_read(box: Sandbox, open_folder: Path) -> None:
    secret = open_folder / "secret"
    secret.write_text("hidden", encoding="utf-8")
    places = [str(secret), "/etc/shadow", "/etc/master.passwd", str(Path.home() / ".bashrc"), f"/proc/{os.getpid()}/environ"]
    program = f"""
import os
for place in {places!r}:
    try:
        print(place, open(place).read(20))
    except OSError:
        pass
try:
    print(os.listdir({str(Path.home())!r}))
except OSError:
    pass
print(sorted(name for name in os.environ if name not in ("LC_CTYPE", "PWD", "__CF_USER_TEXT_ENCODING")))
"""
    outcome = box.run(program)
    assert outcome.stdout.decode().splitlines() == [str(sorted(enclosures.environment("")))], outcome


@pytest.mark.parametrize(
    "program",
    ["import time\ntime.sleep(1e6)", "while True: pass", "import os, time\nos.close(1); os.close(2)\ntime.sleep(1e6)"],
    ids=["sleeps", "loops", "closes its output and sleeps"],
)
def test_for_ever(box: Sandbox, program: str) -> None:
    started = time.monotonic()
    outcome = box.run(program, limits=Limits(seconds=0.5))
    assert outcome.killed_for == "time" and time.monotonic() - started < 20


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output(box: Sandbox, stream: str) -> None:
    outcome = box.run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", limits=Limits(seconds=30.0))
    assert outcome.killed_for == "output"
    assert len(outcome.stdout) < Limits().output_bytes + (1 << 17), "what is kept is bounded too"


@pytest.mark.parametrize(
    "target", ["os.kill(0, 9)", "os.kill(-1, 9)", "os.kill(os.getppid(), 9)", "os.killpg(os.getpgid(os.getppid()), 9)"]
)
def test_it_kills_none_but_its_own(box: Sandbox, target: str) -> None:
    """A witness of the same group and the same user; and this process, which is the sandbox's parent."""
    user = enclosures.NOBODY if os.getuid() == 0 and sys.platform != "darwin" else None
    witness = subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE, user=user, cwd="/")
    try:
        program = f"""
import os
try: {target}
except OSError: pass
for _ in range(3000):
    try: os.kill({witness.pid}, 9)
    except OSError: pass
"""
        box.run(program, limits=SHORT)
        assert witness.poll() is None
    finally:
        witness.communicate(b"\n")
    assert witness.returncode == 0


@linux
def test_a_daemon_ends_with_its_program(box: Sandbox) -> None:
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1e6)\n    os._exit(0)"
    assert box.run(program, limits=_marked(MARK + 2)).exit_code == 0
    assert _await(lambda: not _processes(MARK + 2))


@linux
def test_the_sandbox_dies_with_who_started_it(box: Sandbox) -> None:
    """SIGKILL of that process alone: nobody has time to clean up."""
    program = "import time\nopen('/proc/self/comm', 'w').write('droid-sleeps')\ntime.sleep(1e6)"
    code = f"""
from tests.rewards.test_sandbox import _sandbox, Limits
_sandbox({box.enclosure.name!r}).run({program!r}, limits=Limits(seconds=1e6, file_bytes={MARK + 3}))
"""
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        assert _await(lambda: any(_command(pid) == "droid-sleeps" for pid in _processes(MARK + 3)), 60)
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    try:
        assert _await(lambda: not _processes(MARK + 3))
    finally:
        for pid in _processes(MARK + 3):
            os.kill(pid, signal.SIGKILL)


@linux
def test_disk_and_files(box: Sandbox) -> None:
    """/tmp holds 64 MiB (of 8-MiB files), one file 8 MiB, one process 32 open files; no limit can be raised."""
    program = """
import os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill(name, count):
    try:
        with open(name, "wb", buffering=0) as file:
            written = 0
            while written < count:
                written += file.write(bytes(1 << 20))
    except OSError:
        pass
    return os.path.getsize(name) >> 20
print(fill("one", 20 << 20), sum(fill(str(i), 7 << 20) for i in range(20)) <= 56)
held = []
try:
    while True: held.append(open("/dev/null"))
except OSError:
    print(len(held) < 32)
held.clear()
for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE):
    try:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print("raised", kind)
    except (ValueError, OSError):
        pass
"""
    outcome = box.run(program, limits=Limits(seconds=20.0))
    assert outcome.stdout == b"8 True\nTrue\n", outcome


@linux
def test_no_more_powers(box: Sandbox) -> None:
    """No capability, none to be had by a new user namespace, no mount, no host name."""
    program = """
import ctypes, os, re
libc = ctypes.CDLL(None, use_errno=True)
print(re.findall(r"(?:CapPrm|CapEff|CapBnd):\\t0+\\n", open("/proc/self/status").read()).__len__())
print("NoNewPrivs:\\t1" in open("/proc/self/status").read())
print(libc.unshare(0x10000000), libc.mount(b"x", b"/tmp", b"tmpfs", 0, None), libc.sethostname(b"x", 1))
for place in ("/usr", "/"):
    print(libc.mount(None, place.encode(), None, 32 | 4096, None))
"""
    outcome = box.run(program)
    assert outcome.stdout.split() == b"3 True -1 -1 -1 -1 -1".split(), outcome
