"""`droid-tune sample-data`: the verb, in this process but for one time, and the operation behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from engine import methods
from engine.api import Engine
from engine.cli.app import app
from engine.data.samples import TOPICS, formats, sample_rows, subject
from engine.errors import InputError
from engine.profiles import PROFILES


def droid_tune(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["sample-data", *arguments], catch_exceptions=False, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


async def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "made" / "here.jsonl"
    engine = Engine(tmp_path)
    assert await engine.sample_data("grpo", out, 5, 0) == out
    written = out.read_text()
    with pytest.raises(InputError, match="is there already"):
        await engine.sample_data("grpo", out, 5, 1)
    assert out.read_text() == written
    await engine.sample_data("grpo", out, 5, 1, topic="law", format="messages", overwrite=True)
    assert rows_of(out) == sample_rows("grpo", 5, 1, "law", "messages")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_command(tmp_path: Path) -> None:
    """As it is typed, in a folder of the user's: what comes out, and one message with a way on where it does not."""

    def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "tui", "sample-data", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    made = typed("rows.jsonl", "--method", "sft", "--rows", "12", "--seed", "4", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {
        "path": "rows.jsonl",
        "method": "sft",
        "rows": 12,
        "seed": 4,
        "topic": "arithmetic",
        "format": "prompt+completion",
    }
    assert rows_of(tmp_path / "rows.jsonl") == sample_rows("sft", 12, 4)
    again = typed("rows.jsonl")
    assert again.returncode == 2 and "is there already" in again.stderr and "--force" in again.stderr
    assert rows_of(tmp_path / "rows.jsonl") == sample_rows("sft", 12, 4)


def test_topic_and_format_can_be_chosen(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert droid_tune(str(out), "--topic", "words", "--rows", "9") == f"{out}\n"
    assert rows_of(out) == sample_rows("grpo", 9, 0, "words", "prompt+answer")
    droid_tune(str(out), "--topic", "words", "--rows", "9", "--format", "gsm8k", "--force")
    assert rows_of(out) == sample_rows("grpo", 9, 0, "words", "gsm8k")
    with pytest.raises(InputError, match="grpo cannot use"):
        droid_tune(str(tmp_path / "more.jsonl"), "--format", "text")
    assert not (tmp_path / "more.jsonl").exists()


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_brings_topic_and_format_and_a_rewards_section_to_paste(tmp_path: Path, name: str) -> None:
    """What is printed below the path is the section as a config reads it."""
    profile, out = PROFILES[name], tmp_path / "rows.jsonl"
    path, _, section = droid_tune(str(out), "--profile", name, "--rows", "15").partition("\n")
    assert path == str(out)
    assert rows_of(out) == sample_rows(profile.methods[0], 15, 0, profile.topic, profile.format)
    assert yaml.safe_load(section) == {"rewards": [dict(reward) for reward in profile.rewards]}
    told = json.loads(droid_tune(str(out), "--profile", name, "--rows", "15", "--force", "--json"))
    assert (told["profile"], told["topic"], told["rewards"]) == (name, profile.topic, [dict(each) for each in profile.rewards])


def test_a_profile_for_sft_prints_no_rewards(tmp_path: Path) -> None:
    """A config of method sft refuses the section."""
    out = str(tmp_path / "rows.jsonl")
    assert droid_tune(out, "--profile", "medical", "-m", "sft", "--rows", "9") == f"{out}\n"
    told = json.loads(droid_tune(out, "--profile", "medical", "-m", "sft", "--rows", "9", "--force", "--json"))
    assert (told["profile"], told["rewards"]) == ("medical", [])


def test_a_profile_beside_a_topic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the profile legal brings topic and format"):
        droid_tune(str(tmp_path / "rows.jsonl"), "--profile", "legal", "--format", "text")
    with pytest.raises(InputError, match="unknown profile 'poems'"):
        droid_tune(str(tmp_path / "rows.jsonl"), "--profile", "poems")


@pytest.mark.parametrize("arguments", [(), ("--list",), ("rows.jsonl", "--list")])
def test_the_list_names_topics_formats_and_profiles_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = droid_tune(*arguments)
    for topic in TOPICS:
        assert subject(topic).summary in printed
    assert all(name in printed for name in (*methods.method("grpo").formats, *PROFILES))
    assert not list(tmp_path.iterdir())


def test_the_list_as_json_is_that_of_the_method() -> None:
    told = json.loads(droid_tune("--list", "--method", "sft", "--json"))
    assert {topic["id"]: tuple(topic["formats"]) for topic in told["topics"]} == {each: formats("sft", each) for each in TOPICS}
    assert [profile["id"] for profile in json.loads(droid_tune("-m", "dr_grpo", "--json"))["profiles"]][:3] == [
        "medical",
        "scientific",
        "legal",
    ]


def test_help_has_a_line_for_each_topic() -> None:
    printed = CliRunner().invoke(app, ["sample-data", "--help"], terminal_width=200).stdout
    for topic in TOPICS:
        assert any(line.split() == [topic, *subject(topic).summary.split()] for line in printed.splitlines()), printed
