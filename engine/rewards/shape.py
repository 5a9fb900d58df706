"""Rewards for how a completion is written, whatever it says: layout, length, repetition, script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from engine.rewards.format import filled, has_filled_format, has_format, has_soft_format, opened, tag_share
from engine.rewards.words import words

NGRAM = 3  # words
_THINK_ANSWER = ["think", "answer"]
_TARGET_KEYS = ("target_length", "target_words", "words", "length")
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\\[A-Za-z]+|</?[A-Za-z_]+>|https?://\S+", re.DOTALL)
_RUN = re.compile(r"[^\W\d_]+")

_LANGUAGES = {  # first words of the Unicode names of a script's letters -> languages written in it
    ("LATIN",): "af ca cs cy da de en es et eu fi fr ga gl hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi",
    ("CYRILLIC",): "be bg kk ky mk mn ru sr tg uk",
    ("ARABIC",): "ar fa ps ur",
    ("DEVANAGARI",): "hi mr ne",
    ("CJK", "BOPOMOFO"): "zh",
    ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"): "ja",
    ("HANGUL",): "ko",
    ("BENGALI",): "bn",
    ("GREEK",): "el",
    ("GUJARATI",): "gu",
    ("HEBREW",): "he",
    ("ARMENIAN",): "hy",
    ("GEORGIAN",): "ka",
    ("KHMER",): "km",
    ("KANNADA",): "kn",
    ("LAO",): "lo",
    ("MALAYALAM",): "ml",
    ("MYANMAR",): "my",
    ("GURMUKHI",): "pa",
    ("TAMIL",): "ta",
    ("TELUGU",): "te",
    ("THAI",): "th",
}
_SCRIPTS = {language: scripts for scripts, languages in _LANGUAGES.items() for language in languages.split()}
_KANA = ("HIRAGANA", "KATAKANA")


def format(prompts: list[str], completions: list[str]) -> list[float | None]:
    """1 where the completion is <think>...</think><answer>...</answer> and nothing else, else 0."""
    return [float(has_format(c, p)) for p, c in zip(prompts, completions, strict=True)]


def think_answer_strict(prompts: list[str], completions: list[str]) -> list[float | None]:
    """1 where the completion is <think>...</think><answer>...</answer> and nothing else, with text in both, else 0.

    Each tag occurs once; between and around the two there may be white space; each holds a letter or a digit.
    """
    return [float(has_filled_format(c, p)) for p, c in zip(prompts, completions, strict=True)]


def think_answer_soft(prompts: list[str], completions: list[str]) -> list[float | None]:
    """1 where one <think>...</think> comes before one <answer>...</answer>, with text in both, whatever stands around; else 0."""
    return [float(has_soft_format(c, p)) for p, c in zip(prompts, completions, strict=True)]


def tag_count(prompts: list[str], completions: list[str], tags: list[list[str] | None] | None = None) -> list[float | None]:
    """The share of the wanted tags that occur exactly once: 0.25 for each of <think>, </think>, <answer> and </answer>.

    A pair that encloses no letter or digit gives nothing. A column `tags` names other pairs for its rows: ["plan", "answer"].
    """
    wanted = [row or _THINK_ANSWER for row in tags or [None] * len(completions)]
    rows = zip(prompts, completions, wanted, strict=True)
    return [tag_share(opened(c, p) if "think" in names else c, names) for p, c, names in rows]


def length_target(
    prompts: list[str],
    completions: list[str],
    target_length: list[float | None] | None = None,
    efficiency_markers: list[Any] | None = None,
) -> list[float | None]:
    """1 at the row's target number of words, falling in a straight line to 0 at no words and at twice the target.

    max(0, 1 - |words - target| / target), over the whole completion, thoughts and all. The target is `target_length`, else
    `efficiency_markers`: a number, or {"target_length": number} (target_words, words and length do as well). Not applicable to
    rows without one; data with neither column fails the call.
    """
    if target_length is None and efficiency_markers is None:
        raise LookupError("length_target needs the column target_length or efficiency_markers, and the data has neither")
    missing: list[Any] = [None] * len(completions)
    targets = [
        _target(length if length is not None else markers)
        for length, markers in zip(target_length or missing, efficiency_markers or missing, strict=True)
    ]
    return [
        None if target is None else max(0.0, 1 - abs(len(words(text)) - target) / target)
        for text, target in zip(completions, targets, strict=True)
    ]


def repetition(prompts: list[str], completions: list[str]) -> list[float | None]:
    """0 down to -1: minus the share of the completion's runs of three words that have occurred in it before.

    -(1 - different runs / all runs); 0 for less than three words. Case and punctuation make no difference.
    """
    return [_repeated(words(text)) for text in completions]


def language(prompts: list[str], completions: list[str], language: list[str | None]) -> list[float | None]:
    """The share of letters that are of the script in which the row's `language` (en, de, zh, ru, ...) is written, 0 to 1.

    It tells scripts apart, not languages: English from Chinese or Russian, but not from German. Code, LaTeX commands, tags,
    links and single Latin letters are not counted. 0 where no letter is left, and for `ja` without any kana. Not applicable
    to rows without a language.
    """
    return [None if code is None else _in_script(text, code) for text, code in zip(completions, language, strict=True)]


def _target(value: Any) -> float | None:
    """Words that a row wants; None where it does not say."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _TARGET_KEYS if value.get(key) is not None), None)
        if value is None:
            return None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{value!r} is not a target length: write a number of words above 0")
    return float(value)


def _repeated(found: list[str]) -> float:
    runs = list(zip(*(found[start:] for start in range(NGRAM)), strict=False))
    return len(set(runs)) / len(runs) - 1 if runs else 0.0


def _in_script(text: str, code: str) -> float:
    key = re.split(r"[-_]", code.strip().casefold())[0]
    if key not in _SCRIPTS:
        raise ValueError(f"unknown language {code!r}: use a code such as {', '.join(sorted(_SCRIPTS))}")
    runs = [run for run in _RUN.findall(_NO_PROSE.sub(" ", text)) if len(run) > 1 or _script(run) != "LATIN"]
    letters = "".join(runs)
    if not filled(letters) or (key == "ja" and not any(_script(letter) in _KANA for letter in letters)):
        return 0.0
    return sum(_script(letter) in _SCRIPTS[key] for letter in letters) / len(letters)


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The first word of the letter's Unicode name: LATIN, CYRILLIC, CJK, ...; empty where it has none."""
    return unicodedata.name(letter, " ").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")[0]
