"""Engine and Run, with real run folders and real processes (a stand-in worker where a model would be needed)."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import methods, share
from engine.api import Engine, Run, preflight
from engine.config import RunConfig
from engine.errors import InputError
from engine.runs import control
from engine.runs import launch as launching
from engine.runs import record as records
from engine.runs.record import RunRecord, lock_is_held
from engine.runs.summary import summarise
from tests.runs.conftest import STAND_IN, make_config, until


@pytest.fixture
def engine(home: Path) -> Engine:
    return Engine(home)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model, for tests to spoil: what is refused here is refused before a worker loads it."""
    folder = tmp_path / "model"
    shutil.copytree(share.demo_model(), folder)
    return folder


@pytest.fixture
def endless(tmp_path: Path, home: Path, start: Callable[..., int]) -> Run:
    """A launched run that goes on until it is told to stop."""
    record = records.create(make_config(tmp_path, steps=10**6), home)
    start(record)
    until(lambda: record.summary().state == "running")
    return Run(record)


def with_model(config: RunConfig, model: Path) -> RunConfig:
    return config.model_copy(update={"model": str(model)})


def test_methods_are_the_table(engine: Engine) -> None:
    assert [method.id for method in engine.methods()] == list(methods.METHODS)


def test_home_defaults_to_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DROID_TUNE_HOME", str(tmp_path))
    assert Engine().home == tmp_path


async def test_validate_reports_and_refuses(engine: Engine, config: RunConfig, tmp_path: Path) -> None:
    report = await engine.validate(Path(config.data.train), "grpo")
    assert (report.usable, report.format, report.verdict) == (8, "prompt+answer", "ready")
    with pytest.raises(InputError, match="no such data file"):
        await engine.validate(tmp_path / "none.jsonl", "grpo")


async def test_runs_shows_every_run_and_attach_finds_one(engine: Engine, tmp_path: Path, home: Path) -> None:
    assert await engine.runs() == []
    for name in ("one", "two"):
        records.create(make_config(tmp_path, name=name), home)
    (home / "runs" / "one" / "run.json").write_text("{")
    assert {row.id: row.state for row in await engine.runs()} == {"one": "damaged", "two": "queued"}
    assert (await engine.attach("tw")).id == "two"
    with pytest.raises(InputError, match="did you mean two"):
        await engine.attach("twoo")


def no_data(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"train": str(folder / "none.jsonl")})})


def damaged_valid_file(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "valid.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt"\n')
    return config.model_copy(update={"data": config.data.model_copy(update={"valid": str(folder / "valid.jsonl")})})


def no_model(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"model": str(folder / "nowhere")})


def unknown_method(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"method": "ppo2"})


def illegal_objective(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"objective": config.objective.model_copy(update={"delta": 1.1})})


def broken_reward(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "mine.py").write_text("import nothing_of_that_name\n")
    reward = config.rewards[0].model_copy(update={"name": "mine", "file": str(folder / "mine.py")})
    return config.model_copy(update={"rewards": [reward]})


def reward_without_its_column(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "mine.py").write_text("def mine(prompts, completions, colour):\n    return [0.0] * len(prompts)\n")
    reward = config.rewards[0].model_copy(update={"name": "mine", "file": str(folder / "mine.py")})
    return config.model_copy(update={"rewards": [reward]})


def config_that_is_no_json(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "model" / "config.json").write_text("{")
    return config


def cut_weights(config: RunConfig, folder: Path) -> RunConfig:
    os.truncate(folder / "model" / "model.safetensors", 200_000)
    return config


def broken_tokenizer(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "model" / "tokenizer.json").write_text("{}")
    return config


def broken_template(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "model" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }")
    return config


def template_that_refuses(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "model" / "chat_template.jinja").write_text("{{ raise_exception('not like this') }}")
    return config


def adapter_that_fits_nothing(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"keys": ["attention.query"]})})


def adapter_that_is_not_there(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"start_from": str(folder / "none")})})


def prompts_too_long(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"sampling": config.sampling.model_copy(update={"max_prompt_tokens": 2})})


def held_out_too_long(config: RunConfig, folder: Path) -> RunConfig:
    (folder / "valid.jsonl").write_text(json.dumps({"prompt": "1+1? " * 200, "answer": "2"}) + "\n")
    return config.model_copy(update={"data": config.data.model_copy(update={"valid": str(folder / "valid.jsonl")})})


def completions_too_long(config: RunConfig, folder: Path) -> RunConfig:
    limits = config.sampling.model_copy(update={"max_completion_tokens": 1})
    return config.model_copy(update={"method": "sft", "rewards": [], "sampling": limits})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (config_that_is_no_json, r"config\.json.*cannot be read"),
        (cut_weights, r"model\.safetensors.*damaged"),
        (broken_tokenizer, r"tokenizer\.json.*cannot be read as a tokenizer"),
        (broken_template, "chat template has an error in line 1"),
        (template_that_refuses, r"train\.jsonl.*none of its \d+ prompts can be used.*not like this"),
        (adapter_that_fits_nothing, r"adapter\.keys.*match no module"),
        (adapter_that_is_not_there, r"none: no such adapter"),
        (prompts_too_long, r"train\.jsonl.*none of its \d+ rows is within the token limits.*raise max_prompt_tokens in"),
        (held_out_too_long, r"valid\.jsonl.*none of its 1 rows"),
        (completions_too_long, r"train\.jsonl.*raise max_prompt_tokens and max_completion_tokens"),
        (no_data, r"none\.jsonl.*no such data file"),
        (damaged_valid_file, r"valid\.jsonl:2"),
        (no_model, "not a model folder"),
        (unknown_method, "unknown method 'ppo2'"),
        (illegal_objective, r"delta 1\.1 must exceed"),
        (broken_reward, "nothing_of_that_name"),
        (reward_without_its_column, "needs the column 'colour'"),
    ],
)
async def test_start_refuses_before_there_is_a_run_folder(
    engine: Engine, config: RunConfig, model: Path, tmp_path: Path, change: Callable[[RunConfig, Path], RunConfig], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        await engine.start(change(with_model(config, model), tmp_path))
    assert not engine.home.exists()


async def test_start_refuses_a_thread_count_that_is_none(
    engine: Engine, config: RunConfig, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "many")
    with pytest.raises(InputError, match="OPENBLAS_NUM_THREADS"):
        await engine.start(with_model(config, model))
    assert not engine.home.exists()


async def test_a_run_that_cannot_be_launched_leaves_no_folder(
    engine: Engine, config: RunConfig, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment of 4 MiB is more than any system starts a process with. Supervised checks start none of their own, once
    it is known that the engine is found."""
    supervised = with_model(config, model).model_copy(update={"method": "sft", "rewards": []})
    preflight(supervised)
    monkeypatch.setenv("MUCH", "x" * (4 << 20))
    with pytest.raises(InputError, match="cannot start the run: Argument list too long"):
        await engine.start(supervised)
    assert not list((engine.home / "runs").iterdir())


async def test_start_makes_a_run_and_launches_its_worker(engine: Engine, config: RunConfig, model: Path) -> None:
    """The real worker, once: it is launched, trains and ends."""
    run = await engine.start(with_model(config, model))
    first = await anext(run.events())
    assert (first.type, first.fields["id"], first.fields["steps"]) == ("created", "grpo-model", 5)
    assert len(first.fields["data_sha256"]) == len(first.fields["config_sha256"]) == 64
    state = await run.wait()
    assert state.state == "finished" and state.step == 5
    assert run.record.summary().launched is not None
    assert run.record.log_file.exists() and not lock_is_held(run.record)


async def test_commands_are_answered_and_change_the_state(endless: Run) -> None:
    assert await endless.checkpoint() == "accepted"
    assert await endless.pause() == "accepted"
    async for event in endless.events():
        if event.type == "paused":
            break
    assert (await endless.state()).state == "paused"
    assert await endless.resume() == "accepted"
    with pytest.raises(InputError, match="the run is running"):
        await endless.resume()
    assert await endless.stop() == "accepted"
    state = await endless.wait()
    assert state.state == "stopped"
    assert sorted(command.verb for command in state.commands.values()) == ["checkpoint", "pause", "resume", "stop"]
    with pytest.raises(InputError, match="cannot pause: the run is stopped"):
        await endless.pause()


async def test_a_refusal_is_an_error_with_its_reason(endless: Run) -> None:
    assert await endless.pause() == "accepted"
    async for event in endless.events():
        if event.type == "paused":
            break
    command_id = control.send(endless.record, "resume")
    second = control.send(endless.record, "resume")
    assert (await control.wait_acknowledged(endless.record, command_id)).status == "accepted"
    with pytest.raises(InputError, match="resume refused: not paused"):
        await endless._acknowledged(second)


async def test_events_since_a_seq_end_with_the_run(record: RunRecord, start: Callable[..., int]) -> None:
    start(record)
    run = Run(record)
    everything = [event async for event in run.events()]
    assert [event.seq for event in everything] == list(range(1, len(everything) + 1)) and everything[-1].type == "finished"
    assert [event.seq async for event in run.events(since=3)] == [event.seq for event in everything[3:]]
    state = await run.state()
    assert (state.state, state.step, state.result) == ("finished", 5, {"tuned": 1.0})


async def test_state_is_read_on_and_sees_a_loss(endless: Run) -> None:
    """Two viewers agree; the one that has read before reads on. A torn last line is counted once the next writer ended it."""
    early = await endless.state()
    assert early.state in ("starting", "running") and early.pid is not None
    os.kill(early.pid, signal.SIGKILL)
    lost = await endless.wait()
    assert lost.state == "lost"
    other = await (Run(endless.record)).state()
    assert (other.step, other.seq, other.series) == (lost.step, lost.seq, lost.series)

    with endless.record.journal_file.open("ab") as file:
        file.write(b'{"v":1,"seq":')
    launching.resume(endless.record, program=STAND_IN)
    until(lambda: endless.record.summary().step > lost.step + 1)
    again = await endless.state()
    assert (again.state, again.torn, again.resumes) == ("running", 1, 1)
    assert list(again.series["reward"].steps) == list(range(1, again.step + 1))
    json.dumps(again.as_dict(), allow_nan=False)
    assert await endless.stop() == "accepted"
    assert (await endless.wait()).state == "stopped"


async def test_between_a_resume_and_its_started_event_the_run_is_starting(record: RunRecord) -> None:
    """The journal's last state is `stopped`, and a first heartbeat follows, but run.json tells of a launch between them."""
    launched = record.summary().created
    stopped = {"v": 1, "seq": 1, "t": launched - 100, "type": "stopped", "step": 1, "reason": "asked"}
    heartbeat = {"v": 1, "seq": 2, "t": launched + 1, "type": "heartbeat", "step": 0}
    started = {"v": 1, "seq": 3, "t": launched + 2, "type": "started", "pid": 1, "resumed": True}
    failed = {"v": 1, "seq": 4, "t": launched + 3, "type": "failed", "step": 0, "error": "e"}
    run = Run(record)

    async def states(event: dict[str, object]) -> tuple[str, str]:
        with record.journal_file.open("a") as file:
            file.write(json.dumps(event) + "\n")
        return (await run.state()).state, summarise(record).state

    assert await states(stopped) == ("stopped", "stopped")
    record.update(state="starting", launched=launched)
    assert await states(heartbeat) == ("starting", "starting")
    assert await states(started) == ("starting", "starting")
    assert await states(failed) == ("failed", "failed")
