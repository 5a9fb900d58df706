"""The boundary for strings from models, files and journals: what reaches a terminal holds no control characters."""

from __future__ import annotations

_BIDI = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C))
_TABLE = {
    **{code: chr(0x2400 + code) for code in range(0x20)},  # C0 as their pictures: ESC is U+241B
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},  # C1
    **{code: f"\\u{code:04x}" for code in _BIDI},  # they would reorder what stands beside them
    **dict.fromkeys(range(55296, 57344), "�"),  # lone surrogates cannot be written
    0x2028: "\u23ce",
    0x2029: "\u23ce",
}
_LINES = {**_TABLE, 0x0A: "\n"}


def safe_text(text: str, *, lines: bool = False) -> str:
    """`text` with every control, bidi and surrogate character made visible; with `lines` newlines stay as they are."""
    return text.translate(_LINES if lines else _TABLE)
