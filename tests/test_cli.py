"""The command line as a user meets it: real workers, a real terminal, and the real command wherever a process can be told from a
call; what is one call of many goes through the console script's own function in this process."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from typer.testing import CliRunner

from engine.cli.app import app
from engine.share import demo_model
from tests.support.cli import COMMAND, ROWS, Command, answer, droid_tune, settings
from tests.support.live import DEADLINE_SECONDS, await_condition, await_event

SMALL = ("run.steps=2", "run.eval_rows=8", "run.checkpoint_every=1")
FEW = "data.train=datasets/arithmetic-train.jsonl[:64]"
SMALL_RL = (*SMALL, FEW, "sampling.prompts_per_step=4", "sampling.group_size=4")


@pytest.mark.parametrize("recipe", ["sft", "grpo", "dr_grpo", "gspo"])
def test_every_method_finishes_from_its_recipe_and_mlx_lm_uses_the_adapter(tmp_path: Path, here: Command, recipe: str) -> None:
    """Headless, from the packaged recipe; full weights for one of them, low-rank adapters for the others. Once by the commands
    that a user types: droid-tune's, and the mlx_lm.generate that the run ends with, chat settings and all."""
    small = SMALL if recipe == "sft" else SMALL_RL
    kind = ("adapter.type=full",) if recipe == "dr_grpo" else ()
    typed = recipe == "grpo"
    if typed:
        kind = ('chat.stop=["<|reserved_0|>"]', "chat.variables={enable_thinking: false}")
    state = answer((droid_tune if typed else here)(tmp_path, "train", recipe, "--json", *settings(*small, *kind)))
    assert state["state"] == "finished" and state["step"] == 2
    assert recipe != "sft" or state["metrics"]["grad_norm"]["value"] > 0
    adapter = state["result"]["adapter"]
    assert str(adapter) in state["result"]["command"]
    text = generated(state["result"]["command"]) if typed else answered(adapter, "What is 12+13?")
    assert text.startswith(("<think>", "<answer>"))


def generated(command: str) -> str:
    """What the command prints, which must know the chat settings; from this environment, and cut short."""
    program, *options = shlex.split(command)
    assert program == "mlx_lm.generate" and {"--extra-eos-token", "--chat-template-config"} <= {*options}
    typed = [sys.executable, "-P", "-m", "mlx_lm", "generate", *options, "--max-tokens", "8", "--verbose", "False"]
    done = subprocess.run(typed, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answered(adapter: str, prompt: str) -> str:
    """The same by mlx_lm's functions."""
    model, tokenizer = mlx_lm.load(str(demo_model()), adapter_path=adapter)[:2]
    asked = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    return mlx_lm.generate(model, tokenizer, asked, max_tokens=8)


def test_commands_about_a_run(tmp_path: Path, here: Command) -> None:
    """Started detached, paused, resumed, saved, stopped: each answered, each visible in status and in the journal. The run goes
    beyond its memory limit, which is said when it starts, and once in the journal."""
    small = (*SMALL_RL, "run.steps=500", "sampling.max_completion_tokens=4", "run.memory_limit_gb=0.001")
    done = droid_tune(tmp_path, "train", "grpo", "--detach", "--json", *settings(*small))
    assert "⚠ this run needs" in done.stderr and "may use 1.00 MB" in done.stderr and "to fit: " in done.stderr
    started = answer(done)
    run_id = started["id"]
    journal = Path(started["folder"]) / "events.jsonl"
    run = _run(tmp_path, run_id)
    await_event(run, 0, lambda e: e.type == "step")
    assert answer(here(tmp_path, "pause", run_id, "--json"))["answer"] in ("accepted", "done")
    await_event(run, 0, lambda e: e.type == "paused")
    assert answer(here(tmp_path, "status", run_id, "--json"))["state"] == "paused"
    assert here(tmp_path, "pause", run_id).returncode == 2
    assert here(tmp_path, "resume", run_id).returncode == 0
    assert here(tmp_path, "checkpoint", run_id).returncode == 0
    await_event(run, 0, lambda e: e.type == "command" and e.fields["verb"] == "checkpoint" and e.fields["status"] == "done")
    assert [row["state"] for row in answer(here(tmp_path, "runs", "--json"))] == ["running"]
    assert droid_tune(tmp_path, "stop", run_id[:3]).returncode == 0
    assert here(tmp_path, "attach", run_id).returncode == 0
    state = answer(here(tmp_path, "status", run_id, "--json"))
    assert state["state"] == "stopped" and 0 < state["step"] < 500
    logged = here(tmp_path, "logs", run_id, "--json").stdout.splitlines()
    assert len(logged) == len(journal.read_text().splitlines())
    assert json.loads(logged[-1])["type"] == "stopped"
    warnings = [event["message"] for event in map(json.loads, logged) if event.get("kind") == "memory"]
    assert len(warnings) == 1 and warnings[0].startswith("this run needs") and "may use 1.00 MB" in warnings[0]
    assert here(tmp_path, "stop", run_id).returncode == 2


def _run(home: Path, run_id: str) -> Any:
    from engine.api import Run
    from engine.runs.record import find

    return Run(find(run_id, home))


def _take_terminal() -> None:
    """In the child: a hang-up of its terminal reaches it and ends it, also where whoever runs the tests ignores hang-ups."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """A real pseudo-terminal of 80x24 with a command in it."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.cli", *arguments],  # the text view; tests/tui/test_tmux.py has the app's
            env={**os.environ, "DROID_TUNE_HOME": str(home), "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Read until `text` has been painted."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} never came; shown: {self.shown[-2000:]}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 1 << 16).decode("utf-8", "replace")

    def hang_up(self) -> int:
        """Close the terminal; the viewer's exit status."""
        os.close(self.master)
        return self.process.wait(DEADLINE_SECONDS)


def test_hanging_up_a_viewer_leaves_the_run_alone_and_another_sees_the_whole_curve(tmp_path: Path, here: Command) -> None:
    """Paused while the viewer is there, so that the run cannot be over before the terminal is gone."""
    started = answer(here(tmp_path, "train", "grpo", "--detach", "--json", *settings(*SMALL_RL, "run.steps=8")))
    run = _run(tmp_path, started["id"])
    await_event(run, 0, lambda e: e.type == "step")
    assert here(tmp_path, "pause", started["id"]).returncode == 0
    await_event(run, 0, lambda e: e.type == "paused")
    first = Terminal(tmp_path, "attach", started["id"])
    first.wait_for("held-out")
    first.wait_for("newest group")
    pid = run.record.summary().pid
    assert first.hang_up() != 0
    seen = len(run.record.journal_file.read_bytes())
    assert here(tmp_path, "resume", started["id"]).returncode == 0
    await_condition(lambda: len(run.record.journal_file.read_bytes()) > seen, "further events")
    second = Terminal(tmp_path, "attach", started["id"])
    second.wait_for("mlx_lm.generate")
    assert second.process.wait(DEADLINE_SECONDS) == 0
    state = answer(here(tmp_path, "status", started["id"], "--json"))
    assert (state["state"], state["step"], state["resumes"], state["pid"]) == ("finished", 8, 0, pid)
    steps = [e.fields["step"] for e in _events(run) if e.type == "step"]
    assert steps == list(range(1, 9))


def _events(run: Any) -> Any:
    from tests.support.live import events

    return events(run)


def test_verbs_that_only_read(tmp_path: Path, here: Command) -> None:
    assert "droid-tune demo" in here(tmp_path, "runs").stdout
    alone = droid_tune(tmp_path)  # no terminal to open the app in
    assert alone.returncode == 2 and "--headless" in alone.stderr
    methods = answer(here(tmp_path, "methods", "--json"))
    assert {m["id"] for m in methods} == {"sft", "grpo", "dr_grpo", "gspo", "gspo_token", "dapo", "cispo", "rloo", "reinforce_pp"}
    assert next(m for m in methods if m["id"] == "cispo")["meaningless"]["delta"] == "cispo has no unclipped branch"
    shown = here(tmp_path, "methods").stdout
    assert "arXiv 2507.18071" in shown and "delta (cispo has no unclipped branch)" in " ".join(shown.split())
    report = answer(here(tmp_path, "validate", "datasets/arithmetic-train.jsonl", "--model", "demo", "--json"))
    assert (report["rows"], report["usable"], report["verdict"]) == (512, 512, "ready")
    assert answer(here(tmp_path, "estimate", "grpo", "--json"))["weights_bytes"] == 99_648 * 4
    doctor = answer(here(tmp_path, "doctor", "--json"))
    assert doctor["mlx"]["matmul_gflops"] > 0 and doctor["selftest"] is None
    assert doctor["rates"]["matmul_gflops"]["float32"] > 0 < doctor["rates"]["memory_gb_per_second"], "the estimate measured them"
    assert "properties" in answer(here(tmp_path, "schema"))


def test_doctor_selftest_computes_on_the_device_and_doctor_remembers(tmp_path: Path, here: Command) -> None:
    """The real checks on the embedded model; then a report by another mlx is out of date, and a damaged one stops nothing."""
    report = answer(here(tmp_path, "doctor", "--selftest", "--json"))
    outcomes = {found["name"]: found["outcome"] for found in report["results"]}
    assert report["outcome"] == "passed" and len(outcomes) == 6 and set(outcomes.values()) == {"passed"}, report
    assert report["seconds"] < 60 and report["model"] == "demo" and report["versions"]["mlx"]
    assert all(figure["value"] <= figure["limit"] for found in report["results"] for figure in found["figures"])
    stored = tmp_path / "machine" / "selftest.json"
    last = answer(here(tmp_path, "doctor", "--json"))["selftest"]
    assert last == {**report, "stale": []} == {"outcome": "passed", **json.loads(stored.read_text()), "stale": []}
    stored.write_text(stored.read_text().replace(f'"mlx": "{report["versions"]["mlx"]}"', '"mlx": "0.1"'))
    assert "mlx was 0.1 and is" in here(tmp_path, "doctor").stdout
    stored.write_text("{")
    damaged = here(tmp_path, "doctor")
    assert damaged.returncode == 0 and "is damaged" in damaged.stdout
    assert "rates not measured yet: `droid-tune estimate grpo`" in damaged.stdout
    assert here(tmp_path, "doctor", "demo").returncode == 2
    assert "config.json" in here(tmp_path, "doctor", "--selftest", ".").stderr


def test_a_self_test_that_finds_a_fault_exits_with_1(tmp_path: Path, here: Command) -> None:
    """A package stands in front of mlx_lm that breaks when the sampler asks it for a cache, as a broken update would."""
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\nif 'selftest' in sys.orig_argv and '-P' in sys.orig_argv:\n"
        "    import mlx_lm.models.cache as cache\n    del cache.KVCache.update_and_fetch\n"
    )
    environment = {**os.environ, "DROID_TUNE_HOME": str(tmp_path), "PYTHONPATH": str(broken)}
    command = [*COMMAND, "doctor", "--selftest"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✓ golden values" in done.stdout and "✕ sampler and trainer" in done.stdout
    assert "update_and_fetch" in done.stdout and "try: " in done.stdout
    assert "✕ self-test failed" in here(tmp_path, "doctor").stdout


def test_every_verb_teaches() -> None:
    verbs = ["train", "demo", "methods", "validate", "estimate", "runs", "attach", "status", "logs"]
    for verb in [*verbs, "pause", "resume", "stop", "checkpoint", "doctor"]:
        shown = CliRunner().invoke(app, [verb, "--help"])
        assert shown.exit_code == 0 and len(shown.output) > 150, verb
        assert "--json" in shown.output, verb


def test_validate_names_every_unusable_row_and_exits_with_2_when_nothing_can_be_used(tmp_path: Path, here: Command) -> None:
    (tmp_path / "mixed.jsonl").write_text(ROWS + '{"prompt": "5+5?"}\n{"prompt": "", "answer": "1"}\n')
    done = here(tmp_path, "validate", "mixed.jsonl")
    assert done.returncode == 0
    assert "4" in done.stdout and "5" in done.stdout and "ready with warnings" in done.stdout
    (tmp_path / "broken.jsonl").write_text("{\n")
    assert here(tmp_path, "validate", "broken.jsonl").returncode == 2


def test_a_worker_that_cannot_load_fails_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that breaks on import stands in front of mlx_lm on PYTHONPATH, as in a broken installation."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "mlx_lm.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    done = droid_tune(tmp_path, "train", "sft", "--json")
    assert done.returncode == 1, done.stderr
    state = json.loads(done.stdout)
    assert state["state"] == "failed" and "a_module_that_is_missing" in state["failure"]["error"]
