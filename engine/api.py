"""Engine and Run: the async facade that the terminal app and the command line use.

It reads and writes run folders and starts workers; it trains nothing and holds no state that a second viewer would miss.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any, Literal

from engine import data_check, hardware, home, measuring, method_costs, methods, model_list, model_names, selftest
from engine import estimate as estimates
from engine.config import RewardConfig, RunConfig
from engine.data import convert as conversion
from engine.data import samples
from engine.data.validate import DataReport
from engine.errors import InputError
from engine.method_costs import MethodCost
from engine.methods import Method
from engine.model_list import ModelRow
from engine.preflight import preflight
from engine.runs import control, journal, launch, record
from engine.runs.journal import Event, JournalReader, JournalWriter
from engine.runs.record import ENDED, RunRecord, lock_is_held
from engine.runs.state import RunState
from engine.runs.summary import RunSummary, observed_state, summarise
from engine.selftest_checks import CheckResult, Report
from engine.takehome import export as exporting
from engine.takehome import generate as generation
from engine.takehome.chat import Chat
from engine.takehome.generate import Ask, Generated, OnPhase, Turns
from engine.takehome.kinds import Exported, Job, Kind

ACKNOWLEDGE_SECONDS = 10.0


class Engine:
    """Everything that can be asked for outside a run. `home` defaults to DROID_TUNE_HOME, else ~/.droid-tune."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home if home is not None else record.home()

    def methods(self) -> tuple[Method, ...]:
        """The training methods."""
        return tuple(methods.METHODS.values())

    async def validate(
        self,
        path: Path,
        method: str,
        tokenizer: Path | None = None,
        *,
        valid: Path | None = None,
        full: bool = False,
        rewards: Sequence[RewardConfig] | Literal["auto"] = (),
        **reading: Any,
    ) -> DataReport:
        """What the data file holds for the method; with `tokenizer` (a model folder) lengths in tokens too, of a sample unless
        `full`; with `valid` also which of its rows the held-out file repeats; with `rewards`, for a reward method, what these
        give the rows' own answers ("auto": one that suits them). `reading`: how rows are read, and their limits, as
        engine.data.validate.validate takes them. Raises InputError."""
        settings = {"tokenizer": tokenizer, "valid": valid, "full": full, **reading}
        return await asyncio.to_thread(data_check.check, path, method, rewards, settings)

    async def validate_config(
        self, config: RunConfig, *, full: bool = False, rewards: Sequence[RewardConfig] | Literal["auto"] | None = None
    ) -> DataReport:
        """The config's training data as its run will use it: its columns, limits, model and rewards (or the given ones). Lengths
        are not measured where the model is an id that is not on this machine. Raises InputError."""
        return await asyncio.to_thread(data_check.check_config, config, rewards, full)

    async def models(self) -> list[ModelRow]:
        """The models on this machine, each in a row; a damaged one has a row that says so."""
        return await asyncio.to_thread(model_list.rows, home.models())

    async def sample_data(
        self,
        method: str,
        out: Path,
        rows: int,
        seed: int,
        *,
        topic: samples.Topic = "arithmetic",
        format: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write `rows` generated rows that the method can train on to the file `out`, and return it; `format` is a data format
        other than the one that topic and method have by themselves. Raises InputError."""
        return await asyncio.to_thread(
            samples.write_samples, out, method, rows, seed, topic=topic, format=format, overwrite=overwrite
        )

    async def convert(
        self,
        path: Path,
        out: Path,
        target: str | None = None,
        options: conversion.Options | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> conversion.Conversion:
        """Write the rows of a data file in another format, as another kind of file or in parts: see engine.data.convert.convert.
        `on_rows` is called in a thread. Cancelled, it stops and leaves nothing behind. Raises InputError."""
        cancelled = threading.Event()

        def told(rows: int) -> None:
            if cancelled.is_set():
                raise asyncio.CancelledError
            if on_rows is not None:
                on_rows(rows)

        try:
            return await asyncio.to_thread(conversion.convert, path, out, target, options, told)
        finally:
            cancelled.set()

    async def estimate(self, config: RunConfig) -> estimates.Estimate:
        """Memory and time of the run, before anything is loaded: its time only where this machine's rates were measured. Raises
        InputError."""

        def found() -> estimates.Estimate:
            known = hardware.facts()
            return estimates.estimate(config, known, measuring.known_rates(self.home, known))

        return await asyncio.to_thread(found)

    async def method_costs(self, config: RunConfig) -> tuple[MethodCost, ...]:
        """What each method would cost in place of the config's own. Raises InputError."""

        def found() -> tuple[MethodCost, ...]:
            known = hardware.facts()
            return method_costs.method_costs(config, measuring.known_rates(self.home, known), known)

        return await asyncio.to_thread(found)

    def has_rates(self) -> bool:
        """Whether this machine's rates, which times are estimated from, were measured. Raises InputError."""
        return measuring.known_rates(self.home) is not None

    async def measure_rates(self, told: measuring.Told = lambda text: None) -> None:
        """Measure this machine's rates in a worker, a few seconds, and keep them; `told` hears of the progress. Raises
        InputError."""
        await measuring.measure_rates(self.home, told)

    async def measure_step(self, config: RunConfig, told: measuring.Told = lambda text: None) -> measuring.MeasuredStep:
        """Run one step of the config outside any run, and set it beside its prediction; rates are measured first where there are
        none. Raises InputError for all that would fail a run at its start."""
        rates = await asyncio.to_thread(measuring.known_rates, self.home) or await measuring.measure_rates(self.home, told)
        checked, _ = await asyncio.to_thread(preflight, config)
        return await measuring.measure_step(checked, self.home, rates, told)

    async def selftest(self, model: str, on_result: Callable[[CheckResult], None]) -> Report:
        """Check the numerics of `model` (a folder, an HF id on this machine or `demo`) on this machine's device; `on_result` is
        told each check as it completes. The report is kept for `engine.selftest.latest`. Raises InputError."""
        return await selftest.run(model, on_result, self.home)

    async def export(
        self,
        run_id: str,
        to: Kind = "adapter",
        out: Path | None = None,
        *,
        checkpoint: str = "best",
        on_phase: OnPhase = lambda name, done, total: None,
        **settings: Any,
    ) -> Exported:
        """Take a run's result home as the kind `to` into the folder `out` (see engine.takehome.export.default_out), checked
        against the run's own policy; `settings` are those of engine.takehome.kinds.Job. Raises InputError."""
        found = await asyncio.to_thread(record.find, run_id, self.home)
        job = Job(to, out if out is not None else exporting.default_out(to, found.id, Path.cwd()), **settings)
        return (await exporting.export(found, [job], checkpoint, on_phase))[0]

    async def generate(
        self, run_id: str, prompts: Sequence[Turns], ask: Ask, on_phase: OnPhase = lambda name, done, total: None
    ) -> Generated:
        """The prompts answered by a run's base and tuned model, in one batch each. Raises InputError."""
        found = await asyncio.to_thread(record.find, run_id, self.home)
        return await generation.generate(found, prompts, ask, on_phase)

    async def chat(self, run_id: str, checkpoint: str = "best", on_phase: OnPhase = lambda name, done, total: None) -> Chat:
        """A chat with a run's model: `async with` it. Raises InputError."""
        return Chat(await asyncio.to_thread(record.find, run_id, self.home), checkpoint, on_phase)

    async def start(self, config: RunConfig) -> Run:
        """Check everything that can be checked without the model, then make the run folder and launch its worker.

        Raises InputError, and then leaves no run folder behind.
        """
        return await asyncio.to_thread(self._start, config)

    async def attach(self, run_id: str) -> Run:
        """The run with that id or with the only id that starts so. Raises InputError."""
        return Run(await asyncio.to_thread(record.find, run_id, self.home))

    async def runs(self) -> list[RunSummary]:
        """Every run, the latest made first; a damaged folder gives a row that says so."""
        return await asyncio.to_thread(lambda: [summarise(found) for found in record.list_runs(self.home)])

    def _start(self, config: RunConfig) -> Run:
        config, data_sha256 = preflight(config)
        made = record.create(config, self.home)
        try:
            with JournalWriter(made.journal_file) as writer:
                writer.write(
                    "created",
                    id=made.id,
                    name=made.summary().name,
                    method=config.method,
                    model=model_names.plain(config.model),
                    steps=config.run.steps,
                    eval_every=config.run.eval_every,
                    predicted_seconds=self._predicted(config),
                    config_sha256=hashlib.sha256(made.config_file.read_bytes()).hexdigest(),
                    data_sha256=data_sha256,
                )
            launch.launch(made)
        except (InputError, OSError) as error:  # a full disk; no worker has been started
            shutil.rmtree(made.folder, ignore_errors=True)
            if isinstance(error, InputError):
                raise
            remedy = "free the disk, or point DROID_TUNE_HOME at a folder of yours"
            raise InputError(f"cannot start the run: {error.strerror}", where=str(self.home), remedy=remedy) from error
        return Run(made)

    def _predicted(self, config: RunConfig) -> dict[str, float]:
        """Seconds of a step and of an evaluation, completions at their limit; {} where this machine's rates or the
        model's sizes are not known."""
        rates = measuring.known_rates(self.home)
        time = None if rates is None else estimates.time_of(config, rates)
        return {} if time is None else {"step": time.step, "eval": time.evaluation}


class Run:
    """One run, live or ended. Any number of these, in any number of processes, may watch the same run."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self._reader = JournalReader(record.journal_file)
        self._folded = RunState()

    @property
    def id(self) -> str:
        return self.record.id

    async def events(self, since: int = 0) -> AsyncGenerator[Event, None]:
        """The events with seq > `since`, then the new ones as they come; ends when the run has ended or is lost."""
        following = journal.follow(self.record.journal_file, since, until=self._worker_is_gone)
        async with aclosing(following):
            async for event in following:
                yield event

    async def state(self) -> RunState:
        """What the journal and the lock say now. Later calls read only what is new; the series in the result grow with them."""
        held = lock_is_held(self.record)  # before the journal is read: see derived_state
        while True:
            events = self._reader.read()
            if self._reader.restarted:
                self._folded = RunState()
            if not events:
                break
            for event in events:
                self._folded.apply(event)
            await asyncio.sleep(0)  # a long journal must not keep the event loop to itself
        state = observed_state(self._folded, self.record.summary(), held, time())
        return replace(self._folded, state=state, torn=self._reader.torn)

    async def wait(self) -> RunState:
        """The state at the run's end: stopped, finished or failed; or lost."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return await self.state()

    async def pause(self) -> str:
        """Ask the worker to pause at the next boundary; its answer (accepted or done). Raises InputError where it refuses."""
        return await self._command("pause")

    async def stop(self) -> str:
        """Ask the worker to write a checkpoint and end; as pause()."""
        return await self._command("stop")

    async def checkpoint(self) -> str:
        """Ask the worker for a checkpoint now; as pause()."""
        return await self._command("checkpoint")

    async def resume(self) -> str:
        """Un-pause a live run (as pause()), or start a lost, stopped or failed one again ("started"). Raises InputError."""
        command_id = await asyncio.to_thread(launch.resume, self.record)
        return "started" if command_id is None else await self._acknowledged(command_id)

    async def _command(self, verb: str) -> str:
        if not lock_is_held(self.record):
            state = (await self.state()).state
            remedy = f"`droid-tune status {self.id}` says more"
            raise InputError(f"cannot {verb}: the run is {state}", where=self.id, remedy=remedy)
        return await self._acknowledged(control.send(self.record, verb))

    async def _acknowledged(self, command_id: str) -> str:
        answer = await control.wait_acknowledged(self.record, command_id, ACKNOWLEDGE_SECONDS)
        if answer.status in ("refused", "expired"):
            remedy = f"`droid-tune status {self.id}` says more"
            raise InputError(f"{answer.verb} {answer.status}: {answer.reason}", where=self.id, remedy=remedy)
        return answer.status

    def _worker_is_gone(self) -> bool:
        return not lock_is_held(self.record) and summarise(self.record).state in (*ENDED, "lost", "damaged")
