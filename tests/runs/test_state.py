"""The reducer: events in, RunState out."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runs.journal import TYPES, Event
from engine.runs.state import WARNINGS_KEPT as KEPT
from engine.runs.state import RunState, fold


def number_events(*events: tuple[str, dict[str, Any]], first: int = 1) -> list[Event]:
    """Events with seq and t counted up."""
    return [Event(first + i, 1000.0 + first + i, kind, fields) for i, (kind, fields) in enumerate(events)]


def step(n: int, **metrics: Any) -> tuple[str, dict[str, Any]]:
    return "step", {"step": n, "metrics": {"step": n, "reward": n / 10, **metrics}}


CREATED = (
    "created",
    {"id": "a", "name": "A", "method": "grpo", "model": "demo", "steps": 12, "config_sha256": "c", "data_sha256": "d"},
)
STARTED = (
    "started",
    {
        "pid": 7,
        "host": "h",
        "platform": "p",
        "versions": {"mlx": "1"},
        "blas": None,
        "threads": 2,
        "device": "cpu",
        "resumed": False,
    },
)


def comparable(state: RunState) -> str:
    """Every field as text, in which NaN equals NaN."""
    return repr(state)


small = st.integers(-1, 6)
metrics = st.dictionaries(
    st.sampled_from(["reward", "loss", "kl", "parts", "seconds", "bytes", "novel"]),
    st.none()
    | st.floats()
    | st.sampled_from(["NaN", "-Infinity", "x"])
    | st.booleans()
    | st.dictionaries(st.sampled_from("ab"), st.floats()),
)
random_fields = st.fixed_dictionaries(
    {},
    optional={
        "step": small | st.none(),
        "metrics": metrics | st.none(),
        "from_step": small,
        "split": st.sampled_from(["train", "held_out"]),
        "file": st.text(max_size=3),
        "path": st.text(max_size=3),
        "best": st.booleans(),
        "id": st.sampled_from(["c1", "c2"]),
        "verb": st.sampled_from(["pause", "resume", "stop"]),
        "status": st.sampled_from(["accepted", "done", "refused", "expired"]),
        "name": st.sampled_from(["load", "rollout"]),
        "resumed": st.booleans(),
        "summary": st.dictionaries(st.text(max_size=2), st.floats()),
        "bytes": st.dictionaries(st.text(max_size=2), st.integers()),
    },
)
journals = st.lists(st.tuples(st.sampled_from([*sorted(TYPES), "step", "eval", "novel"]), random_fields), max_size=30)


@settings(max_examples=120, deadline=None)
@given(journal=journals, cut=st.integers(0, 30))
def test_fold_of_a_prefix_and_the_rest_is_fold_of_all(journal: list[tuple[str, dict[str, Any]]], cut: int) -> None:
    events = number_events(*journal)
    state = fold(events[:cut])
    for event in events[cut:]:
        state.apply(event)
    assert comparable(state) == comparable(fold(events))
    for series in (*state.series.values(), *state.held_out.values()):
        assert list(series.steps) == sorted(set(series.steps)) and len(series.steps) == len(series.values)
    json.dumps(state.as_dict(), allow_nan=False)
    state.eta_seconds()


@settings(max_examples=100, deadline=None)
@given(died_at=st.integers(1, 10), back=st.integers(0, 10), total=st.integers(1, 12))
def test_a_resumed_run_folds_to_the_series_of_one_that_never_died(died_at: int, back: int, total: int) -> None:
    """Steps 1..died_at, then a resume from an earlier step: what was replayed appears once, with its new value."""
    from_step = max(0, died_at - back)
    last = max(total, died_at)

    def steps(first: int, end: int) -> list[tuple[str, dict[str, Any]]]:
        made: list[tuple[str, dict[str, Any]]] = []
        for n in range(first, end + 1):
            made += [
                ("samples", {"step": n, "split": "train", "file": f"samples/{n}"}),
                step(n),
                ("checkpoint", {"step": n, "path": f"c{n}"}),
            ]
            if n % 2 == 0:
                made.append(("eval", {"step": n, "split": "held_out", "metrics": {"reward": float(n)}, "best": True}))
        return made

    torn = fold(
        number_events(
            CREATED,
            STARTED,
            *steps(1, died_at),
            ("started", {"pid": 8, "resumed": True}),
            ("resumed", {"from_step": from_step}),
            *steps(from_step + 1, last),
        )
    )
    whole = fold(number_events(CREATED, STARTED, *steps(1, last)))
    assert torn.series == whole.series and torn.held_out == whole.held_out
    assert torn.samples == whole.samples and torn.best_steps == whole.best_steps
    assert [c.step for c in torn.checkpoints] == list(range(1, last + 1))
    assert (torn.step, torn.state, torn.resumes, torn.pid) == (last, "running", 1, 8)


def test_resumed_forgets_what_came_after_its_step() -> None:
    """Steps 1..4, an evaluation and samples at 4, a checkpoint at 2 and at 4; resumed from 2 leaves 1 and 2 alone."""
    events = number_events(
        CREATED, STARTED, step(1), step(2), ("checkpoint", {"step": 2, "update": 1, "path": "two"}), step(3), step(4),
        ("samples", {"step": 2, "split": "train", "file": "two"}), ("samples", {"step": 4, "split": "train", "file": "four"}),
        ("eval", {"step": 4, "split": "held_out", "metrics": {"reward": 0.9, "parts": {"answer": 0.9}}, "best": True}),
        ("checkpoint", {"step": 4, "path": "four"}),
        ("resumed", {"from_step": 2}),
    )  # fmt: skip
    before = fold(events[:-1])
    assert (before.step, before.best_step, before.latest_samples("train")) == (4, 4, "four")
    assert before.checkpoint is not None and before.checkpoint.step == 4
    after = fold(events)
    assert list(after.series["reward"].steps) == [1, 2] and list(after.series["reward"].values) == [0.1, 0.2]
    assert len(after.held_out["reward"]) == len(after.held_out["parts.answer"]) == 0
    assert (after.step, after.best_step, after.latest_samples("train"), after.state) == (2, None, "two", "running")
    assert after.checkpoint is not None and (after.checkpoint.step, after.checkpoint.update) == (2, 1)


def test_resuming_within_a_step_keeps_its_samples() -> None:
    """Steps 1 and 2 are done, and step 3 has written its samples: a worker that goes on within it does not write them again."""
    samples = [("samples", {"step": n, "split": "train", "file": f"samples/{n}"}) for n in range(1, 5)]
    begun = [CREATED, STARTED, samples[0], step(1), samples[1], step(2), samples[2]]
    for between in ([("paused", {"step": 2})], [("started", {"pid": 8, "resumed": True})]):
        state = fold(number_events(*begun, *between, ("resumed", {"from_step": 2})))
        assert state.samples["train"] == {1: "samples/1", 2: "samples/2", 3: "samples/3"} and state.step == 2
    later = fold(number_events(*begun, step(3), samples[3], ("resumed", {"from_step": 2})))
    assert sorted(later.samples["train"]) == [1, 2, 3] and list(later.series["reward"].steps) == [1, 2]


def test_metrics_become_series_by_name() -> None:
    state = fold(
        number_events(
            CREATED,
            step(1, kl=None, loss="NaN", parts={"answer": 1.0, "format": None}, odd="x", yes=True, bytes={"peak": 5}),
            step(2, loss="Infinity", parts={"answer": 0.5}, seconds={"rollout": 2.0, "total": 3.0}),
        )
    )  # fmt: skip
    assert sorted(state.series) == ["bytes.peak", "loss", "parts.answer", "reward", "seconds.rollout", "seconds.total"]
    assert math.isnan(state.series["loss"].values[0]) and state.series["loss"].last == math.inf
    assert list(state.series["parts.answer"].values) == [1.0, 0.5]
    assert state.as_dict()["metrics"]["loss"] == {"step": 2, "value": "Infinity"}


def test_time_left_is_the_median_step_times_what_is_left() -> None:
    """Totals 100, 1, 2, 1, 2 ... : of the last 20 ten are 1 and ten are 2, median 1.5. 30 of 40 done: 10 x 1.5 = 15 s."""
    steps = [step(1, seconds={"total": 100.0})] + [step(n, seconds={"total": 1.0 + n % 2}) for n in range(2, 31)]
    created = ("created", {**CREATED[1], "steps": 40})
    state = fold(number_events(created, STARTED, *steps))
    assert state.step_seconds() == 1.5
    assert state.eta_seconds() == 15.0
    unmeasured = fold(number_events(created, STARTED, step(1)))
    assert unmeasured.step_seconds() is None and unmeasured.eta_seconds() is None


def test_time_left_counts_the_evaluations_to_come() -> None:
    """40 steps, every 15 an evaluation: after 0, 15, 30 and 40. Estimated: 2 s a step, 10 s an evaluation: 80 + 4 x 10. Measured:
    1 s a step, 4 s the first evaluation, 6 the second. After step 15, before its evaluation: 25 x 1 + 3 x 4; after it
    25 x 1 + 2 x 6."""
    estimated = {"eval_every": 15, "predicted_seconds": {"step": 2.0, "eval": 10.0, "odd": "NaN", "none": None}}
    created = ("created", {**CREATED[1], "steps": 40, **estimated})
    evaluated = [("eval", {"step": n, "metrics": {"reward": 0.5, "seconds": {"eval": s}}}) for n, s in ((0, 4.0), (15, 6.0))]
    steps = [step(n, seconds={"total": 1.0}) for n in range(1, 16)]
    events = [created, STARTED, evaluated[0], *steps, evaluated[1]]
    etas = [fold(number_events(*events[:count])).eta_seconds() for count in (1, 3, -1, len(events))]
    assert etas == [80 + 40, 80 + 3 * 4, 25 + 3 * 4, 25 + 2 * 6]
    assert fold(number_events(*events)).as_dict()["evaluations_left"] == 2
    # a run of an older version does not say how often it evaluates: as often as it did
    older = [("created", {**CREATED[1], "steps": 40}), *events[1:]]
    assert fold(number_events(*older)).eta_seconds() == 25 + 2 * 6
    for odd in ({"eval_every": 0}, {"eval_every": -1}, {"eval_every": "x"}, {"predicted_seconds": 3}):
        fold(number_events(("created", {**created[1], **odd}), *events[1:])).eta_seconds()


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([CREATED], "queued"),
        ([CREATED, STARTED], "starting"),
        ([CREATED, STARTED, ("phase", {"name": "load", "step": 0})], "starting"),
        ([CREATED, STARTED, ("phase", {"name": "rollout", "step": 1})], "running"),
        ([CREATED, STARTED, step(1), ("command", {"id": "c", "verb": "pause", "status": "accepted"})], "pausing"),
        (
            [
                CREATED,
                STARTED,
                step(1),
                ("command", {"id": "c", "verb": "pause", "status": "accepted"}),
                ("phase", {"name": "update"}),
            ],
            "pausing",
        ),
        ([CREATED, STARTED, step(1), ("command", {"id": "c", "verb": "pause", "status": "refused"})], "running"),
        ([CREATED, STARTED, step(1), ("paused", {"step": 1})], "paused"),
        (
            [
                CREATED,
                STARTED,
                step(1),
                ("paused", {"step": 1}),
                ("command", {"id": "c", "verb": "resume", "status": "accepted"}),
            ],
            "running",
        ),
        ([CREATED, STARTED, step(1), ("paused", {"step": 1}), ("resumed", {"from_step": 1})], "running"),
        ([CREATED, STARTED, ("paused", {"step": 0}), ("resumed", {"from_step": 0}), ("phase", {"name": "load"})], "starting"),
        ([CREATED, STARTED, ("command", {"id": "c", "verb": "stop", "status": "accepted"})], "stopping"),
        ([CREATED, STARTED, step(1), ("stopped", {"step": 1, "reason": "asked"})], "stopped"),
        ([CREATED, STARTED, ("stopped", {"step": 0}), ("command", {"id": "c", "verb": "stop", "status": "accepted"})], "stopped"),
        ([CREATED, STARTED, ("failed", {"step": 0, "error": "e", "remedy": "r", "kind": "k"})], "failed"),
        ([CREATED, STARTED, ("failed", {"error": "e"}), ("started", {"pid": 9, "resumed": True})], "starting"),
        ([CREATED, STARTED, step(1), ("finished", {"step": 1, "summary": {"tuned": 1}})], "finished"),
    ],
)
def test_states(events: list[tuple[str, dict[str, Any]]], expected: str) -> None:
    state = fold(number_events(*events))
    assert state.state == expected
    assert state.ended == (expected in ("stopped", "finished", "failed"))
    assert (state.failure is not None) == (expected == "failed")


def test_a_resume_without_a_checkpoint_forgets_every_step() -> None:
    """from_step -1: even the evaluation before step 1 is made again."""
    first = ("eval", {"step": 0, "split": "held_out", "metrics": {"reward": 0.1}})
    again = ("eval", {"step": 0, "split": "held_out", "metrics": {"reward": 0.2}})
    state = fold(number_events(CREATED, STARTED, first, step(1), ("resumed", {"from_step": -1})))
    assert state.step == 0 and not len(state.held_out["reward"]) and not len(state.series["reward"])
    state = fold(number_events(CREATED, STARTED, first, step(1), ("resumed", {"from_step": -1}), again))
    assert list(state.held_out["reward"].values) == [0.2]


def test_unpausing_is_no_resume() -> None:
    state = fold(number_events(CREATED, STARTED, step(1), ("paused", {"step": 1}), ("resumed", {"from_step": 1}), step(2)))
    assert state.resumes == 0 and list(state.series["reward"].steps) == [1, 2]


def test_facts_are_kept() -> None:
    state = fold(
        number_events(
            CREATED,
            STARTED,
            ("heartbeat", {"step": 0, "phase": "load", "bytes": {"peak": 10, "bad": "x"}}),
            ("command", {"id": "c", "verb": "pause", "status": "accepted", "reason": ""}),
            ("command", {"id": "c", "verb": "pause", "status": "expired", "reason": ""}),
            ("command", {"id": "d", "verb": "stop", "status": "expired", "reason": "old"}),
            ("command", {"id": "e", "verb": "checkpoint", "status": "done", "reason": ""}),
            ("command", {"id": "e", "verb": "checkpoint", "status": "accepted", "reason": ""}),
            ("finished", {"step": 0, "summary": {"tuned": math.nan}}),
        )
    )
    assert (state.id, state.name, state.method, state.model, state.steps, state.pid) == ("a", "A", "grpo", "demo", 12, 7)
    assert state.digests == {"config_sha256": "c", "data_sha256": "d"}
    assert state.machine["device"] == "cpu" and state.started_t == 1002.0 and state.last_heartbeat_t == 1003.0
    assert state.memory == {"peak": 10.0}
    assert state.commands["c"].status == "accepted" and state.commands["d"].status == "expired"
    assert state.commands["e"].status == "done"  # two threads of a worker wrote them in that order
    assert state.as_dict()["result"] == {"tuned": "NaN"}


def test_warnings_are_bounded_and_counted() -> None:
    state = fold(
        number_events(*[("warning", {"kind": "reward", "message": str(n), "remedy": "r", "step": n}) for n in range(KEPT + 5)])
    )
    assert state.warning_count == KEPT + 5
    assert [state.warnings[0].message, state.warnings[-1].message, len(state.warnings)] == ["5", str(KEPT + 4), KEPT]


def test_events_seen_before_are_ignored() -> None:
    events = number_events(CREATED, STARTED, step(1))
    state = fold([*events, events[2], *number_events(("novel", {}), ("step", {"step": "x"}), first=4)])
    assert (state.ignored, state.step, len(state.series["reward"])) == (3, 1, 1)


def test_a_hundred_thousand_events_fold_in_time() -> None:
    """A step of a run writes about seven lines, one of them with some twenty metrics; measured 0.3 s on one core."""
    named = [
        "reward",
        "reward_std",
        "loss",
        "kl",
        "length",
        "entropy",
        "ratio",
        "clip_low",
        "clip_high",
        "grad_norm",
        "lr",
        "truncated",
    ]
    metrics: dict[str, Any] = dict.fromkeys(named, 0.5)
    metrics["parts"] = {"answer": 1.0, "format": 0.5}
    metrics["seconds"] = {"rollout": 1.0, "reward": 0.1, "score": 0.2, "update": 0.5, "total": 1.8}
    journal: list[tuple[str, dict[str, Any]]] = []
    for n in range(1, 100_000 // 7 + 1):
        journal += [("phase", {"step": n, "name": name}) for name in ("rollout", "reward", "score", "update")]
        journal += [("samples", {"step": n, "split": "train", "file": "f"}), ("heartbeat", {"step": n, "bytes": {"peak": 1}})]
        journal.append(("step", {"step": n, "metrics": metrics}))
    events = number_events(*journal)
    begin = time.process_time()
    state = fold(events)
    seconds = time.process_time() - begin
    print(f"{len(events)} events in {seconds:.2f} s")
    assert len(state.series["seconds.total"]) == 100_000 // 7
    assert seconds < 1.5
