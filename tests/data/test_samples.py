"""Generated sample rows: their answers and every step are right, each row is different, the same seed gives the same rows."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from engine import methods, share
from engine.data import arithmetic, chains
from engine.data.examples import FORMATS
from engine.data.rows import read_rows
from engine.data.samples import MAX_ROWS, TOPICS, formats, problem, sample_rows, subject, write_samples
from engine.data.samples.formats import RENDERERS
from engine.data.samples.problem import Problem, Redraw, Step, distinct, fixed, hinges, near, show
from engine.data.validate import validate
from engine.data.values import Row
from engine.errors import InputError
from engine.profiles import PROFILES, Profile
from engine.rewards import registry
from engine.rewards.answers import last_number, same_number, same_text
from engine.rewards.format import has_format
from tests.data.sample_claims import claims
from tests.data.sample_formulas import FORMULAS, answer, marks, rounded, to_monday

DECIDING = ("decisive", "medicine", "science", "law")
WITHOUT_A_SIGN = ("No Saturday", "This last day", "It would end", "Month ")  # steps of the law that state a date or a day
KINDS = {"sft": "sft", "rl": "gspo"}


@pytest.mark.parametrize("topic", TOPICS)
def test_every_answer_and_every_step_is_right(topic: str) -> None:
    """300 rows of three seeds: the answer by another formula than the template's, and each equation, comparison, date and
    weekday that a step claims. 12.5*21.3 = 266.25 is compared exactly; 266.25/7 ≈ 38.0 must lie within 0.05, and not at it."""
    read: Counter[str] = Counter()
    for seed in (0, 1, 2):
        for row in sample_rows("grpo", 300, seed, topic, "reasoning"):
            expected, formula = answer(topic, row["problem"])
            read[formula] += 1
            assert row["answer"] == expected, row
            assert row["solution"].endswith(f" {expected}."), row
            for step in row["reasoning_steps"]:
                found = list(claims(step))
                assert found or step.startswith(WITHOUT_A_SIGN), step
                assert all(holds for _, holds in found), (step, found)
            assert all(holds for text, holds in claims(row["problem"].partition("Estimate")[0]) if "day" in text), row
    assert len(read) == len(FORMULAS[topic]) == max(1, len(subject(topic).templates)), "a template or a formula is not in use"
    assert max(read.values()) < 3 * min(read.values()), read  # each template has its share


@pytest.mark.parametrize(
    ("step", "holds"),
    [
        ("3*4 = 12", True),
        ("3*4 = 13", False),
        ("10/4 ≈ 2.5", False),  # what is exact is not written as rounded
        ("10/3 ≈ 3.3", True),
        ("10/3 = 3.3", False),
        ("1/16 ≈ 0.06", True),
        ("1/16 ≈ 0.07", False),
        ("2*(3+4)/7 = 2", True),
        ("-log10(0.02) ≈ 1.70", True),
        ("-log10(0.02) ≈ 1.69", False),
        ("1750 < 3", False),
        ("2 <= 4 < 5", True),
        ("2 <= 6 < 5", False),
        ("2024-02-28 + 2 days = 2024-03-01", True),
        ("2023-02-28 + 2 days = 2023-03-01", False),
        ("2024-03-01 > 2024-02-29", True),
        ("2024-03-01, a Friday", True),
        ("a Saturday, 2024-03-01", False),
        ("x = 5", False),  # a sign that belongs to nothing that can be checked
    ],
)
def test_the_check_of_steps_can_tell_right_from_wrong(step: str, holds: bool) -> None:
    assert [right for _, right in claims(step)] == [holds]


@pytest.mark.parametrize("topic", TOPICS)
def test_rows_are_distinct_and_seeded(topic: str) -> None:
    def questions(rows: int, seed: int) -> list[str]:
        return [row["prompt"] for row in sample_rows("grpo", rows, seed, topic, "prompt+answer")]

    first = questions(300, 7)
    assert len(set(first)) == 300
    assert questions(300, 7) == first != questions(300, 8)
    assert questions(20, 7) == first[:20]
    if subject(topic).templates:  # there are many more: of 1,000 draws nearly all differ
        rng, drawn = random.Random(5), set()
        for _ in range(1000):
            drawn |= {problem.question for problem in distinct(subject(topic).templates, 1, rng, topic)}
        assert len(drawn) > 980


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_format_are_ready_for_their_methods(tmp_path: Path, kind: str, topic: str) -> None:
    method = KINDS[kind]
    for format in formats(method, topic):
        report = validate(write_samples(tmp_path / f"{format}.jsonl", method, 40, 7, topic=topic, format=format), method)
        assert (report.format, report.verdict, report.usable, report.duplicates) == (format, "ready", 40, 0), report
    usual = {"sft": "prompt+completion", "rl": "prompt+answer"}[kind]
    assert formats(method, topic)[0] == (usual if topic in ("arithmetic", "words") else "reasoning")
    assert sample_rows(method, 5, 7, topic) == sample_rows(method, 5, 7, topic, formats(method, topic)[0])


def test_every_format_can_be_written_and_every_method_has_its_own() -> None:
    assert set(RENDERERS) == set(FORMATS)
    for method in methods.METHODS.values():
        assert set(formats(method.id, "words")) == set(method.formats)
        assert formats(method.id, "law") == formats(KINDS[method.kind], "law")
        assert set(formats(method.id, "law")) == set(method.formats) - {"gsm8k"}


@pytest.mark.parametrize("topic", TOPICS)
def test_every_format_says_the_same(topic: str) -> None:
    """The rows of one seed, format by format: one question, one answer, one chain, one system text."""
    rows = {name: sample_rows("grpo", 30, 2, topic, name) for name in formats("grpo", topic)}
    for place, chain in enumerate(rows["reasoning"]):
        short, imitated = rows["prompt+answer"][place], rows["prompt+completion"][place]
        assert short["prompt"] == imitated["prompt"] == rows["instruction"][place]["instruction"] == chain["problem"]
        assert short["answer"] == imitated["answer"] == chain["answer"]
        assert has_format(imitated["completion"]) and same_text(imitated["completion"], chain["answer"])
        turns = {turn["role"]: turn["content"] for turn in rows["messages"][place]["messages"]}
        assert turns["assistant"] == rows["instruction"][place]["output"] == imitated["completion"]
        assert turns.get("system", "") == short.get("system", "") == chains.domain_prompt(chain)
        if "gsm8k" in rows:
            worked, _, number = rows["gsm8k"][place]["answer"].rpartition("\n#### ")
            assert same_number(number, chain["answer"]) and float(number) is not None
            assert worked.splitlines() == chain["reasoning_steps"]
    text = sample_rows("sft", 30, 2, topic, "text")[0]["text"]
    assert text.splitlines()[1:-1] and not re.search("</?(think|answer)>", text)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_a_profiles_rewards_read_its_rows(profile: Profile) -> None:
    """The reference chain gets full marks from each reward; a row's chain with another row's answer, and a bare list of the
    terms, do not."""
    rows = sample_rows(profile.methods[0], 300, 3, profile.topic, profile.format)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    references = [chains.render(row["reasoning_steps"], row["solution"], row["answer"]) for row in rows]
    others = [row["answer"] for row in (*rows[1:], rows[0])]
    swapped = [chains.render(row["reasoning_steps"], row["solution"], other) for row, other in zip(rows, others, strict=True)]
    bare = [", ".join(row["domain_context"]["required_terms"]) if "domain" in row else "steps, sum" for row in rows]

    def scored(reward: registry.Reward, completions: list[str]) -> list[float | None]:
        return reward(**registry.arguments(reward, columns["problem"], completions, columns))

    for entry in profile.rewards:
        reward = registry.built_in(entry["name"])
        assert scored(reward, references) == [registry.full_marks(entry["name"])] * 300, entry["name"]
        if entry["name"] in ("number", "answer"):
            same = [other == row["answer"] for row, other in zip(rows, others, strict=True)]
            if entry["name"] == "number":
                same = [last_number(other) == last_number(row["answer"]) for row, other in zip(rows, others, strict=True)]
            assert scored(reward, swapped) == [float(each) for each in same] and sum(same) < 30
        assert scored(reward, bare) == [0] * 300, entry["name"]


@pytest.mark.parametrize("topic", DECIDING)
def test_marks_fit_the_steps_and_tell_them_apart(topic: str) -> None:
    found: Counter[float] = Counter()
    for row in sample_rows("gspo", 300, 4, topic):
        given = row["sparse_indicators"]
        assert len(given) == len(row["reasoning_steps"]) and 0 in given
        assert topic != "decisive" or any(given)
        found.update(given)
    assert set(found) == {0.0, 0.5, 1.0}, found


def test_marks_of_decisive_steps_follow_from_the_numbers() -> None:
    """By the answer of one who passes the step over, worked out apart. A parcel of 1750 g at a limit of 3 kg: who takes grams for
    kilograms pays the higher rate, so the conversion is marked 1, and the look at the limit, which changes nothing, 0."""
    decided: set[tuple[str, int]] = set()
    for row in sample_rows("gspo", 600, 5, "decisive"):
        expected, kinds = marks(row["problem"], Fraction(row["answer"]), len(row["reasoning_steps"]))
        assert row["sparse_indicators"] == expected, row
        decided |= kinds
    assert len(decided) == 16, "of the steps that can decide, one never does"
    assert [hinges(100, value) for value in (100, 109, 91, 110, 90, 200)] == [0, 0.5, 0.5, 1, 1, 1]
    with pytest.raises(Redraw):
        problem.decided("?", [Step("1+1 = 2"), Step("2+2 = 4")], "4", "It is 4.")


def test_the_monday_is_marked_where_the_last_day_is_at_the_weekend() -> None:
    seen = Counter[bool]()
    for row in sample_rows("gspo", 300, 5, "law"):
        if "receives" in row["problem"] and "within a period" in row["problem"]:
            last = re.findall(r"\d{4}-\d\d-\d\d", row["reasoning_steps"][0])[-1]
            seen[is_moved := to_monday(last) != last] += 1
            assert row["sparse_indicators"] == [0, 0, float(is_moved)]
    assert min(seen[True], seen[False]) > 5


def test_domain_rows_describe_themselves() -> None:
    """Level and conventions go into the system text, the terms that the reward asks for do not; the target is the reference's
    own length: 3 words within it earn 1 from length_target."""
    levels = set()
    for row in (row for topic in DECIDING[1:] for row in sample_rows("dr_grpo", 60, 6, topic)):
        context, told = row["domain_context"], chains.domain_prompt(row)
        levels.add(row["expertise_level"])
        assert row["domain"] in ("medicine", "chemistry", "physics", "law") and row["domain"] in told
        assert all(convention in told for convention in context["conventions"]) and row["expertise_level"] in told
        assert "required" not in told and context["required_terms"]
        reference = chains.render(row["reasoning_steps"], row["solution"], row["answer"])
        assert registry.BUILT_IN["length_target"]([""], [reference], efficiency_markers=[row["efficiency_markers"]]) == [1.0]
        assert bool(context["units"]) == bool(re.search(r"\d [^\W\d]", row["answer"]))
    assert len(levels) > 8


def test_arithmetic_is_what_the_embedded_model_reads_and_was_not_trained_on() -> None:
    """It was made from problems of the split `sft` and is judged on `heldout`."""
    held_out = {json.loads(line)["prompt"] for line in (share.share_root("datasets") / "arithmetic-heldout.jsonl").open()}
    rows = sample_rows("grpo", 500, 3)
    for row in rows:
        terms = tuple(int(term) for term in re.findall(r"[+-]?\d+", row["prompt"]))
        assert arithmetic.Problem(terms).split == "train"
    assert not held_out & {row["prompt"] for row in rows}
    assert sample_rows("sft", 40, 3) == arithmetic.careful_rows("train", 40, 3)
    assert sample_rows("grpo", 40, 3) == arithmetic.rl_rows("train", 40, 3)


@pytest.mark.parametrize(
    ("method", "rows", "topic", "format", "what"),
    [
        ("grpo", 0, "words", None, "0 rows cannot be made"),
        ("sft", MAX_ROWS + 1, "words", None, "rows cannot be made"),
        ("grpo", 5, "poems", None, "unknown topic 'poems'"),
        ("poetry", 5, "words", None, "unknown method"),
        ("grpo", 5, "words", "table", "unknown data format 'table'"),
        ("grpo", 5, "words", "text", "grpo cannot use"),
        ("sft", 5, "law", "gsm8k", "law has no gsm8k rows"),
    ],
)
def test_what_cannot_be_made_is_refused(method: str, rows: int, topic: str, format: str | None, what: str) -> None:
    with pytest.raises(InputError, match=what):
        sample_rows(method, rows, 0, topic, format)


def test_templates_that_run_out_say_so() -> None:
    def one(rng: random.Random) -> Problem:
        return Problem(f"What is {rng.randint(0, 9)}?", (), "", "")

    with pytest.raises(InputError, match="numbers has no 11 different problems") as raised:
        distinct((one,), 11, random.Random(0), "numbers")
    assert raised.value.remedy == "ask for 10 or fewer"


@pytest.mark.parametrize(("value", "written"), [(Fraction(5, 2), "2.5"), (7, "7"), (Fraction(-1, 8), "-0.125"), (0, "0")])
def test_exact_numbers_are_written_whole(value: Fraction | int, written: str) -> None:
    assert show(value) == written
    with pytest.raises(ValueError, match="no end"):
        show(Fraction(1, 3))


def test_a_tie_is_drawn_again_and_never_rounded() -> None:
    """2.25 lies half-way between 2.2 and 2.3; 2.26 and 2.24 do not."""
    assert [near(Fraction(n, 100), 1) for n in (226, 224, 230)] == ["≈ 2.3", "≈ 2.2", "= 2.3"]
    assert rounded(Fraction(226, 100), 1) == fixed(Fraction(226, 100), 1)
    with pytest.raises(Redraw):
        near(Fraction(225, 100), 1)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
def test_files_of_every_kind_read_back_to_the_same_rows(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    for topic in ("law", "decisive"):
        path = write_samples(tmp_path / f"{topic}{ending}", "gspo", 24, 1, topic=topic)
        read: list[Any] = [row.fields for row in read_rows(path) if isinstance(row, Row)]
        assert read == sample_rows("gspo", 24, 1, topic)


@pytest.mark.parametrize("name", ["rows.txt", "file/rows.jsonl", "folder.jsonl"])
def test_a_place_that_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError):
        write_samples(tmp_path / name, "grpo", 3, 0, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
