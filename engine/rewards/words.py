"""Cuts text into words and sentences, in any script. Users' reward files may import this: it needs nothing but Python.

Left out: dictionaries. In scripts that part words by spaces a word is what stands between them; in Chinese, Japanese, Thai,
Lao, Khmer and Burmese every letter counts as a word.
"""

from __future__ import annotations

import re

_UNSPACED = (
    r"\u0e01-\u0e2e\u0e81-\u0eae\u1000-\u102a\u1780-\u17a2"  # Thai, Lao, Burmese, Khmer
    r"\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Chinese
)
_WORD = re.compile(rf"[{_UNSPACED}]|\d+(?:[.,]\d+)*|[^\W\d_{_UNSPACED}]{{1,20}}")
_END = re.compile(r"[\r\n]+|(?<=[.!?;])\s+|(?<=[。！？；])")


def words(text: str) -> list[str]:
    """The words of `text` without case and punctuation; a number is a word, and every 20 letters without a break are one."""
    return _WORD.findall(text.casefold())


def sentences(text: str) -> list[str]:
    """The lines of `text`, cut after each . ! ? ; that white space follows; without blank ones."""
    return [piece.strip() for piece in _END.split(text) if piece.strip()]
