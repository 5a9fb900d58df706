"""Options of built-in rewards: what fills a row without a column, what no column can reach, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.cli.rewards import app
from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards import registry
from engine.rewards.process import RewardProcess, check

GOOD = "<plan>a</plan>"
TERMS = "We find that the half life of it is 3 mg."


def scored(name: str, options: dict[str, Any], completion: str, **columns: Any) -> list[float | None]:
    """Two rows: the first without the columns, the second with them."""
    reward = registry.resolve(name, None, options)
    return reward(prompts=["p"] * 2, completions=[completion] * 2, **{column: [None, value] for column, value in columns.items()})


@pytest.mark.parametrize(
    ("name", "options", "completion", "columns", "expected"),
    [
        ("regex", {"pattern": r"\d+"}, "12", {"pattern": "x"}, [1, 0]),
        ("tag_count", {"tags": ["plan"]}, GOOD, {"tags": ["think"]}, [1, 0]),
        ("tag_count", {"tags": "plan"}, GOOD, {}, [1, 1]),
        ("language", {"language": "zh"}, "答案", {"language": "en"}, [1, 0]),
        ("multiple_choice", {"choices": ["Paris", "Rome"]}, "Rome", {"choices": ["Rome", "Oslo"]}, [1, 0]),
        ("length_target", {"words": 4}, "a b", {"target_length": 2}, [0.5, 1]),  # 1 - |2 - 4| / 4
        ("length_target", {"characters": 6}, " abc\n", {"target_length": 3}, [0.5, 1]),
        ("length_target", {"words": 4}, "a b", {"efficiency_markers": {"target_words": 2}}, [0.5, 1]),
        ("length_target", {"tokens": 4}, "a", {"completion_ids": [1] * 2}, [None, 0.5]),
        ("repetition", {"ngram": 2}, "a b a b", {}, [-1 / 3, -1 / 3]),  # a b, b a, a b: 2 of 3 are different
        ("repetition", {"ngram": None}, "a b a b", {}, [0, 0]),  # null: the default, 3
        ("domain", {"required_terms": ["half life"]}, TERMS, {"required_terms": "atom"}, [1, 0]),
        ("domain", {"required_terms": "half life"}, TERMS, {"domain_context": {"terms": ["atom"]}}, [1, 0]),
        ("domain", {"required_terms": "half life"}, TERMS, {"domain_context": ["atom"]}, [1, 0]),
        ("domain", {"required_terms": "half life"}, TERMS, {"domain_context": "physics"}, [1, 1]),
        ("domain", {"units": ["mg"]}, "3 mg", {"domain_context": {"unit": "kg", "required_terms": None}}, [1, 0]),
        ("domain", {"required_terms": "half life"}, "3 mg", {"domain_context": {"required_terms": None, "unit": "mg"}}, [0, 0.5]),
        ("domain", {"required_elements": "half life"}, TERMS, {"domain_context": {"elements": "atom"}}, [1, 0]),
    ],
)
def test_an_option_stands_in_for_a_column_and_loses_to_it(
    name: str, options: dict[str, Any], completion: str, columns: dict[str, Any], expected: list[float | None]
) -> None:
    if name == "multiple_choice":
        columns = {**columns, "answer": "Rome"}
        reward = registry.resolve(name, None, options)
        found = reward(prompts=["p"] * 2, completions=["B"] * 2, answer=["Rome"] * 2, choices=[None, columns["choices"]])
    else:
        found = scored(name, options, completion, **columns)
    assert found == [None if score is None else pytest.approx(score) for score in expected]


def test_schemas(tmp_path: Path) -> None:
    """A mapping, its JSON text and a file give the same; the row's own wins."""
    pytest.importorskip("jsonschema")
    tree = {"type": "object", "required": ["a"]}
    file = tmp_path / "s.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    for schema in (tree, json.dumps(tree), str(file)):
        assert scored("json_schema", {"schema": schema}, '{"a": 1}', schema={"type": "array"}) == [1, 0]
    file.write_text('{"type": "thing"}', encoding="utf-8")
    for schema, what in ((str(file), "give a JSON schema"), (str(tmp_path / "none.json"), "cannot be read"), (3, "a mapping")):
        with pytest.raises(InputError, match=what):
            registry.resolve("json_schema", None, {"schema": schema})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("regex", {"patern": "x"}, "regex has no option 'patern' .did you mean 'pattern'. It has: pattern"),
        ("domain", {"zzz": "x"}, "it has: required_terms, units, required_elements"),
        ("regex", {"pattern": "("}, r"pattern is '\('.*a regular expression: missing \)"),
        ("regex", {"pattern": 3}, "pattern is 3 .give a text"),
        ("repetition", {"ngram": 9}, "ngram is 9 .give a whole number from 2 to 8"),
        ("repetition", {"ngram": 2.0}, "a whole number from 2 to 8"),
        ("repetition", {"ngram": True}, "ngram is True"),
        ("length_target", {"words": 0}, "words is 0 .give a number above 0"),
        ("length_target", {"words": 3, "tokens": 4}, "keep one of words and tokens"),
        ("tag_count", {"tags": []}, "a text or a list of texts"),
        ("tag_count", {"tags": ["a", 1]}, "a text or a list of texts"),
        ("language", {"language": "klingon"}, "unknown language 'klingon'"),
        ("multiple_choice", {"choices": 3}, "choices is 3 .give a list of texts, or {letter: text}"),
        ("domain", {"units": {"a": 1}}, "units is {'a': 1}"),
        ("soft_overlong", {}, "needs the option max_tokens"),
        ("soft_overlong", {"max_tokens": 10, "cache": 11}, "cache is 11, more than max_tokens, 10"),
        ("soft_overlong", {"max_tokens": 10, "cache": 0}, "cache is 0 .give a whole number of at least 1"),
        ("answer", {"x": 1}, "the reward 'answer' has no options"),
        ("code_tests", {"seconds": 0}, "seconds is 0 .give a number of at least 0.1"),
        ("llm_judge", {"modle": "x"}, "did you mean 'model'"),
    ],
)
def test_options_that_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.resolve(name, None, options)


def test_a_users_own_function_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no options"):
        registry.resolve("f", tmp_path / "mine.py", {"x": 1})


def test_columns_do_not_reach_plain_options() -> None:
    """A data set with columns ngram, cache, max_tokens and words scores as one without."""
    columns = {"ngram": [2], "cache": [1], "max_tokens": [1], "words": [99], "completion_ids": [[1] * 18], "target_length": [4]}
    for name, options, expected in (
        ("repetition", {}, 0.0),
        ("soft_overlong", {"max_tokens": 20}, -0.5),
        ("length_target", {}, 1.0),
    ):
        reward = registry.resolve(name, None, options)
        assert reward(**registry.arguments(reward, ["p"], ["a b a b"], columns)) == [expected], name


def test_the_list_shows_meaning_and_default() -> None:
    shown = " ".join(CliRunner().invoke(app, []).stdout.split())
    assert "option ngram: words of a run; default: 3" in shown
    assert "option cache: tokens below max_tokens over which it falls; default: 20% of max_tokens" in shown
    assert "option seconds: of each run of a program; default: 5" in shown
    found = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["--json"]).stdout)}
    (ngram,) = found["repetition"]["options"]
    assert (ngram["name"], ngram["kind"], ngram["least"], ngram["most"], ngram["default"]) == ("ngram", "whole", 2, 8, "3")
    assert found["answer"]["options"] == [] and "ngram" not in found["repetition"]["optional"]
    assert [option["name"] for option in found["llm_judge"]["options"]][:2] == ["url", "model"]


def test_in_the_reward_process(tmp_path: Path) -> None:
    """One process: the option frees the data from the column, in `check` too; without it the error says which option would."""
    asked = [
        RewardConfig(name="regex", options={"pattern": r"\d+"}),
        RewardConfig(name="language", options={"language": "en"}),
        RewardConfig(name="soft_overlong", options={"max_tokens": 4, "cache": 2}),
    ]
    with RewardProcess(asked) as process:
        assert process.columns == {"regex": (), "language": (), "soft_overlong": ()}
        assert process.token_ids == {"soft_overlong"}
        ids = [[1] * 3, [1] * 2]
        assert process.score(["p"] * 2, ["12", "one"], {"pattern": [None, "on."]}, ids).parts == [
            {"regex": 1.0, "language": 0.0, "soft_overlong": -0.5},
            {"regex": 1.0, "language": 1.0, "soft_overlong": 0.0},
        ]
        without = process.score(["p"], ["12"], {}, skip=["language"])
        assert without.parts == [{"regex": 1.0, "soft_overlong": None}] and without.errors == []
    with pytest.raises(InputError, match=r"needs the column 'pattern'.*options: {pattern: \.\.\.}"):
        check([RewardConfig(name="regex")], ["answer"])
