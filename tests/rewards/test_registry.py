"""Built-in rewards by name, users' files, and what a function is called with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.rewards import registry


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_built_in_values() -> None:
    completions = ["<think>x</think><answer>1,000</answer>", "1000", "no"]
    prompts, references = ["p"] * 3, ["1000", "1000", None]
    assert registry.built_in("answer")(prompts, completions, references) == [0.0, 1.0, None]
    assert registry.built_in("number")(prompts, completions, references) == [1.0, 1.0, None]
    assert registry.built_in("number")(["p"], ["3"], ["three"]) == [None]
    assert registry.built_in("format")(prompts, completions) == [1.0, 0.0, 0.0]


def test_describe() -> None:
    infos = {info.name: info for info in registry.describe()}
    assert set(infos) == {"answer", "number", "format"}
    assert infos["answer"].columns == ("answer",) and infos["format"].columns == ()
    assert all(info.summary and "\n" not in info.summary for info in infos.values())


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'number'") as caught:
        registry.built_in("nubmer")
    assert "unknown reward 'nubmer'" in caught.value.what
    with pytest.raises(InputError, match="built in: answer, number, format"):
        registry.built_in("zzz")


def test_user_function_with_a_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "droid_neighbour.py", "ONE = 1.0")
    path = write(tmp_path / "mine.py", "from droid_neighbour import ONE\ndef f(completions): return [ONE for _ in completions]")
    before = list(sys.path)
    try:
        assert registry.load_user(path, "f")([""]) == [1.0]
        assert sys.path == [*before, str(tmp_path)], "the folder comes last: it can shadow nothing"
    finally:
        sys.path[:] = before
    assert not list(tmp_path.glob("__pycache__/mine*")), "nothing of ours is left in the user's folder"


def test_a_users_folder_shadows_nothing(tmp_path: Path) -> None:
    """A user's own json.py, engine/ and datasets/ beside the reward file must not replace anybody's modules."""
    write(tmp_path / "json.py", "raise RuntimeError('shadowed')")
    (tmp_path / "engine").mkdir()
    write(tmp_path / "engine" / "__init__.py", "raise RuntimeError('shadowed')")
    path = write(tmp_path / "mine.py", "import json, engine.errors\ndef f(completions): return [float(json.dumps(1))]")
    before = list(sys.path)
    try:
        assert registry.load_user(path, "f")([""]) == [1.0]
    finally:
        sys.path[:] = before


def test_a_file_is_run_once(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", "SEEN = []\ndef f(c): SEEN.append(1); return SEEN\ndef g(c): return SEEN")
    registry.load_user(path, "f")([])
    assert registry.load_user(path, "g")([]) == [1]


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("\nimport no_such_module\ndef f(): ...", "ModuleNotFoundError: No module named 'no_such_module'", ":2"),
        ("x = 1\ndef f(:\n  pass", "SyntaxError", ":2"),
        ("def g():\n    1 / 0\n\ng()", "ZeroDivisionError: division by zero", ":2"),
        ("import sys\nsys.exit(3)", "SystemExit: 3", ":2"),
        ("def score(prompts, completions): ...", "has no function 'f'", ""),
        ("f = 3", "'f' is no function but int", ""),
        ("f = dict", "parameters of 'f' are unknown", ""),
        ("x = '\0'", "SyntaxError", ""),
    ],
)
def test_files_with_problems(tmp_path: Path, text: str, what: str, where: str) -> None:
    path = write(tmp_path / "mine.py", text)
    before = list(sys.path)
    try:
        with pytest.raises(InputError) as caught:
            registry.load_user(path, "f")
    finally:
        sys.path[:] = before
    assert what in caught.value.what and caught.value.remedy
    assert caught.value.where.startswith(f"{path}{where}")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such reward file"):
        registry.load_user(tmp_path / "mine.py", "f")
    with pytest.raises(InputError, match="not a Python file"):
        registry.load_user(write(tmp_path / "mine.txt", ""), "f")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        registry.load_user(tmp_path / "folder.py", "f")


def test_arguments_are_those_that_the_function_accepts() -> None:
    columns = {"answer": ["4"], "types": ["sum"]}

    def trl(completions, **kwargs): ...  # type: ignore[no-untyped-def]

    def lora(prompts, completions, answer, types=None): ...  # type: ignore[no-untyped-def]

    def keyword(completions, *, answer, level): ...  # type: ignore[no-untyped-def]

    given = {"prompts": ["p"], "completions": ["c"]}
    assert registry.arguments(trl, ["p"], ["c"], columns) == given | columns
    assert registry.arguments(lora, ["p"], ["c"], columns | {"level": [1]}) == given | columns
    assert registry.arguments(keyword, ["p"], ["c"], columns) == {"completions": ["c"], "answer": ["4"]}
    assert registry.needed_columns(trl) == ()
    assert registry.needed_columns(lora) == ("answer",)
    assert registry.needed_columns(keyword) == ("answer", "level")
