"""`droid-tune convert` in this process: what it prints, how it exits, what ctrl+c leaves."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.api import Engine
from engine.cli.app import app, main
from engine.cli.convert import _progress
from engine.data.convert import Options
from engine.data.rows import Row, read_rows
from engine.data.writing import write_rows

GSM8K = [{"question": f"{number}+1?", "answer": f"one more\n#### {number + 1}"} for number in range(20)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "gsm8k.jsonl", GSM8K)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and standard output; -1 for bad input, which main() turns into 2."""
    done = CliRunner().invoke(app, ["convert", *arguments], env={"COLUMNS": "200"})
    return (-1 if isinstance(done.exception, Exception) else done.exit_code), done.output


def test_the_examples_of_the_help_work(here: Path) -> None:
    """Both commands, as they are printed."""
    write_rows(here / "table.csv", [{"ask": f"{n}?", "reply": f"{n}", "id": f"r{n}"} for n in [*range(20), 3]])
    code, text = run("--help")
    commands = re.findall(r"^ +droid-tune convert ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert code == 0 and len(commands) == 2
    assert run(*commands[0].split())[0] == 0
    assert [dict(row.fields) for row in read_rows(here / "answers.jsonl") if isinstance(row, Row)] == [
        {"prompt": row["question"], "answer": row["answer"].rpartition("#### ")[2]} for row in GSM8K
    ]
    code, text = run(*commands[1].replace("\\\n", " ").split())
    assert code == 0 and "repeats  1 rows" in text
    assert "chats/train.jsonl: 18 rows" in text and "chats/valid.jsonl: 2 rows" in text


def test_of_a_folder_the_files_that_were_not_read_are_said(here: Path) -> None:
    (here / "all").mkdir()
    for name in ("train", "valid", "test"):
        write_rows(here / "all" / f"{name}.jsonl", GSM8K)
    code, text = run("all", "out.jsonl")
    assert code == 0 and "not read test.jsonl, valid.jsonl: of a folder the train file alone is converted" in text
    assert "not read" not in run("all/train.jsonl", "more.jsonl")[1]


def test_rows_that_are_left_out_are_said_and_the_exit_is_1(here: Path) -> None:
    write_rows(
        here / "in.jsonl", [*GSM8K, {"question": "?", "answer": "\x1b[31mno number"}, {"question": "", "answer": "#### 1"}]
    )
    code, text = run("in.jsonl", "out.csv", "--to", "prompt+answer")
    assert code == 1 and "\x1b" not in text
    assert "rows     22 read, 20 written" in text and "left out 2 rows" in text
    assert "1 x no-number: there is no number after #### (line 21 field answer)" in text
    assert "notes    on rows that are written" in text and "20 x completion: " in text
    assert run("in.jsonl", "out.csv", "--to", "prompt+answer")[0] == -1  # is there already
    code, text = run("in.jsonl", "out.csv", "--to", "prompt+answer", "--force", "--json")
    found = json.loads(text)
    assert code == 1 and found["rows"] == 22 and found["files"] == [{"path": "out.csv", "rows": 20}] and found["written"] == 20
    assert [(group["kind"], group["count"], group["lines"]) for group in found["left_out"]] == [
        ("no-number", 1, [21]),
        ("empty", 1, [22]),
    ]
    assert found["notes"][0]["count"] == 20 and found["notes"][0]["lines"] == list(range(1, 21))


@pytest.mark.parametrize(
    ("arguments", "where", "what"),
    [
        (["nothing.jsonl", "out.jsonl"], "nothing.jsonl", "no such data file"),
        (["gsm8k.jsonl", "out.jsonl", "--to", "chatml"], "--to", "cannot be converted"),
        (["gsm8k.jsonl", "out.jsonl", "--to", "text"], "--to", "gsm8k rows cannot become text rows"),
        (["gsm8k.jsonl", "out.jsonl", "--columns", "prompt"], "--columns", "not OURS=THEIRS"),
        (["gsm8k.jsonl", "out.jsonl", "--columns", "a=b", "--columns", "a=c"], "--columns", "twice"),
        (["gsm8k.jsonl", "out", "--split", "train=2.0"], "--split", "more than 1"),
        (["gsm8k.jsonl", "out.jsonl", "--kind", "csv"], "--kind", "--split writes"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(
    here: Path, arguments: list[str], where: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["droid-tune", "convert", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    error = json.loads(capsys.readouterr().out)
    assert ended.value.code == 2 and error["where"].endswith(where) and what in error["error"] and error["remedy"]
    assert [path.name for path in here.iterdir()] == ["gsm8k.jsonl"]


def test_a_cancelled_conversion_stops_and_leaves_nothing(here: Path) -> None:
    """What ctrl+c does: it is cancelled from its own 2,000th row on, of 20,000, and the folder is as it was."""
    write_rows(here / "many.jsonl", GSM8K * 1000)
    told: list[int] = []

    async def go() -> None:
        loop = asyncio.get_running_loop()

        def on_rows(rows: int) -> None:
            told.append(rows)
            if rows == 2000:
                asyncio.run_coroutine_threadsafe(cancel(), loop).result()

        async def cancel() -> None:
            work.cancel()
            await asyncio.wait([work])

        options = Options(format="gsm8k")
        work = asyncio.create_task(Engine().convert(here / "many.jsonl", here / "new" / "out.csv", "messages", options, on_rows))
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(go())
    assert told == [1000, 2000]
    assert sorted(path.name for path in here.iterdir()) == ["gsm8k.jsonl", "many.jsonl"]


def test_progress_is_for_terminals_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with _progress(shown=False) as on_rows:
        assert on_rows is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    with _progress(shown=True) as on_rows:
        assert on_rows is not None
        on_rows(12_000)
    shown = capsys.readouterr()
    assert "12,000 rows read, " in shown.err and not shown.out
