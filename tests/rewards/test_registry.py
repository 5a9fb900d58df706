"""Built-in rewards by name, users' files, and what a function is called with."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.rewards import registry
from engine.rewards.failed import Failed

ROOT = Path(__file__).parents[2]


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
    assert set(infos) == {*registry.BUILT_IN, *registry.LOADED}
    assert set(infos) >= {"answer", "number", "format", "math", "step_coverage", "r1_count_xml", "code_tests", "llm_judge"}
    assert infos["answer"].columns == ("answer",) and infos["format"].columns == ()
    assert infos["step_coverage"].columns == ("reasoning_steps",)
    assert infos["step_coverage"].optional == ("sparse_indicators",)
    assert infos["math"].extra == "math" and infos["number"].extra == ""
    assert infos["r1_accuracy_reward_func"].full_marks == 2.0 and infos["repetition"].full_marks == 0.0
    assert all(info.summary.endswith(".") and "\n" not in info.summary + info.details for info in infos.values())


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'number'") as caught:
        registry.built_in("nubmer")
    assert "unknown reward 'nubmer'" in caught.value.what
    with pytest.raises(InputError, match=r"built in: answer, exact, number.*llm_judge\. Give `file`"):
        registry.built_in("zzz")


@pytest.mark.parametrize(("name", "extra"), [("math", "math"), ("json_schema", "json")])
def test_a_library_that_is_not_installed(name: str, extra: str) -> None:
    """In a process that finds the standard library and this package alone, as after an install without the extra."""
    code = f"""
        import sys
        sys.path = [folder for folder in sys.path if "site-packages" not in folder] + [{str(ROOT)!r}]
        from engine.errors import InputError
        from engine.rewards import registry
        try:
            registry.built_in({name!r})
        except InputError as error:
            print(error.remedy)
    """
    command = [sys.executable, "-S", "-I", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f'pip install "droid-tune[{extra}]"'


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
    assert registry.arguments(lora, ["p"], ["c"], {"answer": ["4"], "type": ["sum"]}) == given | columns


# ---- files written for mlx-lm-lora

DECORATED = """
from typing import List, Optional
from mlx_lm_lora.trainer.grpo_reward_functions import r1_int_reward_func, register_reward_function

@register_reward_function()
def plain(prompts: list, completions: list, answer: list, types: Optional[list] = None) -> list[float]:
    return [2.0 if c == a else 0.0 for c, a in zip(completions, answer)]

@register_reward_function("renamed")
def _hidden(prompts, completions, answer, types=None):
    return r1_int_reward_func(prompts, completions)
"""


def test_a_file_for_mlx_lm_lora_needs_no_mlx_lm_lora(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", DECORATED)
    before = list(sys.path)
    try:
        assert registry.load_user(path, "plain")(["p"], ["4"], ["4"]) == [2.0]
        assert registry.load_user(path, "renamed")(["p"], ["4"], ["5"]) == [0.5]
        with pytest.raises(InputError, match="did you mean 'renamed'"):
            registry.load_user(path, "renamd")
    finally:
        sys.path[:] = before
    assert not [name for name in sys.modules if name.startswith("mlx_lm_lora")], "it is there while a file is imported, only"


def test_an_installed_mlx_lm_lora_is_used_as_it_is(tmp_path: Path) -> None:
    """A package of that name on the path, as an install would put it there, in a process of its own."""
    folder = tmp_path / "installed" / "mlx_lm_lora" / "trainer"
    folder.mkdir(parents=True)
    write(folder.parent / "__init__.py", "")
    write(folder / "__init__.py", "")
    write(
        folder / "grpo_reward_functions.py",
        """
REWARD_REGISTRY = {}
def register_reward_function(name=None):
    def decorator(function):
        REWARD_REGISTRY[name or function.__name__] = function
        return function
    return decorator
@register_reward_function()
def other(prompts, completions, answer, types=None): return []
def r1_int_reward_func(prompts, completions): return [9.0]
""",
    )
    path = write(tmp_path / "mine.py", DECORATED)
    code = f"""
        import sys
        sys.path += [{str(ROOT)!r}, {str(tmp_path / "installed")!r}]
        from pathlib import Path
        from engine.errors import InputError
        from engine.rewards import registry
        print(registry.load_user(Path({str(path)!r}), "renamed")(["p"], ["4"], ["5"]))
        try:
            registry.load_user(Path({str(path)!r}), "other")
        except InputError as error:
            print(error.what)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[9.0]", "has no function 'other'"]


def test_our_own_decorator(tmp_path: Path) -> None:
    text = (
        "from engine.rewards import register_reward_function\n@register_reward_function('mine')\ndef f(completions): return [1.0]"
    )
    path = write(tmp_path / "mine.py", text)
    before = list(sys.path)
    try:
        assert registry.load_user(path, "mine")([""]) == registry.load_user(path, "f")([""]) == [1.0]
    finally:
        sys.path[:] = before


def test_rewards_that_need_one_of_several_columns() -> None:
    """What no parameter list can say: the call fails and names them."""
    for name, columns in (("length_target", "target_length or efficiency_markers"), ("domain", "domain_context, required_terms")):
        with pytest.raises(LookupError, match=columns):
            registry.built_in(name)(["p"], ["c"])


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("regex", {"pattern": ["("]}, "is not a regular expression"),
        ("multiple_choice", {"answer": ["A"], "choices": [3]}, "choices is int"),
        ("length_target", {"target_length": [0]}, "0 is not a target length"),
        ("language", {"language": ["klingon"]}, "unknown language 'klingon'"),
        ("step_coverage", {"reasoning_steps": [["a"]], "sparse_indicators": [[1, 0]]}, "does not fit 1 steps"),
        ("step_coverage", {"reasoning_steps": [3]}, "reasoning_steps is not a list of texts"),
        ("domain", {"domain_context": [{"units": 3}]}, "units is not a list of texts"),
        ("tag_count", {"tags": [3]}, "tags is 3: write a list of names"),
        ("regex", {"pattern": [3]}, "pattern is int: write a text"),
        ("language", {"language": [3]}, "language is int: write a code"),
    ],
)
def test_a_row_that_says_nothing_usable_fails_alone(name: str, columns: dict[str, list[object]], message: str) -> None:
    """The other row, which says nothing at all, is scored as it would be alone."""
    reward = registry.built_in(name)
    nothing = {column: [None] for column in columns}
    (alone,) = reward(["p"], ["c"], **nothing)
    failed, other = reward(["p"] * 2, ["c"] * 2, **{column: [*values, None] for column, values in columns.items()})
    assert isinstance(failed, Failed) and failed.why.endswith("cannot be used") and message in failed.detail
    assert failed.is_row_fault and other == alone and not isinstance(alone, Failed)


def test_a_schema_is_checked_and_fetches_nothing() -> None:
    pytest.importorskip("jsonschema")
    draft_4 = "http://json-schema.org/draft-04/schema#"  # which lets such a pattern pass
    schemas = [{"type": "thing"}, {"$ref": "http://127.0.0.1:9/schema"}, {"$schema": draft_4, "patternProperties": {"(": {}}}, {}]
    thing, remote, pattern, other = registry.built_in("json_schema")(["p"] * 4, ['{"a": "x"}'] * 4, schemas)
    assert isinstance(thing, Failed) and "is not a JSON schema" in thing.detail
    assert isinstance(remote, Failed) and "Unresolvable" in remote.detail
    assert isinstance(pattern, Failed) and "unterminated" in pattern.detail
    assert other == 1.0


def test_math_in_another_thread() -> None:
    """No alarm rings there: it is computed without a limit of its own."""
    pytest.importorskip("math_verify")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(registry.built_in("math"), ["p"], ["1/2"], ["0.5"]).result() == [1.0]


def test_a_late_comparison_is_wrong_and_the_next_one_is_not_harmed() -> None:
    pytest.importorskip("math_verify")
    handler = signal.getsignal(signal.SIGALRM)
    started = time.monotonic()
    scores = registry.built_in("math")(["p"] * 2, ["$x^{9^{9^{9}}}$", "x^2"], ["x^2"] * 2)
    assert scores == [0.0, 1.0] and time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGALRM) is handler


def test_the_decorator_is_no_reward_of_a_file(tmp_path: Path) -> None:
    text = "from engine.rewards import register_reward_function\ndef f(completions): return [1.0]"
    path = write(tmp_path / "typo.py", text)
    for name in ("zzz", "register_reward_functio"):
        with pytest.raises(InputError) as caught:
            registry.load_user(path, name)
        assert caught.value.remedy == "it has: f"


def test_the_list_says_what_tests_look_like() -> None:
    (info,) = (info for info in registry.describe() if info.name == "code_tests")
    assert "assert add(1, 2) == 3" in info.details and '{"input": "1 2\\n", "output": "3\\n"}' in info.details
