"""How each type of event changes a RunState: one function per type, each says whether it could use the event."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.runs.journal import Event, number
from engine.runs.values import Checkpoint, CommandStatus, Phase, Progress, RunWarning, record_metrics

if TYPE_CHECKING:
    from engine.runs.state import RunState

WARNINGS_KEPT = 200
STARTING = ("load", "converting", "downloading")  # the phases in which a worker is still starting
_BYTES_DONE = {"converting": "converted", "downloading": "downloaded"}  # phase -> what its heartbeats call the bytes done


def _created(state: RunState, event: Event) -> bool:
    fields = event.fields
    state.created_t = event.t
    state.id, state.name = _text(fields, "id"), _text(fields, "name")
    state.method, state.model = _text(fields, "method"), _text(fields, "model")
    state.steps = _integer(fields, "steps")
    every, predicted = _integer(fields, "eval_every"), fields.get("predicted_seconds")
    state.eval_every = every if every is not None and every > 0 else None
    seconds = {key: number(value) for key, value in predicted.items()} if isinstance(predicted, dict) else {}
    state.predicted = {key: value for key, value in seconds.items() if value is not None and 0 < value < math.inf}
    state.digests = {key: fields[key] for key in ("config_sha256", "data_sha256") if isinstance(fields.get(key), str)}
    return True


def _started(state: RunState, event: Event) -> bool:
    state.pid = _integer(event.fields, "pid")
    state.machine = {key: value for key, value in event.fields.items() if key not in ("pid", "resumed")}
    state.state = "starting"
    state.phase = state.failure = state.result = None
    if event.fields.get("resumed") is True:
        state.resumes += 1
    if state.started_t is None:
        state.started_t = event.t
    return True


def _phase(state: RunState, event: Event) -> bool:
    name = _text(event.fields, "name")
    if name is None:
        return False
    total, done = _integer(event.fields, "bytes"), _integer(event.fields, "done") or 0
    progress = None if total is None else Progress(total, ((event.t, done),))
    state.phase = Phase(name, _integer(event.fields, "step"), _integer(event.fields, "update"), event.t, progress)
    if name not in STARTING:
        _running(state)
    elif state.state == "running":  # paused while it was starting, and un-paused: it still is
        state.state = "starting"
    return True


def _heartbeat(state: RunState, event: Event) -> bool:
    state.last_heartbeat_t = event.t
    counts, phase = event.fields.get("bytes"), state.phase
    if isinstance(counts, dict) and phase is not None and phase.progress is not None:
        done = _integer(counts, _BYTES_DONE.get(phase.name, ""))
        if done is not None:
            state.phase = replace(phase, progress=phase.progress.at(event.t, done))
    elif isinstance(counts, dict):
        state.memory = {key: value for key, item in counts.items() if (value := number(item)) is not None}
    return True


def _step(state: RunState, event: Event) -> bool:
    step, metrics = _integer(event.fields, "step"), event.fields.get("metrics")
    if step is None or not isinstance(metrics, dict):
        return False
    if step <= state.step:  # a step that was done before takes the old one's place
        for series in state.series.values():
            series.drop_after(step - 1)
    state.step = step
    record_metrics(state.series, step, metrics)
    _running(state)
    return True


def _samples(state: RunState, event: Event) -> bool:
    step, split, file = _integer(event.fields, "step"), _text(event.fields, "split"), _text(event.fields, "file")
    if step is None or split is None or file is None:
        return False
    state.samples.setdefault(split, {})[step] = file
    return True


def _eval(state: RunState, event: Event) -> bool:
    step, metrics = _integer(event.fields, "step"), event.fields.get("metrics")
    if step is None or not isinstance(metrics, dict):
        return False
    for series in state.held_out.values():
        series.drop_after(step - 1)
    record_metrics(state.held_out, step, metrics)
    state.best_steps = [best for best in state.best_steps if best < step]
    if event.fields.get("best") is True:
        state.best_steps.append(step)
    _running(state)
    return True


def _checkpoint(state: RunState, event: Event) -> bool:
    step, path = _integer(event.fields, "step"), _text(event.fields, "path")
    if step is None or path is None:
        return False
    update, reason = _integer(event.fields, "update"), _text(event.fields, "reason") or ""
    state.checkpoints.append(Checkpoint(step, update, path, reason, event.t))
    return True


def _command(state: RunState, event: Event) -> bool:
    fields = event.fields
    key, verb, status = _text(fields, "id"), _text(fields, "verb"), _text(fields, "status")
    if key is None or verb is None or status is None:
        return False
    if key in state.commands and status in ("accepted", "expired"):
        return True  # it is done already: the training thread was faster, or the worker died before it put the file away
    state.commands[key] = CommandStatus(verb, status, _text(fields, "reason") or "")
    if status == "accepted":
        before, after = _ON_COMMAND.get(verb, ((), ""))
        if state.state in before:
            state.state = after
    return True


_ON_COMMAND: dict[str, tuple[tuple[str, ...], str]] = {  # verb -> the states in which it means something, the state it leads to
    "pause": (("running",), "pausing"),
    "resume": (("pausing", "paused"), "running"),
    "stop": (("starting", "running", "pausing", "paused"), "stopping"),
}


def _warning(state: RunState, event: Event) -> bool:
    fields = event.fields
    state.warning_count += 1
    kind, message, remedy = (_text(fields, key) or "" for key in ("kind", "message", "remedy"))
    state.warnings.append(RunWarning(kind, message, remedy, _integer(fields, "step"), event.t))
    del state.warnings[:-WARNINGS_KEPT]
    return True


def _paused(state: RunState, event: Event) -> bool:
    state.state, state.phase = "paused", None
    return True


def _resumed(state: RunState, event: Event) -> bool:
    step = _integer(event.fields, "from_step")
    if step is None:
        return False
    for series in (*state.series.values(), *state.held_out.values()):
        series.drop_after(step)
    for files in state.samples.values():
        # those of the step under way stay: un-paused or resumed within the step, the worker does not write them again, and
        # else it replaces the file
        for later in [key for key in files if key > step + 1]:
            del files[later]
    state.checkpoints = [checkpoint for checkpoint in state.checkpoints if checkpoint.step <= step]
    state.best_steps = [best for best in state.best_steps if best <= step]
    state.step = min(state.step, max(0, step))  # un-pausing within a step does not finish it
    state.state = "running"
    return True


def _stopped(state: RunState, event: Event) -> bool:
    state.state, state.phase = "stopped", None
    return True


def _failed(state: RunState, event: Event) -> bool:
    state.state, state.phase = "failed", None
    state.failure = dict(event.fields)
    return True


def _finished(state: RunState, event: Event) -> bool:
    summary = event.fields.get("summary")
    state.state, state.phase = "finished", None
    state.result = dict(summary) if isinstance(summary, dict) else {}
    return True


HANDLERS: Mapping[str, Callable[[RunState, Event], bool]] = {
    "created": _created,
    "started": _started,
    "phase": _phase,
    "heartbeat": _heartbeat,
    "step": _step,
    "samples": _samples,
    "eval": _eval,
    "checkpoint": _checkpoint,
    "command": _command,
    "warning": _warning,
    "paused": _paused,
    "resumed": _resumed,
    "stopped": _stopped,
    "failed": _failed,
    "finished": _finished,
}


def _running(state: RunState) -> None:
    if state.state in ("queued", "starting"):
        state.state = "running"


def _integer(fields: Mapping[str, Any], key: str) -> int | None:
    value = fields.get(key)
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else None


def _text(fields: Mapping[str, Any], key: str) -> str | None:
    value = fields.get(key)
    return value if isinstance(value, str) else None
