"""Bad input on the command line: one message with what, where and a remedy, exit status 2, and no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import ROWS, Command, droid_tune

BAD = {  # what is wrong -> (config changes, what the message must hold)
    "missing file": ({"data": "{train: nowhere.jsonl}"}, ["nowhere.jsonl"]),
    "empty file": ({"data": "{train: empty.jsonl}"}, ["empty.jsonl"]),
    "no json": ({"data": "{train: broken.jsonl}"}, ["broken.jsonl", "2"]),
    "unknown key": ({"optim": "{learning_rat: 1.0e-5}"}, ["learning_rat", "learning_rate"]),
    "unknown method": ({"method": "grpoo"}, ["grpoo", "grpo"]),
    "no model": ({"model": "folder"}, ["folder", "config.json"]),
    "reward import": ({"rewards": "[{name: f, file: bad.py}]"}, ["bad.py", "nonexistent_module"]),
    "unknown reward": ({"rewards": "[{name: anser}]"}, ["anser", "answer"]),
    "too many mini-batches": (
        {"objective": "{minibatches: 9}", "sampling": "{prompts_per_step: 4}"},
        ["mini-batches", "9", "prompts_per_step"],
    ),
    "value of a wrong type": ({"run": "{steps: many}"}, ["run.steps", "many"]),
    "no number": ({"optim": "{learning_rate: .nan}"}, ["optim.learning_rate", "finite"]),
    "no row is short enough": ({"sampling": "{max_prompt_tokens: 1}"}, ["rows.jsonl", "max_prompt_tokens"]),
    "adapter that fits nothing": ({"adapter": "{keys: [nothing]}"}, ["adapter.keys"]),
    "illegal combination": ({"objective": "{surrogate: cispo, ratio: sequence}"}, ["objective.ratio"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message_with_exit_code_2_and_leaves_no_run(tmp_path: Path, here: Command, name: str) -> None:
    assert_refused(tmp_path, write_bad(tmp_path, name), here)


def test_the_command_itself_refuses_bad_input(tmp_path: Path) -> None:
    """As a process: exit status and streams."""
    assert_refused(tmp_path, write_bad(tmp_path, "unknown key"), droid_tune)


def write_bad(folder: Path, name: str) -> list[str]:
    """config.yaml and its files; what the message must hold."""
    changes, expected = BAD[name]
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n{"prompt": \n')
    (folder / "bad.py").write_text("import nonexistent_module\n")
    (folder / "folder").mkdir()
    config = {"model": "demo", "method": "grpo", "data": "{train: rows.jsonl}", "rewards": "[{name: answer}]", **changes}
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in config.items()))
    return expected


def assert_refused(folder: Path, expected: list[str], command: Command) -> None:
    """What `command` says of config.yaml, as text and as JSON."""
    done = command(folder, "train", "config.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error") == 1 and "try " in done.stderr
    for part in expected:
        assert part in done.stderr
    assert not (folder / "runs").exists() or not list((folder / "runs").iterdir())
    as_json = command(folder, "train", "config.yaml", "--json")
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout).keys() == {"error", "where", "remedy"}


def test_a_setting_that_is_no_yaml_is_bad_input(tmp_path: Path, here: Command) -> None:
    done = here(tmp_path, "train", "grpo", "--set", "run.steps=[")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--set run.steps" in done.stderr and "not valid YAML" in done.stderr
    assert not (tmp_path / "runs").exists()
