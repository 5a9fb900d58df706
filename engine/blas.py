"""OpenBLAS on Linux: where it is, and how a worker gets it.

The Linux wheel of mlx links the reference BLAS, about 50 times slower; a preloaded OpenBLAS takes its place.
"""

from __future__ import annotations

import ctypes.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_BLAS_NAMES = ("openblas", "blis", "mkl")  # fast BLAS libraries that a user may preload on their own


def blas_environment(env: Mapping[str, str], platform: str = sys.platform) -> dict[str, str]:
    """LD_PRELOAD with OpenBLAS in it, where that speeds the worker up and a library is found; else {}.

    An LD_PRELOAD of the user's is kept, and left as it is when it names a fast BLAS already; DROID_TUNE_NO_PRELOAD (any
    value) switches this off.
    """
    kept = env.get("LD_PRELOAD", "")
    if platform != "linux" or env.get("DROID_TUNE_NO_PRELOAD") or any(map(is_fast_blas, preloaded(kept))):
        return {}
    library = find_openblas()
    if library is None:
        return {}
    return {"LD_PRELOAD": f"{kept}:{library}" if kept else str(library)}


def find_openblas(folders: Iterable[Path] | None = None) -> Path | None:
    """The first OpenBLAS in `folders` (default: where distributions put it), else the one that the system's linker names."""
    for folder in _library_folders() if folders is None else folders:
        for name in ("libopenblas.so.0", "libopenblas.so"):
            if (folder / name).is_file():
                return folder / name
    soname = ctypes.util.find_library("openblas")
    return None if soname is None else Path(soname)


def preloaded(value: str) -> list[str]:
    """The libraries that an LD_PRELOAD names."""
    return [part for part in value.replace(" ", ":").split(":") if part]


def is_fast_blas(library: str) -> bool:
    """Whether that library is OpenBLAS, or another BLAS that a user may have chosen."""
    return "openblas" in library or any(name in Path(library).name for name in _BLAS_NAMES)


def _library_folders() -> list[Path]:
    """Where distributions put libopenblas, those built on POSIX threads first."""
    multiarch = sorted(Path("/usr/lib").glob("*-linux-gnu"))
    return [
        *(folder / "openblas-pthread" for folder in multiarch),
        *multiarch,
        Path("/usr/lib64"),
        Path("/usr/lib"),
        Path("/usr/local/lib"),
        Path("/opt/OpenBLAS/lib"),
    ]
