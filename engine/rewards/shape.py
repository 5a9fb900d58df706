"""Rewards for how a completion is written, whatever it says: layout, repetition, script. Length: length.py."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from engine.rewards.failed import Failed, by_row
from engine.rewards.format import filled, has_filled_format, has_format, has_soft_format, opened, tag_share
from engine.rewards.words import words

NGRAM = 3  # words of a run, where the option does not say
_THINK_ANSWER = ["think", "answer"]
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


def tag_count(
    prompts: list[str], completions: list[str], tags: list[list[str] | None] | None = None
) -> list[float | Failed | None]:
    """The share of the wanted tags that occur exactly once: 0.25 for each of <think>, </think>, <answer> and </answer>.

    A pair that encloses no letter or digit gives nothing. `tags` names other pairs: ["plan", "answer"].
    """
    return by_row("tags", _tagged, prompts, completions, tags or [None] * len(completions))


def repetition(prompts: list[str], completions: list[str], *, ngram: int = NGRAM) -> list[float | None]:
    """0 down to -1: minus the share of the completion's runs of three words (`ngram`) that have occurred in it before.

    -(1 - different runs / all runs); 0 for fewer words than a run has. Case and punctuation make no difference.
    """
    return [_repeated(words(text), ngram) for text in completions]


def language(prompts: list[str], completions: list[str], language: list[str | None]) -> list[float | Failed | None]:
    """The share of letters that are of the script in which the row's `language` (en, de, zh, ru, ...) is written, 0 to 1.

    It tells scripts apart, not languages: English from Chinese or Russian, but not from German. Code, LaTeX commands, tags,
    links and single Latin letters are not counted. 0 where no letter is left, and for `ja` without any kana. Not applicable
    to rows without a language.
    """
    return by_row("language", _in_script, completions, language)


def _tagged(prompt: str, completion: str, tags: Any) -> float:
    names = [tags] if isinstance(tags, str) and tags else tags or _THINK_ANSWER
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"tags is {tags!r:.80}: write a list of names, without < and >")
    return tag_share(opened(completion, prompt) if "think" in names else completion, names)


def _repeated(found: list[str], ngram: int) -> float:
    runs = list(zip(*(found[start:] for start in range(ngram)), strict=False))
    return len(set(runs)) / len(runs) - 1 if runs else 0.0


def scripts(code: str) -> tuple[str, tuple[str, ...]]:
    """The language of a code such as zh-CN, and the scripts that it is written in. ValueError for an unknown one."""
    key = re.split(r"[-_]", code.strip().casefold())[0]
    if key not in _SCRIPTS:
        raise ValueError(f"unknown language {code!r}: use a code such as {', '.join(sorted(_SCRIPTS))}")
    return key, _SCRIPTS[key]


def _in_script(text: str, code: Any) -> float | None:
    if code is None:
        return None
    if not isinstance(code, str):
        raise ValueError(f"language is {type(code).__name__}: write a code such as en")
    key, wanted = scripts(code)
    runs = [run for run in _RUN.findall(_NO_PROSE.sub(" ", text)) if len(run) > 1 or _script(run) != "LATIN"]
    letters = "".join(runs)
    if not filled(letters) or (key == "ja" and not any(_script(letter) in _KANA for letter in letters)):
        return 0.0
    return sum(_script(letter) in wanted for letter in letters) / len(letters)


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The first word of the letter's Unicode name: LATIN, CYRILLIC, CJK, ...; empty where it has none."""
    return unicodedata.name(letter, " ").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")[0]
