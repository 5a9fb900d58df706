"""The life of a worker: take the lock that was handed over, load, train or resume, and always leave an end event."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from engine import config as configs
from engine import hardware, machine_rates
from engine.config import RunConfig
from engine.data import formats
from engine.errors import InputError
from engine.methods import method
from engine.models.sources import with_weights
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.record import RunRecord
from engine.shortfall import shortfall
from engine.splitting import split
from engine.worker import checkpoint, recompute
from engine.worker.companion import Companion, StopRequested
from engine.worker.guard import MemoryGuard
from engine.worker.loop import Loop
from engine.worker.model import Policy, load_policy
from engine.worker.rewarding import Judge
from engine.worker.step import RewardTask
from engine.worker.step_times import StepTimes, own_pids
from engine.worker.supervised import SupervisedTask
from engine.worker.surroundings import changes, describe
from engine.worker.task import Task, Warn
from engine.worker.trainer import Trainer


def run(folder: Path, lock_fd: int, resume: bool) -> int:
    """Train the run in `folder`; the lock of `lock_fd` is held until this process ends. Returns the exit status."""
    os.set_inheritable(lock_fd, False)  # a child that kept it would make a dead run look alive
    record = RunRecord(folder)
    launched = record.summary().launched or time.time()
    with JournalWriter(record.journal_file) as journal:
        companion = Companion(record, journal, launched)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: companion.signal_stop(signal.Signals(number).name))
        try:
            with companion:  # it is gone before the end is journalled: no heartbeat comes after that
                record.update(state="starting", pid=os.getpid())
                summary = _start(record, journal, companion, resume).run()
        except StopRequested as stop:
            journal.write("stopped", step=companion.step, reason=stop.reason)
            record.update(state="stopping")
            record.update(state="stopped", step=companion.step)
        except InputError as error:
            said = f"{error.where}: {error.what}" if error.where else error.what
            return _failed(record, journal, companion, said, error.remedy, "input")
        except Exception as error:  # noqa: BLE001 - the worker's last word: journalled, with the traceback in its log
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            return _failed(
                record, journal, companion, text, f"see {record.log_file}; resume goes on from the last checkpoint", "error"
            )
        else:
            journal.write("finished", step=companion.step, summary=summary)
            record.update(state="finished", step=companion.step)
    return 0


def _failed(record: RunRecord, journal: JournalWriter, companion: Companion, error: str, remedy: str, kind: str) -> int:
    journal.write("failed", step=companion.step, error=error, remedy=remedy, kind=kind)
    record.update(state="failed", step=companion.step)
    return 1


def _start(record: RunRecord, journal: JournalWriter, companion: Companion, resume: bool) -> Loop:
    """Load everything and put the run where it was; the journal says what it runs on."""
    config = configs.load(record.config_file).config
    latest = checkpoint.latest(record.checkpoints_dir) if resume else None
    awake = hardware.keep_awake_command(os.getpid())
    if awake is not None:
        subprocess.Popen(awake, stdin=subprocess.DEVNULL, close_fds=True)
    surroundings = describe(config, record.summary().environment)
    first = next((e.fields for e in JournalReader(record.journal_file).read() if e.type == "started"), surroundings)
    journal.write("started", pid=os.getpid(), resumed=resume, **surroundings)
    for change in changes(first, surroundings):
        companion.warn("surroundings-changed", change, "the same bits come only from the same; the run goes on with this")
    if latest is not None:  # a pause or a stop may come before it is loaded
        companion.step = int(checkpoint.read_state(latest)["cursor"]["done"])
    folder = _weights(config.model, journal, companion)
    policy = load_policy(folder, config.adapter, config.run.seed, config.chat, config.quantize)
    if config.quantize.bits is not None:
        warn_of_plain_weights(policy, config.quantize.group_size, companion.warn)
    if method(config.method).kind == "rl":
        warn_of_fallbacks(policy, companion.warn)
    guard, policy.recomputes = split_of(config, policy, latest, companion.warn)
    data = formats.load_training_data(config)
    task = task_of(config, policy, data, guard, companion.warn)
    trainer = Trainer(policy, config.optim, config.run.steps * task.updates_per_step, config.run.seed)
    times = _step_times(config, record, policy, guard, companion.warn, own_pids(task))
    loop = Loop(config, record, journal, companion, policy, trainer, task, guard, times)
    if latest is not None:
        loop.restore(latest)
    if resume:
        companion.step = loop.cursor.done
        journal.write("resumed", from_step=loop.cursor.done if latest is not None else -1)
    return loop


def _step_times(
    config: RunConfig, record: RunRecord, policy: Policy, guard: MemoryGuard, warn: Warn, pids: Sequence[int]
) -> StepTimes:
    """What keeps this run's steps for later estimates, beside the rates in the home folder that the run lies in."""
    summary = record.summary()
    used = summary.environment
    key = machine_rates.key(hardware.facts(), int(used["threads"]), used["blas"])
    return StepTimes(config, record.folder.parents[1], key, f"the run {summary.name}", policy, guard, warn, pids)


class _Pause(Exception):
    """A pause was asked for: what is being fetched ends here, and goes on from here after it."""


def _weights(model: str, journal: JournalWriter, companion: Companion) -> Path:
    """The folder to load. A .gguf file is made into one the first time, a model of the hub is fetched: the phases `converting`
    and `downloading`, which can be paused and stopped. Their event has the bytes of all and of those that are done, heartbeats
    too."""
    before = companion.phase
    is_converted = configs.is_gguf(Path(model))
    name, keys = ("converting", ("converted", "to_convert")) if is_converted else ("downloading", ("downloaded", "to_download"))

    def told(done: int, total: int) -> None:
        if companion.is_to_pause:
            companion.phase, companion.bytes = before, {}
            if not is_converted:
                raise _Pause  # threads fetch: they end, each at its next piece, which stays on the disk
            companion.attend_while_loading()
        if companion.phase != name:
            companion.phase = name
            journal.write("phase", step=companion.step, name=name, bytes=total, **({"done": done} if done else {}))
        companion.bytes = dict(zip(keys, (done, total), strict=True))
        companion.attend_stop()

    folder = None
    while folder is None:
        try:
            folder = with_weights(configs.model_folder(model), told)
        except _Pause:
            companion.attend_while_loading()
    if companion.phase != before:
        companion.phase, companion.bytes = before, {}
        journal.write("phase", step=companion.step, name=before)
    return folder


def warn_of_plain_weights(policy: Policy, group_size: int, warn: Warn) -> None:
    """Where a model that was to be quantised is so in part only."""
    left = [name for name, module in policy.model.named_modules() if hasattr(module, "to_quantized")]
    if left:
        message = f"{len(left)} modules are not quantised, such as {left[0]}: their rows are no multiple of {group_size} numbers"
        warn("partly-quantised", message, "lower quantize.group_size: 32 fits most widths")


def warn_of_fallbacks(policy: Policy, warn: Warn) -> None:
    """Where rows of this family cannot be decoded together, prompts not be shared, or caches do not give what a plain forward
    gives."""
    found = policy.decoding
    if policy.sharing == "none":
        message = "this model's family cannot share a prompt: each is computed once for every completion in the updates"
        warn("prompts-repeated", message, "the figures are right, updates are slow; shorter prompts or another family cost less")
    if found.agrees and found.mode == "alone":
        message = "this model's family cannot decode rows together: completions are sampled one after the other"
        warn("decodes-alone", message, "the figures are right, rollouts are slow; another family decodes a whole step at once")
    if not found.agrees:
        message = f"with a cache this model's log-probs are {found.gap:.2g} nats off a plain forward's (at most {found.limit:g})"
        remedy = "`droid-tune doctor --selftest MODEL` says more; update mlx-lm, or use another model"
        warn("cache-disagrees", message, remedy)


def task_of(config: RunConfig, policy: Policy, data: formats.TrainingData, guard: MemoryGuard, warn: Warn) -> Task:
    """The config's kind of training on its data; what is left out is warned about. Raises InputError where no row fits."""
    kind = method(config.method).kind
    train, held_out = data.train, data.held_out
    unusable = sum(len(file.problems) for file in data.files)
    if unusable:
        warn("rows-unusable", f"{unusable} rows cannot be used and are left out", f"droid-tune validate {config.data.train}")
    task: RewardTask | SupervisedTask
    if kind == "sft":
        task = SupervisedTask(policy, config, train, held_out, guard)
    else:
        columns = {name for example in (*train, *held_out) for name in example.columns}
        task = RewardTask(policy, config, train, held_out, Judge(config.rewards, warn, policy.decode, columns), guard)
    for given, what, used, left_out in (
        (train, "training", len(task.train), task.left_out[0]),
        (held_out, "held-out", len(task.held_out), task.left_out[1]),
    ):
        if not used:
            task.close()
            raise InputError(
                f"none of the {len(given)} {what} rows fits the token limits and the chat template",
                where="sampling",
                remedy="raise max_prompt_tokens (and, for sft, max_completion_tokens)",
            )
        if left_out:
            remedy = f"droid-tune validate {config.data.train} --method {config.method} --model {config.model} says which"
            message = f"{left_out} of {used + left_out} {what} rows are left out: over the limits, or refused by the template"
            warn("rows-left-out", message, remedy)
    if isinstance(task, SupervisedTask) and task.split_chats:
        warn(
            "chats-split",
            f"{task.split_chats} chats became several rows: the chat template does not keep earlier turns token for token, "
            "so each reply is learned in its own exact context",
            "nothing is lost; such chats take more rows of an update. data.targets: last learns the last reply only",
        )
    return task


def bound_cache(limit: int) -> None:
    """Let mlx keep at most `limit` bytes of freed buffers for reuse, or fewer where that is its own default."""
    default = mx.set_cache_limit(limit)
    if default < limit:
        mx.set_cache_limit(default)


def split_of(config: RunConfig, policy: Policy, latest: Path | None, warn: Warn) -> tuple[MemoryGuard, bool]:
    """How the work is cut, and whether layers are computed again: as planned, or as the checkpoint has it, since another split
    would change the last bits of the sums."""
    planned = split(config)
    bound_cache(planned.cache_bytes)
    guard = MemoryGuard(planned.micro_batch_rows, planned.decode_rows, planned.limit_bytes, planned.update_bytes_per_token, warn)
    short = None if planned.fits else shortfall(config)
    if short is not None:
        warn("memory", short.message, short.remedy, need_bytes=short.need_bytes, limit_bytes=short.limit_bytes)
        guard.has_told = not planned.update_fits
    if latest is not None:
        state = checkpoint.read_state(latest)  # older ones hold the first only
        guard.micro_batch_rows, guard.decode_rows = int(state["micro_batch_rows"]), state.get("decode_rows")
        return guard, bool(state.get("recomputes", False))
    recomputes = planned.recomputes and recompute.is_exact(policy)
    if planned.recomputes and not recomputes:
        message = "this model's layers cannot be computed again exactly: their activations are kept"
        warn("layers-kept", message, "set optim.micro_batch_rows lower if memory runs short")
    return guard, recomputes
