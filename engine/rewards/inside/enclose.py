"""Builds a sandbox where bubblewrap is not installed: the first process in the namespaces that `unshare` has made.

argv[1] is JSON: `read_only` lists the folders and files that are seen inside, under their own names, `links` maps names to
targets of symbolic links, `room_bytes` is the size of /tmp, `command` what to run. Everything else is out of sight: the root
is an empty file system of its own, and so is /tmp.

The order matters: capabilities are needed to mount, and are gone for good (bounding set emptied, no_new_privs set) before the
command is started. This process stays as the namespace's init: when it ends, the kernel kills what is left in there.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any, NoReturn

_ROOT = "/sys"  # of the old tree: it is nowhere needed, and every Linux has it
_DEVICES = ("null", "zero", "full", "random", "urandom")

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC = 32, 4096, 16384
_MNT_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace"))


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    names = source.encode(), target.encode(), kind.encode() or None
    _check(_libc.mount(*names, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def _bind_read_only(source: str, target: str) -> None:
    """With all that is mounted below it: mount_setattr changes that too, and keeps what the old mounts forbid."""
    _mount(source, target, "", _MS_BIND | _MS_REC)
    wanted = _MountAttributes(set=_MS_RDONLY | _MS_NOSUID)
    arguments = (_AT_FDCWD, target.encode(), _AT_RECURSIVE, ctypes.byref(wanted), ctypes.c_size_t(ctypes.sizeof(wanted)))
    _check(_libc.syscall(_MOUNT_SETATTR, *arguments), f"read-only {target}")


def _place(source: str, target: str) -> None:
    """An empty folder or file to mount on."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT, 0o444))


def _build(plan: dict[str, Any]) -> None:
    _mount("tmpfs", _ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
    for source in [*plan["read_only"], *(f"/dev/{name}" for name in _DEVICES)]:
        _place(source, _ROOT + source)
        _bind_read_only(source, _ROOT + source)
    for name, target in plan["links"].items():
        os.symlink(target, _ROOT + name)
    for name in ("/proc", "/tmp"):
        os.mkdir(_ROOT + name)
    _mount("proc", f"{_ROOT}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    size = f"mode=0777,size={plan['room_bytes']}"
    _mount("tmpfs", f"{_ROOT}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, size)
    with open(f"{_ROOT}/proc/sys/user/max_user_namespaces", "w") as limit:
        limit.write("0")  # of this user namespace: no further one within it
    _mount("", _ROOT, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(_ROOT)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount the old root")
    os.chdir("/tmp")


def _give_up_powers() -> None:
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if capability == 0:
        raise OSError("capabilities cannot be given up")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # This process keeps its own, which nobody in here can make it use: its memory is closed to all others.
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")


def _init(child: int) -> NoReturn:
    """Wait for everything that ends in here, and end with the child."""
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def main() -> None:
    plan = json.loads(sys.argv[1])
    _build(plan)
    os.setsid()  # a signal to the program's own group stays in here
    _give_up_powers()
    child = os.fork()
    if child == 0:
        os.execv(plan["command"][0], plan["command"])
    _init(child)


if __name__ == "__main__":
    main()
