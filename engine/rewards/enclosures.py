"""The command lines that put a Python program into a sandbox: bubblewrap, Linux namespaces, sandbox-exec.

Inside, there is the system, read-only, as far as Python needs it, an empty /tmp (macOS: one private folder), no network, no
home, no other process, and no way to become more. The limits of engine.rewards.inside.boot come on top.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError

_INSIDE = Path(__file__).parent / "inside"
_SYSTEM = ("/usr", "/nix/store", "/etc/ld.so.cache", "/etc/alternatives")
_MERGED = ("/bin", "/lib", "/lib64", "/lib32", "/sbin")  # links into /usr on most systems, folders on others
NOBODY = 65_534  # as whom a sandbox of root's is started: root is not bound by the limit of processes
SANDBOX_EXEC = "/usr/bin/sandbox-exec"


@dataclass(frozen=True, slots=True)
class Enclosure:
    """One way to enclose: `command(python_arguments, folder, room_bytes)` is what to execute. `folder` is used on macOS alone."""

    name: str
    command: Callable[[list[str], Path, int], list[str]]


def source(name: str) -> str:
    """The text of a module of engine.rewards.inside."""
    return (_INSIDE / f"{name}.py").read_text(encoding="utf-8")


def interpreter() -> str:
    """The Python to run inside: the one below this process's virtual environment, else the system's.

    Root's sandboxes belong to nobody, who must be able to reach it: /root is closed to others on most systems. InputError
    where there is none.
    """
    for candidate in (str(getattr(sys, "_base_executable", sys.executable)), "/usr/bin/python3", "/usr/local/bin/python3"):
        path = Path(candidate).resolve()
        if path.is_file() and (os.getuid() != 0 or all(_open_to_others(part) for part in (path, *path.parents))):
            return str(path)
    what = "no Python that the user nobody can run, as whom root's sandboxes are started"
    raise InputError(what, where="rewards", remedy="train as an ordinary user, or install python3 in /usr/bin")


def _open_to_others(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXOTH)


def prefix(python: str) -> Path:
    """The installation that the interpreter belongs to: PREFIX/bin/python3."""
    return Path(python).parent.parent


def candidates(python: str) -> list[Enclosure]:
    """The enclosures that this system may have, best first."""
    if sys.platform == "darwin":
        return [Enclosure("sandbox-exec", lambda arguments, folder, _: seatbelt(python, arguments, folder, Path.home()))]
    found = []
    if bubblewrap_path := shutil.which("bwrap"):
        path = bubblewrap_path
        found.append(Enclosure("bubblewrap", lambda arguments, _, room_bytes: bubblewrap(path, python, arguments, room_bytes)))
    setpriv, unshare = shutil.which("setpriv"), shutil.which("unshare")
    if setpriv and unshare:
        start = [setpriv, "--pdeathsig", "KILL", unshare]
        found.append(Enclosure("namespaces", lambda arguments, _, room_bytes: namespaces(start, python, arguments, room_bytes)))
    return found


def bubblewrap(path: str, python: str, arguments: list[str], room_bytes: int) -> list[str]:
    """bwrap 0.8 or newer."""
    folders, links = _system(python)
    command = [path, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--cap-drop", "ALL", "--hostname", "sandbox"]
    for folder in folders:
        command += ["--ro-bind", folder, folder]
    for name, target in links.items():
        command += ["--symlink", target, name]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--size", str(room_bytes), "--tmpfs", "/tmp"]
    for name, value in environment("/tmp").items():
        command += ["--setenv", name, value]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--", python, *arguments]


def namespaces(start: list[str], python: str, arguments: list[str], room_bytes: int) -> list[str]:
    """`start` is unshare, tied to our life by setpriv; both are of util-linux. engine.rewards.inside.enclose does the rest."""
    folders, links = _system(python)
    plan = {"read_only": folders, "links": links, "room_bytes": room_bytes, "command": [python, *arguments]}
    spaces = ["--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup"]
    return [*start, *spaces, "--fork", "--kill-child", "--", python, "-I", "-S", "-c", source("enclose"), json.dumps(plan)]


def _system(python: str) -> tuple[list[str], dict[str, str]]:
    """What is to be seen inside: folders and files, and symbolic links."""
    links = {name: os.readlink(name) for name in _MERGED if os.path.islink(name)}
    folders = [name for name in (*_SYSTEM, *_MERGED) if os.path.exists(name) and name not in links]
    root = prefix(python)
    if not any(root.is_relative_to(folder) for folder in folders):
        folders.append(str(root))
    return folders, links


def seatbelt(python: str, arguments: list[str], folder: Path, home: Path) -> list[str]:
    """sandbox-exec of macOS with a profile; paths travel as parameters, so that no character in one is syntax."""
    parameters = {"FOLDER": folder.resolve(), "HOME": home.resolve(), "PREFIX": prefix(python), "PYTHON": python}
    defined = [f"-D{name}={value}" for name, value in parameters.items()]
    return [SANDBOX_EXEC, *defined, "-p", PROFILE, python, *arguments]


# Closed by default. What is opened is what Python needs to start; the users' folders are closed again, but for Python's own.
# No process is started from here and none is signalled, so there is never more than one.
PROFILE = """\
(version 1)
(deny default)
(allow process-exec (literal (param "PYTHON")) (subpath (param "PREFIX")))
(deny process-fork)
(allow signal (target self))
(allow process-info* (target self))
(allow sysctl-read)
(allow mach-lookup (global-name "com.apple.system.opendirectoryd.libinfo"))
(allow file-read-metadata)
(allow file-read* file-map-executable)
(deny file-read* (subpath "/Users") (subpath "/Volumes") (subpath (param "HOME")))
(deny file-read* (subpath "/private/tmp") (subpath "/private/var/folders") (subpath "/private/var/root"))
(deny file-read* (subpath "/Library/Keychains") (literal "/private/etc/master.passwd"))
(allow file-read* (subpath (param "PREFIX")) (subpath (param "FOLDER")))
(allow file-read-metadata)
(allow file-write* (subpath (param "FOLDER")))
(allow file-write-data (literal "/dev/null"))
(deny network*)
"""


def environment(folder: str) -> dict[str, str]:
    """Of the programs inside, the same for all; a hash seed that is fixed gives the same order of sets in every run."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MALLOC_ARENA_MAX": "2",  # an arena for each thread would use up the address space
    }
