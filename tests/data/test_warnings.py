"""What validate warns of, and what it does with files too large to measure every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.cli.report_lines import report
from engine.config import model_folder
from engine.data import formats
from engine.data.scoring import Marks, OwnAnswer, reference_completion
from engine.data.structure import Sample, gives_away, keys
from engine.data.validate import DryRun, Scorer, validate
from engine.errors import InputError
from engine.rewards import registry
from engine.types import Example, Message
from tests.support.data_files import write_file


def pair(prompt: str, answer: str = "1") -> dict[str, str]:
    return {"prompt": prompt, "answer": answer}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(prompt: str, answer: str) -> Example:
    return Example(1, (Message("user", prompt),), None, answer)


# ---- overlap


def test_overlap_with_the_held_out_file(tmp_path: Path) -> None:
    """By the prompt: another answer is no other question. The lines are those of the training file."""
    train = write(tmp_path / "train.jsonl", *[pair(text) for text in "abcb"], {"prompt": ""})
    valid = write(tmp_path / "valid.jsonl", pair("b", "2"), pair("x"), {"broken": 1})
    report = validate(train, "grpo", valid=valid)
    (group,) = report.warnings
    assert (group.kind, group.count, group.lines, report.verdict) == ("overlap", 2, (2, 4), "ready with warnings")
    assert validate(train, "grpo").warnings == ()
    assert validate(tmp_path, "grpo").warnings == report.warnings, "a folder's own valid file"
    assert validate(train, "grpo", valid=write(tmp_path / "other.jsonl", pair("x"))).warnings == ()
    with pytest.raises(InputError, match="no such data file"):
        validate(train, "grpo", valid=tmp_path / "missing.jsonl")


def test_overlap_of_chats_is_by_what_is_asked_first(tmp_path: Path) -> None:
    def talk(*texts: str) -> dict[str, Any]:
        return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}

    train = write(tmp_path / "train.jsonl", talk("a", "b", "c", "d"), talk("e", "f"))
    report = validate(train, "sft", valid=write(tmp_path / "valid.jsonl", talk("a", "x")))
    assert [(group.kind, group.lines) for group in report.warnings] == [("overlap", (1,))]


def test_keys_tell_parts_apart() -> None:
    """Pieces of text that would read the same when joined."""
    examples = [
        Example(1, (Message("user", "ab"),), None, None),
        Example(1, (Message("user", "a"),), "b", None),
        Example(1, (Message("user", "a"),), None, "b"),
        Example(1, (Message("user", "a"),), "", "b"),
        Example(1, (Message("user", "a"), Message("user", "b")), None, None),
        Example(1, (Message("usera", "b"),), None, None),
    ]
    assert len({keys(example)[1] for example in examples}) == len(examples)


# ---- answers in prompts


@pytest.mark.parametrize(
    ("prompt", "answer", "found"),
    [
        ("What is 22-2+2?", "22", False),
        ("Which is it: A) Paris B) Rome?", "Paris", False),
        ("2+2? The answer is 4.", "4", True),
        ("2+2? ANSWER: 4", "4", True),
        ("2+2 #### 4", "4", True),
        ("2+2? The answer is 42.", "4", False),
        ("Say the last of these: the court of first instance", "the court of first instance", True),
        ("Name the court.", "the court of first instance", False),
    ],
)
def test_answers_that_the_prompt_gives_away(prompt: str, answer: str, found: bool) -> None:
    assert gives_away(asked(prompt, answer)) is found


def test_leaks_are_counted_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pair("a? answer: 5", "5"), pair("b", "5"), pair("c #### 6", "6"))
    (group,) = validate(path, "grpo").warnings
    assert (group.kind, group.count, group.lines) == ("answer-in-prompt", 2, (1, 3)) and group.remedy


# ---- one answer for all


def test_labels(tmp_path: Path) -> None:
    """18 of 21 rows say yes: 85%. With 20 rows, or 16 of 21 (76%), nothing is said."""
    rows = [pair(f"q{i}", "yes" if i < 18 else "no") for i in range(21)]
    report = validate(write(tmp_path / "a.jsonl", *rows), "grpo")
    assert report.labels == (("yes", 18), ("no", 3))
    (group,) = report.warnings
    assert (group.kind, report.verdict) == ("one-sided", "ready with warnings") and "85%" in group.reason
    assert validate(write(tmp_path / "b.jsonl", *rows[1:]), "grpo").warnings == ()
    fewer = [pair(f"q{i}", "yes" if i < 16 else "no") for i in range(21)]
    assert validate(write(tmp_path / "c.jsonl", *fewer), "grpo").warnings == ()
    many = validate(write(tmp_path / "d.jsonl", *[pair(f"q{i}", str(i % 22)) for i in range(50)]), "grpo")
    assert (many.labels, many.warnings) == ((), ())
    assert validate(tmp_path / "a.jsonl", "sft").labels == ()


# ---- the dry run


def scorer(*names: str) -> Scorer:
    """The built-in rewards of those names, called as they are."""

    def score(rows: Sequence[OwnAnswer], /) -> list[Marks]:
        columns = {"answer": [row.example.answer for row in rows]}
        completions, prompts = [row.completion for row in rows], ["" for _ in rows]
        marks = []
        for name in names:
            reward = registry.built_in(name)
            values = reward(**registry.arguments(reward, prompts, completions, columns))
            judges = "answer" in registry.needed_columns(reward)
            marks.append(Marks(name, len(rows), tuple(values), registry.full_marks(name), judges, seconds=0.25))
        return marks

    return score


def test_the_rows_own_answer_must_get_full_marks(tmp_path: Path) -> None:
    """`number` finds no number in "yes" and does not apply; an answer that holds <think> breaks the layout."""
    path = write(tmp_path / "a.jsonl", pair("a", "4"), pair("b", "yes"), pair("c", "4 <think>"), pair("d", "5"))
    assert validate(path, "grpo", scorer=scorer("answer")).warnings == ()
    assert {g.kind: g.lines for g in validate(path, "grpo", scorer=scorer("number")).warnings} == {"answer-not-scored": (2,)}
    low = validate(path, "grpo", scorer=scorer("format", "number"))
    assert [(g.kind, g.lines) for g in low.warnings] == [("answer-not-scored", (2,)), ("answer-below-full", (3,))]
    assert "format by 1" in low.warnings[1].reason
    assert low.dry_run == (DryRun("format", 4, 3, 0, 0, 0.25, ""), DryRun("number", 4, 3, 1, 0, 0.25, ""))
    assert low.verdict == "ready with warnings" and low.sampled is None
    assert "3 of 4 rows: the row's own answer gets full marks from number, 1 not applicable (0.250 s)" in "\n".join(report(low))
    assert validate(path, "sft", scorer=scorer("number")).dry_run == (), "sft has no rewards"


def test_what_is_scored() -> None:
    """The answer, with the chain's steps; an answer in a layout of its own as it stands."""
    plain, tagged = asked("q", "4"), asked("q", "<think>a</think><answer>4</answer>")
    chain = replace(plain, columns={"reasoning_steps": ["2+2", "= 4"]})
    assert [reference_completion(example) for example in (plain, tagged, chain)] == [
        "<think>\nThe answer is 4.\n</think>\n<answer>4</answer>",
        "<think>a</think><answer>4</answer>",
        "<think>\n2+2\n= 4\n</think>\n<answer>4</answer>",
    ]
    assert reference_completion(Example(1, (Message("user", "q"),), "said", None)) == "said"


# ---- templates


def test_templates_that_lack_something(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pair("a"), pair("b"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((model_folder("demo") / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text("{}")
    assert [(g.kind, g.count, g.lines) for g in validate(path, "grpo", tokenizer=folder).warnings] == [("no-template", 2, ())]
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    report = validate(path, "grpo", tokenizer=folder)
    assert [g.kind for g in report.warnings] == ["no-generation-prompt"] and report.verdict == "ready with warnings"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    assert validate(path, "grpo", tokenizer=folder).verdict == "ready"


# ---- large files


def test_large_files_are_measured_by_a_sample(tmp_path: Path) -> None:
    """5,000 prompts of 6 bytes, and 150 of 60 to 209 at the end: of these the 100 longest are in, whatever is drawn.

    Each prompt has 3 tokens more for its header and the reply's. Median and p95 are those of what was drawn: 150 of 5,150
    rows are 3%, so that 95% of them are short.
    """
    rows = [pair(f"q{i:05d}", str(i)) for i in range(5000)] + [pair("x" * (60 + i), str(i)) for i in range(150)]
    path = write(tmp_path / "a.jsonl", *rows, pair("q00007", "7"))
    report = validate(path, "grpo", tokenizer=model_folder("demo"), max_prompt_tokens=112)
    assert (report.rows, report.usable, report.duplicate_lines) == (5151, 5151, (5151,)), "the structure is of every row"
    assert report.sampled is not None and 2000 < report.sampled <= 2100
    assert report.training_rows == report.sampled
    found = report.prompt_tokens
    assert found is not None and (found.min, found.median, found.p95, found.max) == (9, 9, 9, 212)
    assert found.over_limit == 100, "60 + 50 + 3 = 113 tokens and more"
    again = validate(path, "grpo", tokenizer=model_folder("demo"), max_prompt_tokens=112)
    other = validate(path, "grpo", tokenizer=model_folder("demo"), max_prompt_tokens=112, seed=1)
    assert again == report and other.sampled != report.sampled
    full = validate(path, "grpo", tokenizer=model_folder("demo"), max_prompt_tokens=112, full=True)
    assert (full.sampled, full.training_rows) == (None, 5151)
    assert validate(path, "grpo").sampled is None, "nothing is measured, so nothing is a sample"


def test_what_is_refused_in_a_sample_is_not_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[pair(f"q{i}") for i in range(2200)])
    report = validate(path, "grpo", scorer=lambda rows: [Marks("mine", len(rows), (0.5,) * len(rows), 1.0, True)])
    assert report.sampled is not None and report.warnings[0].count == report.sampled and report.usable == 2200


def test_a_sample_is_fair_and_the_same_everywhere() -> None:
    """2,000 of 20,000: a tenth of each thousand. 100 +- 4 deviations of a hypergeometric draw, sqrt(100 * 0.9 * 0.95) = 9.2."""
    sample = Sample(seed=3)
    for line in range(20_000):
        sample.add(Example(line, (Message("user", "a" * (line % 50)),), None, None))
    drawn, longest = sample.taken()
    assert len(drawn) == 2000 and [e.line for e in drawn] == sorted({e.line for e in drawn})
    assert all(63 <= count <= 137 for count in Counter(e.line // 1000 for e in drawn).values())
    assert {len(e.messages[0].content) for e in longest} == {49} and not {e.line for e in drawn} & {e.line for e in longest}
    assert [e.line for e in drawn[:5]] == [10, 31, 35, 40, 49]


# ---- consumers


def test_a_report_of_every_kind_is_plain(tmp_path: Path) -> None:
    write_file(tmp_path, "json", [pair("a? answer: 5", "5"), pair("b", "x")], stem="train")
    found = validate(tmp_path, "grpo", tokenizer=model_folder("demo")).as_dict()
    assert json.loads(json.dumps(found))["warnings"][0]["lines"] == [1]
    assert found["path"].endswith("train.json")


def test_formats_without_an_entry_in_the_method(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
    path = write(tmp_path / "a.jsonl", *rows)
    assert [validate(path, method).verdict for method in ("sft", "grpo")] == ["ready", "ready"]
    assert formats.scan(path, kind="sft").format == "instruction"
