"""How the plan cuts a run to fit, what it proposes where nothing does, and that it packs rows as the worker will."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from engine import share
from engine.config import parse
from engine.estimate import estimate
from engine.memory import Plan
from engine.memory_advice import QUANTISED_BITS, cheapest_change, largest
from engine.memory_batches import packed
from engine.worker.batching import Row, pack

MakePlan = Callable[..., Plan]
MILLION = 10**6


@pytest.fixture
def make_plan(tmp_path: Path) -> MakePlan:
    """Of the demo model: prompts of 48 tokens, 8 of them with 8 completions of 200 tokens."""
    (tmp_path / "train.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    names = ("prompts_per_step", "group_size", "max_prompt_tokens", "max_completion_tokens")
    sizes = {f"sampling.{name}": value for name, value in zip(names, (8, 8, 48, 200), strict=True)}

    def make(model: Path | str = "demo", **changes: Any) -> Plan:
        tree = {"model": str(model), "method": "grpo", "data": {"train": "train.jsonl"}, "rewards": [{"name": "answer"}]}
        config = parse(json.dumps(tree), base=tmp_path, overrides={**sizes, "run.eval_rows": 4, **changes}).config
        return Plan(config, "cpu")

    return make


@settings(max_examples=60, deadline=None)
@given(some.integers(1, 6), some.integers(2, 9), some.sampled_from([8, 30, 70, 150]), some.integers(1, 54))
@example(5, 4, 8, 11)  # a batch of 11 rows and one of 9, both of which cut a group
@example(3, 6, 120, 9)  # whole groups, although two batches would do
def test_rows_are_packed_as_the_worker_packs_them(groups: int, group: int, length: int, most: int) -> None:
    """The largest batch has as many positions; completions of 16 tokens."""
    rows = [Row(n, (n // group,) * length, (1,) * 16, group=n // group) for n in range(groups * group)]

    def positions(kinds: set[tuple[int, int]]) -> int:
        return max(own * 16 + prompts * length for prompts, own in kinds)

    wanted = {(len(batch.prompts), len(batch.index)) for batch in pack(rows, most, sharing="any")}
    assert positions(set(packed(groups, group, most, length, True))) == positions(wanted)


def test_no_more_rows_at_once_than_are_of_use(make_plan: MakePlan) -> None:
    """8,192 tokens: a group of 8 completions, 200 tokens padded to 208, and its prompt of 48 are 1,712, so 4 groups fit. Of 2,000
    tokens (2,000 is a whole step of 16) one group has more already, and stays together. What the config says stands."""
    assert make_plan().fit(10**12).micro_batch_rows == 4 * 8
    assert make_plan(**{"sampling.max_completion_tokens": 2000}).fit(10**12).micro_batch_rows == 8
    assert make_plan(**{"sampling.group_size": 2}).fit(10**12).micro_batch_rows == 16  # all there are
    assert make_plan(**{"optim.micro_batch_rows": 64}).fit(10**12).micro_batch_rows == 64


def test_rows_become_fewer_before_layers_are_computed_again(make_plan: MakePlan) -> None:
    plan = make_plan()
    everything = plan.fit(10**12)
    assert (everything.micro_batch_rows, everything.recomputes, everything.decode_rows) == (32, False, None)
    assert everything.peak == max(plan.update_peak(32), plan.rollout_peak() or 0)
    some_rows = plan.fit(plan.update_peak(5))
    assert some_rows.micro_batch_rows == 5 and not some_rows.recomputes and some_rows.fits
    least = plan.update_peak(1)
    again = plan.fit(least - 1)
    assert again.recomputes and again.update_peak < least
    nothing = plan.fit(1)
    assert (nothing.micro_batch_rows, nothing.recomputes, nothing.decode_rows, nothing.fits) == (1, True, 1, False)
    for asked in (True, False):
        assert make_plan(**{"optim.grad_checkpoint": asked}).fit(1).recomputes is asked
    assert make_plan(**{"optim.micro_batch_rows": 7}).fit(1).micro_batch_rows == 7


def test_rows_that_decode_at_once_are_the_most_that_fit(make_plan: MakePlan) -> None:
    plan = make_plan()
    whole = plan.rollout_peak() or 0
    rows = plan.decode_rows_within(whole - 1)
    assert rows is not None and 1 < rows < 64
    assert (plan.rollout_peak(rows) or 0) < whole <= (plan.rollout_peak(rows + 1) or 0)


def test_a_changed_plan_is_the_plan_of_the_changed_config(make_plan: MakePlan) -> None:
    for section, field, value in (
        ("sampling", "group_size", 4),
        ("adapter", "layers", 1),
        ("adapter", "type", "full"),
        ("quantize", "bits", 4),
        ("optim", "name", "sgd"),
    ):
        plan = make_plan()
        assert plan.update_peak(16) and plan.rollout_peak()  # whatever a plan remembers is not to stay
        changed, wanted = plan.changed(**{section: {field: value}}), make_plan(**{f"{section}.{field}": value})
        assert (changed.held, changed.update_peak(16), changed.rollout_peak(), changed.trainable) == (
            (wanted.held, wanted.update_peak(16), wanted.rollout_peak(), wanted.trainable)
        )


def test_the_cheapest_change_is_the_first_that_fits(make_plan: MakePlan) -> None:
    """A micro-batch that was asked for becomes as large as fits; then layers are computed again; then a smaller model, adapter or
    task. Where nothing fits, nothing is proposed."""
    asked = make_plan(**{"optim.micro_batch_rows": 64})
    assert cheapest_change(asked, 10**12) is None
    limit = max(asked.update_peak(24), asked.rollout_peak() or 0)
    found = cheapest_change(asked, limit)
    assert found is not None and found.key == "optim.micro_batch_rows" and found.peak <= limit and found.cost
    assert found.value == asked.rows_within(limit)
    kept = make_plan(**{"optim.grad_checkpoint": False})
    found = cheapest_change(kept, kept.update_peak(1) - 1)
    assert found is not None and (found.key, found.value) == ("optim.grad_checkpoint", True)
    plan = make_plan()
    limit = plan.fit(1).peak - 1
    found = cheapest_change(plan, limit)
    assert found is not None and (found.key, found.value) == ("quantize.bits", QUANTISED_BITS) and found.peak <= limit
    assert cheapest_change(plan, 1) is None
    full = make_plan(**{"adapter.type": "full", "adapter.rank": 1, "sampling.max_completion_tokens": 1, "sampling.group_size": 2})
    found = cheapest_change(full, full.held)  # four times the weights
    assert found is not None and (found.key, found.value) == ("adapter.type", "lora")


def test_the_largest_sizes_fit_and_one_more_does_not(make_plan: MakePlan) -> None:
    plan = make_plan(**{"optim.micro_batch_rows": 8})
    limit = plan.fit(10**12).peak + MILLION
    found = largest(plan, limit)
    for field, value in (("group_size", found.group_size), ("max_completion_tokens", found.max_completion_tokens)):
        assert value is not None and plan.changed(sampling={field: value}).fit(limit).fits
        assert value == 1024 or not plan.changed(sampling={field: value + 1}).fit(limit).fits
    rows = found.micro_batch_rows
    assert rows is not None and plan.update_peak(rows) <= limit < plan.update_peak(rows + 1)
    nothing = largest(plan, 1)
    assert (nothing.micro_batch_rows, nothing.group_size, nothing.max_completion_tokens) == (None, None, None)


def test_scores_take_memory_only_where_something_is_scored(make_plan: MakePlan) -> None:
    assert make_plan(**{"objective.beta": 0.0}).score_peak(8) is None
    plan = make_plan(**{"objective.beta": 0.1})
    assert plan.held < (plan.score_peak(8) or 0) < (plan.score_peak(64) or 0) < plan.update_peak(64)


def test_another_family_is_bounded_from_above(make_plan: MakePlan, tmp_path: Path) -> None:
    """A quarter more of what layers keep; nothing of what is held."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in share.demo_model().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "model_type": "cohere2"}))
    known, other = make_plan(), make_plan(folder)
    assert other.held == known.held and other.shares
    assert other.activations(8) == pytest.approx(1.25 * known.activations(8), rel=1e-6)


def test_advice_takes_a_moment(make_plan: MakePlan) -> None:
    plan = make_plan()
    limit = plan.fit(1).peak + 1
    start = time.process_time()
    cheapest_change(plan, limit - 2)
    largest(plan, limit)
    assert time.process_time() - start < 0.6  # 0.3 s each


def test_no_more_tokens_are_proposed_than_the_model_has_positions_for(make_plan: MakePlan) -> None:
    """The demo has 512: prompts of 48 leave 464, however much memory there is; a config that asks for more is told so."""
    assert largest(make_plan(), 10**13).max_completion_tokens == 512 - 48
    said = estimate(make_plan(**{"sampling.max_completion_tokens": 2000}).config).assumptions
    assert any("2,048 tokens; the model was made for 512" in line for line in said)
    assert not any("made for" in line for line in estimate(make_plan().config).assumptions)


def test_rows_of_added_tokens_are_trained_beside_the_adapter(make_plan: MakePlan) -> None:
    """The demo's embedding is its head, too: two tokens are 2 x D numbers more, and two moments of AdamW for each."""
    plain, added = make_plan(), make_plan(**{"chat.add_tokens": ["<plan>", "</plan>"]})
    assert plain.shape is not None and plain.shape.tied
    more = 2 * plain.shape.hidden
    assert added.trainable - plain.trainable == more
    assert added.optimizer - plain.optimizer == 2 * more * 4
