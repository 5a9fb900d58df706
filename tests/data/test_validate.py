"""validate: verdicts, grouped problems, token lengths, duplicates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.cli import report_lines
from engine.config import model_folder
from engine.data.formats import load, split_held_out
from engine.data.length_bar import length_bar
from engine.data.targets import target_rows
from engine.data.template import ChatTokenizer
from engine.data.validate import TokenLengths, require_one_within, token_lengths, validate
from engine.errors import InputError
from engine.plot import Glyphs
from engine.types import Example, Message
from tests.support.chats import write_family


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(prompt: str, answer: str = "1") -> dict[str, str]:
    return {"prompt": prompt, "answer": answer}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A model folder whose tokens are words: lengths can be counted by hand. Its template adds BEGIN and refuses system turns."""
    path = tmp_path / "words"
    path.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "BEGIN": 1, "END": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"eos_token": "END"}')
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}BEGIN{% endif %}"
    )
    return path


def test_ready(tmp_path: Path) -> None:
    report = validate(write(tmp_path / "a.jsonl", pair("a"), pair("b")), "grpo")
    assert (report.verdict, report.format, report.rows, report.usable) == ("ready", "prompt+answer", 2, 2)
    assert report.problems == () and report.prompt_tokens is None and report.completion_tokens is None
    assert json.loads(json.dumps(report.as_dict()))["verdict"] == "ready"


def test_problems_are_grouped(tmp_path: Path) -> None:
    rows = [pair("a"), *[pair(f"b{i}", "") for i in range(7)], pair("", "1"), {"prompt": "c"}, pair("d")]
    report = validate(write(tmp_path / "a.jsonl", *rows), "grpo")
    assert report.verdict == "ready with warnings" and (report.rows, report.usable) == (11, 2)
    assert [(g.kind, g.field, g.count, g.lines) for g in report.problems] == [
        ("empty", "answer", 7, (2, 3, 4, 5, 6, 7, 8)),
        ("empty", "prompt", 1, (9,)),
        ("missing-field", "answer", 1, (10,)),
    ]
    assert all(group.reason and group.remedy for group in report.problems)
    named = [line for group in json.loads(json.dumps(report.as_dict()))["problems"] for line in group["lines"]]
    assert sorted(named) == list(range(2, 11)), "every unusable row is named"


def test_a_damaged_line_is_reported_and_makes_the_file_unusable(tmp_path: Path) -> None:
    report = validate(write(tmp_path / "a.jsonl", pair("a"), "{oops", pair("b")), "grpo")
    assert report.verdict == "unusable" and report.usable == 2
    assert [(g.kind, g.lines) for g in report.problems] == [("not-json", (2,))]


def test_no_usable_row(tmp_path: Path) -> None:
    report = validate(write(tmp_path / "a.jsonl", {"x": 1}), "sft")
    assert (report.verdict, report.format, report.problems[0].kind) == ("unusable", "unknown", "no-format")
    broken = validate(write(tmp_path / "b.jsonl", "{oops"), "sft", columns={"prompt": "ask"})
    assert (broken.verdict, broken.problems[0].kind) == ("unusable", "not-json")


def test_the_method_decides(tmp_path: Path) -> None:
    """The answer without #### is a fine completion, but no reference."""
    path = write(tmp_path / "a.jsonl", {"question": "a", "answer": "Four."}, {"question": "b", "answer": "Five."})
    assert validate(path, "sft").verdict == "ready"
    assert validate(path, "grpo").verdict == "unusable"


def test_duplicates(tmp_path: Path) -> None:
    rows = [pair("a"), pair("b"), pair("a"), pair("a", "2"), pair("a")]
    report = validate(write(tmp_path / "a.jsonl", *rows), "grpo")
    assert (report.duplicates, report.duplicate_lines, report.verdict) == (2, (3, 5), "ready with warnings")
    many = validate(write(tmp_path / "b.jsonl", *[pair("a")] * 9), "grpo")
    assert (many.duplicates, many.duplicate_lines) == (8, tuple(range(2, 10)))


def test_the_text_shows_five_lines_and_says_where_all_are(tmp_path: Path) -> None:
    rows = [pair("a"), *[pair(f"b{i}", "") for i in range(7)], *[pair("a")] * 6]
    shown = "\n".join(report_lines.report(validate(write(tmp_path / "a.jsonl", *rows), "grpo")))
    assert "(lines 2, 3, 4, 5, 6 and 2 more field answer)" in shown
    assert "lines 9, 10, 11, 12, 13 and 1 more" in shown and "--json lists every line" in shown
    few = "\n".join(report_lines.report(validate(write(tmp_path / "b.jsonl", *rows[:6]), "grpo")))
    assert "(lines 2, 3, 4, 5, 6 field answer)" in few and "more" not in few and "--json" not in few


def test_lengths(tmp_path: Path, words: Path) -> None:
    """Prompts of 1, 2 and 4 words and BEGIN: 2, 3, 5 tokens. Completions of 1, 1, 3 words and their end: 2, 2, 4."""
    path = write(tmp_path / "a.jsonl", pair("a", "x"), pair("a b", "y"), pair("a b c d", "x y z"))
    report = validate(path, "sft", tokenizer=words, max_prompt_tokens=4, max_completion_tokens=4)
    assert report.prompt_tokens == TokenLengths(min=2, median=3, p95=5, max=5, limit=4, over_limit=1, bins=(1, 1, 0, 1))
    assert report.completion_tokens == TokenLengths(min=2, median=2, p95=4, max=4, limit=4, over_limit=0, bins=(2, 0, 1))
    assert report.verdict == "ready with warnings"
    assert [line for line in report_lines.report(report, "block") if "[" in line] == [f"{'':9}2 [██ │█] 5", f"{'':9}2 [█ ▅] 4"]
    assert validate(path, "sft", tokenizer=words).verdict == "ready"
    rl = validate(path, "grpo", tokenizer=words, max_prompt_tokens=1)
    assert (rl.verdict, rl.completion_tokens) == ("unusable", None)


def talk(*texts: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]}


def test_a_chat_is_one_row_from_its_first_target_on(tmp_path: Path) -> None:
    """The embedded model's tokens are bytes, each turn has a header and an end: <user>a<end><assistant> are 4 tokens, then come
    bb<end> <user>c<end><assistant> ddd<end>, 3 + 4 + 4. `last` learns the last 4 after 11; `all` everything after the first."""
    path = write(tmp_path / "a.jsonl", talk("a", "bb", "c", "ddd"), talk("e", "ff", "g", "hhh"))
    found = {}
    for targets in ("assistant", "last", "all"):
        report = validate(path, "sft", tokenizer=model_folder("demo"), targets=targets)
        assert report.prompt_tokens is not None and report.completion_tokens is not None
        assert (report.training_rows, report.split_chats, report.verdict) == (2, 0, "ready")
        found[targets] = (report.prompt_tokens.max, report.completion_tokens.max)
    assert found == {"assistant": (4, 11), "last": (11, 4), "all": (1, 14)}
    rewards = validate(path, "grpo", tokenizer=model_folder("demo"), targets="all")
    assert rewards.prompt_tokens is not None and rewards.prompt_tokens.max == 11 and rewards.completion_tokens is None


def test_rows_of_split_chats_are_measured_one_by_one(tmp_path: Path) -> None:
    """Two chats of two replies, and one exchange: 5 rows. Of the prompts only the first ones are within the limit."""
    path = write(tmp_path / "a.jsonl", talk("a", "b", "c", "d"), talk("e", "f", "g", "h"), talk("i", "j"))
    folder = write_family(tmp_path / "m", "thinking")
    report = validate(path, "sft", tokenizer=folder)
    assert (report.usable, report.training_rows, report.split_chats) == (3, 5, 2)
    assert report.prompt_tokens is not None
    (group,) = report.warnings
    assert (group.kind, group.lines, report.verdict) == ("prefix-not-stable", (1, 2), "ready with warnings") and group.remedy
    limited = validate(path, "sft", tokenizer=folder, max_prompt_tokens=report.prompt_tokens.min)
    assert limited.prompt_tokens is not None and limited.prompt_tokens.over_limit == 2
    assert limited.verdict == "ready with warnings"
    assert validate(path, "sft", tokenizer=folder, max_prompt_tokens=1).verdict == "unusable"
    plain = validate(path, "sft")
    assert (plain.training_rows, plain.split_chats) == (None, 0)


def test_decisive_steps_are_counted(tmp_path: Path) -> None:
    """The embedded model's tokens are bytes but for tags, turn ends and the like: of what is learned the second step, "2+2 = 4"
    with 7 bytes, is marked in one row of two; the share is of both rows' targets."""
    chain = {"problem": "q", "reasoning_steps": ["a", "2+2 = 4"], "solution": "4"}
    rows = [{**chain, "sparse_indicators": [0, 1]}, {**chain, "problem": "r"}]
    path = write(tmp_path / "a.jsonl", *rows)
    report = validate(path, "sft", tokenizer=model_folder("demo"))
    assert report.completion_tokens is not None and report.completion_tokens.min == report.completion_tokens.max
    assert report.decisive_share == pytest.approx(7 / (2 * report.completion_tokens.max))
    assert f"decisive {100 * report.decisive_share:.0f}% of the target tokens" in "\n".join(report_lines.report(report))
    assert validate(path, "sft", tokenizer=model_folder("demo"), decisive_weight=1).decisive_share is None
    assert validate(path, "grpo", tokenizer=model_folder("demo")).decisive_share is None


def test_one_turn_of_a_chat_within_the_limits_is_enough(tmp_path: Path) -> None:
    examples = load(write(tmp_path / "a.jsonl", talk("a", "b", "c", "d")), kind="sft").examples
    tokenizer = ChatTokenizer(write_family(tmp_path / "m", "thinking"))
    first, second = target_rows(tokenizer, examples[0], "assistant")
    limits = {"max_prompt_tokens": len(first.prompt), "max_completion_tokens": len(first.tokens), "where": "a.jsonl"}
    require_one_within(examples, tokenizer, **limits)
    assert len(first.prompt) < len(second.prompt)
    with pytest.raises(InputError, match=f"the shortest prompt has {len(second.prompt)} tokens"):
        require_one_within(examples, tokenizer, targets="last", **limits)


def test_prompts_that_the_template_refuses(tmp_path: Path, words: Path) -> None:
    """With seed 2; with 0 that row is the one which a run holds out, and it would not start."""
    path = write(tmp_path / "a.jsonl", pair("a"), pair("b") | {"system": "s"}, pair("c"))
    report = validate(path, "grpo", tokenizer=words, seed=2)
    assert (report.usable, report.verdict) == (2, "ready with warnings")
    assert (report.problems[0].kind, report.problems[0].lines) == ("refused-by-template", (2,))
    assert "no system turn" in report.problems[0].reason
    split = validate(path, "grpo", tokenizer=words)
    assert split.verdict == "unusable" and split.problems[0].reason.startswith("the rows that would be held out: none of its 1")
    assert validate(path, "grpo", tokenizer=words, system="always").verdict == "unusable"


def test_one_row_must_be_within_the_limits(tmp_path: Path, words: Path) -> None:
    """Prompts of 3 and 2 tokens with BEGIN; completions of 2 and 3 with the token that ends them."""
    examples = load(write(tmp_path / "a.jsonl", pair("a b", "x"), pair("a", "x y")), kind="sft").examples

    def require(prompt: int, completion: int | None, rows: Sequence[Example] = examples) -> None:
        limits = {"max_prompt_tokens": prompt, "max_completion_tokens": completion}
        require_one_within(rows, ChatTokenizer(words), where="a.jsonl", **limits)

    for fits in ((2, None), (3, 2), (2, 3)):
        require(*fits)
    for too_low in ((1, None), (1, 9), (2, 2), (9, 1)):
        with pytest.raises(InputError, match=r"none of its 2 rows.*shortest prompt has 2 tokens.*raise max_prompt_tokens"):
            require(*too_low)
    refused = [replace(example, messages=(Message("system", "s"), *example.messages)) for example in examples]
    require(9, None, [refused[0], examples[1]])
    with pytest.raises(InputError, match=r"none of its 2 prompts can be used: .*no system turn"):
        require(9, None, refused)


def test_token_lengths() -> None:
    """
    Of 1..100 the median is 50.5 and 95 values do not exceed 95, five in each of 20 bins; of 1..10, 95% are 9.5 values: all 10
    must be covered. Rows that were chosen for their length widen the bins, and are in none.
    """
    assert token_lengths(range(1, 101), 90) == TokenLengths(1, 50.5, 95, 100, 90, 10, (5,) * 20)
    assert token_lengths(range(1, 11), 90) == TokenLengths(1, 5.5, 10, 10, 90, 0, (1,) * 10)
    assert token_lengths([], 90) is None
    assert token_lengths([1, 1, 2], 90, [40]) == TokenLengths(1, 1, 2, 40, 90, 0, (3, *[0] * 19))


def test_the_rows_that_a_run_holds_back_are_measured(tmp_path: Path, words: Path) -> None:
    """
    Of ten rows it holds back two: where both are longer than the limit, no run would start; where they alone are within it,
    none either; with a file of its own, or as that file, nothing is held back.
    """
    prompts = [f"p{place}" for place in range(10)]
    _, held = split_held_out([Example(1, (Message("user", text),), None, None) for text in prompts], None, 64, 0)
    kept = {example.messages[0].content for example in held}
    assert len(kept) == 2

    def written(long: bool) -> Path:
        rows = [pair(f"{text} x y z" if (text in kept) == long else text) for text in prompts]
        return write(tmp_path / f"{long}.jsonl", *rows)

    for long, name in ((True, "held out: none of its 2 rows"), (False, "trained on: none of its 8 rows")):
        path = written(long)
        found = validate(path, "grpo", tokenizer=words, max_prompt_tokens=3)
        (group,) = found.problems
        assert (found.verdict, found.is_settings_only, group.kind) == ("unusable", True, "over-limits") and name in group.reason
        assert validate(path, "grpo", tokenizer=words, max_prompt_tokens=3, full=True).verdict == "unusable"
        assert validate(path, "grpo", tokenizer=words, max_prompt_tokens=5).verdict == "ready"
        assert validate(path, "grpo", tokenizer=words, max_prompt_tokens=3, is_held_out=True).verdict == "ready with warnings"
        other = validate(path, "grpo", tokenizer=words, max_prompt_tokens=3, seed=1)
        assert other.verdict == ("ready with warnings" if long else "unusable"), "another seed holds back two others"
    valid = write(tmp_path / "valid.jsonl", pair("v"))
    assert validate(path, "grpo", tokenizer=words, max_prompt_tokens=3, valid=valid).verdict == "ready with warnings"


def test_lengths_as_a_line() -> None:
    """
    Lengths 1 to 4, twelve rows of 1, none of 2, six of 3, three of 4: full, blank, half and a quarter. The
    limit stands behind the third bin where it is 3, before all where it is 0, and nowhere where no row is over it.
    """
    rows = [1] * 12 + [3] * 6 + [4] * 3

    def drawn(limit: int, glyphs: Glyphs) -> str:
        found = token_lengths(rows, limit)
        assert found is not None
        return length_bar(found, glyphs)

    assert drawn(3, "braille") == drawn(3, "block") == "█ ▅│▃"
    assert [drawn(limit, "ascii") for limit in (3, 0, 4)] == ["# =|-", "|# =-", "# =-"]
    one = token_lengths([7, 7], 5)
    assert one is not None and length_bar(one, "block") == ""


def test_bad_input(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pair("a"))
    with pytest.raises(InputError, match="no such data file"):
        validate(tmp_path / "missing.jsonl", "grpo")
    with pytest.raises(InputError, match="unknown method"):
        validate(path, "ppo")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        validate(path, "grpo", tokenizer=tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="empty"):
        validate(tmp_path / "empty.jsonl", "grpo")
