"""Where the packaged data lies: configs/, datasets/ and the embedded model.

A wheel carries them inside `engine/_share/`; a clone (or an editable install) falls back to the repository's own folders.
"""

from __future__ import annotations

from pathlib import Path

_ENGINE = Path(__file__).resolve().parent


def share_root(kind: str) -> Path:
    """The folder that holds `kind` (configs, datasets or models), as an absolute path."""
    packaged = _ENGINE / "_share" / kind
    return packaged if packaged.is_dir() else _ENGINE.parent / kind


def demo_model() -> Path:
    """The embedded model's folder, in mlx_lm's own layout. `model: demo` in a config means this one."""
    return share_root("models") / "demo"


def resolve(value: str, base: Path) -> Path:
    """An absolute path for a config's `value`: as it is, else beside the config (`base`), else in the packaged data.

    Where none of them exists the path beside the config is returned, so that the error names what the user meant.
    """
    path = Path(value).expanduser()
    if path.is_absolute():
        return path
    beside = (base / path).resolve()
    if beside.exists() or not path.parts:
        return beside
    if path.parts[0] in ("configs", "datasets", "models"):
        packaged = share_root(path.parts[0]).joinpath(*path.parts[1:])
        if packaged.exists():
            return packaged
    return beside
