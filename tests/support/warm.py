"""Workers that begin at once: a process that has imported what a worker imports is forked for each launch.

The imports take two seconds, what a worker does in a test often less than one. A forked worker is a process of its own all the
same, with the session, folder, environment, output and lock that `launch` gives it; killed, it is gone. One that is asked over
its stdin ends with the process that was started for it, and that one with its exit status. Fresh interpreters are for the tests
of the launcher and of the command line. Only on Linux with mlx's CPU backend: a fork of a process that has loaded
Metal or CUDA may not use them, so elsewhere the launcher's own program runs.

    python -P -m tests.support.warm SOCKET     the process that is forked; it ends when its stdin does
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from engine import selftest
from engine.runs import launch
from engine.takehome import asking, export, generate

# Hands its arguments, surroundings and descriptors over. Ends as soon as there is a worker that has them; one that was asked for
# something is waited for.
_CLIENT = """
import json, os, socket, sys
path, *arguments = sys.argv[1:]
descriptors = [0, 1, 2]
if "--lock-fd" in arguments:
    descriptors.append(int(arguments[arguments.index("--lock-fd") + 1]))
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    socket.send_fds(connection, [b"."], descriptors)
    connection.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode())
    connection.shutdown(socket.SHUT_WR)
    status = int(connection.recv(9) or 1)
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
"""
_FREE = 100  # descriptors from here on are nobody's


@contextlib.contextmanager
def workers() -> Iterator[None]:
    """Inside, whatever launches or resumes a run in this process forks its worker where that can be."""
    with pytest.MonkeyPatch.context() as patch:
        for function in (launch.launch, launch.resume, asking.ask, export.export, generate.generate, selftest.run):
            patch.setitem(function.__kwdefaults__, "program", _program())
        yield


@functools.cache
def _program() -> tuple[str, ...]:
    """What `launch` is to start."""
    try:
        metadata.version("mlx-cpu")
    except metadata.PackageNotFoundError:
        return launch.WORKER
    # a BLAS of several threads starts them as it is loaded, and a process with threads must not be forked
    if sys.platform != "linux" or os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        return launch.WORKER
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    path = str(Path(folder.name) / "socket")
    environment, _, _ = launch.worker_environment(os.environ, {})
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-P", "-m", "tests.support.warm", path]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True, close_fds=True
    )
    assert server.stdin is not None and server.stdout is not None
    atexit.register(folder.cleanup)
    atexit.register(server.wait, 10)  # the last that is registered is done first
    atexit.register(server.stdin.close)
    assert server.stdout.readline() == b"ready\n", "nothing can be forked"
    return (sys.executable, "-I", "-S", "-c", _CLIENT, path)


def serve(path: str) -> None:
    """Fork a worker for each client until stdin ends."""
    import engine.worker.run  # noqa: F401 - what a fork need not import again

    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([sys.stdin, listener], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            with connection:
                descriptors = list(socket.recv_fds(connection, 1, 4)[1])
                with connection.makefile("rb") as stream:
                    request = stream.read()
                assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
                if os.fork() == 0:
                    listener.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    if len(descriptors) == 3 and (worker := os.fork()):
                        os._exit(_held(connection, descriptors, worker))
                    connection.close()
                    os._exit(_worker(descriptors, *json.loads(request)))
                if len(descriptors) == 4:
                    connection.send(b"0")
            for descriptor in descriptors:
                os.close(descriptor)


def _reap() -> None:
    """Collect the workers that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def _held(connection: socket.socket, descriptors: list[int], worker: int) -> int:
    """Wait for the end of a worker and tell its status, or end it where nobody waits any longer."""
    for descriptor in descriptors:
        os.close(descriptor)
    ended, watched = os.pidfd_open(worker), select.poll()
    watched.register(ended, select.POLLIN)
    watched.register(connection, 0)  # nothing but that the other end is gone
    if ended not in {ready for ready, _ in watched.poll()}:
        os.kill(worker, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(str(status).encode())
    return 0


def _worker(descriptors: list[int], arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Become what would have been started without this; the exit status."""
    from engine.worker.__main__ import main

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    places = [0, 1, 2]
    if "--lock-fd" in arguments:
        places.append(int(arguments[arguments.index("--lock-fd") + 1]))
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _FREE) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for source, target in zip(moved, places, strict=True):
        os.dup2(source, target)
        os.close(source)
    try:
        return main(arguments)
    except BaseException:  # noqa: BLE001 - the end of this process: its log says why, as an interpreter would
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
