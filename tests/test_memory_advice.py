"""What is proposed where a run does not fit, how far its sizes could go and why no further, and the words for it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import share
from engine.cli import estimate_lines
from engine.estimate import Estimate, estimate, short
from engine.estimate_words import room, to_fit
from engine.hardware import GIB, Hardware
from engine.memory_advice import cheapest_change, keys_tried, largest, several_changes
from engine.memory_batches import BATCH_TOKENS, packed
from engine.memory_peaks import peaks
from engine.shortfall import shortfall
from tests.test_memory import MakePlan, make_plan
from tui.screens.new_run.estimate import plan as drawn
from tui.screens.new_run.forecast import forecast

__all__ = ["make_plan"]  # a fixture
MACHINE = Hardware("Linux", "x86_64", "a chip", "cpu", 2, None, 8 * GIB, None, gpu_limit_bytes=8 * GIB)
KEYS = (
    "run.eval_rows",
    "quantize.bits",
    "optim.name",
    "adapter.rank",
    "adapter.layers",
    "sampling.prompts_per_step",
    "sampling.group_size",
    "sampling.max_completion_tokens",
    "sampling.max_prompt_tokens",
)


def found(make_plan: MakePlan, gigabytes: float | None, **changes: Any) -> Estimate:
    return estimate(make_plan(**{"run.memory_limit_gb": gigabytes, **changes}).config, MACHINE)


def slowly(groups: int, group: int, most: int, length: int) -> tuple[tuple[int, int], ...]:
    """`packed` row by row: of each number of rows that can be left, the cheaper of a full batch and of one that ends a group."""

    def prompts(left: int, taken: int) -> int:
        return -(-left // group) - (left - taken) // group

    best: list[tuple[int, int]] = [(0, 0)]
    for left in range(1, groups * group + 1):
        full = min(most, left)
        aligned = full - (full - left) % group
        sizes = {full, aligned} if aligned > 0 else {full}
        best.append(min((best[left - n][0] + BATCH_TOKENS + length * prompts(left, n), n) for n in sizes))
    kinds, left = set(), groups * group
    while left:
        taken = best[left][1]
        kinds.add((prompts(left, taken), taken))
        left -= taken
    return tuple(sorted(kinds))


def test_rows_are_packed_as_if_row_by_row() -> None:
    """All of up to 6 groups of up to 9 rows, and some larger ones, such as 2 x 40 rows: 31 (a cut), 9, 31, 9."""
    sizes = [(groups, group, most) for groups in range(1, 7) for group in range(2, 10) for most in range(1, groups * group)]
    sizes += [(2, 40, 31), (40, 7, 11), (17, 32, 45), (30, 16, 5), (64, 5, 99)]
    for length in (8, 64, 300):
        for groups, group, most in sizes:
            assert packed(groups, group, most, length, True) == slowly(groups, group, most, length), (groups, group, most, length)


def test_an_estimate_of_thousands_of_rows_takes_a_moment(make_plan: MakePlan) -> None:
    for prompts, group in ((512, 16), (64, 128)):
        for gigabytes in (0.002, 0.05, 0.5):
            config = make_plan(
                **{
                    "sampling.prompts_per_step": prompts,
                    "sampling.group_size": group,
                    "run.memory_limit_gb": gigabytes,
                }
            ).config
            packed.cache_clear()
            start = time.process_time()
            estimate(config, MACHINE)
            assert time.process_time() - start < 0.3, (prompts, group, gigabytes)  # 0.03 to 0.08


def test_every_key_is_tried_alone_before_several_are(make_plan: MakePlan) -> None:
    """The packaged GRPO run under 2 MB: shorter prompts or a smaller adapter are enough, each alone. Under 1.2 MB no value of any
    key is, but several together; under 1 byte nothing is."""
    packaged = {"sampling.max_prompt_tokens": 64, "sampling.max_completion_tokens": 40, "sampling.group_size": 16}
    plan = make_plan(**packaged)
    assert keys_tried(plan, 1) == KEYS
    assert {"optim.micro_batch_rows", "optim.grad_checkpoint"} < set(
        keys_tried(make_plan(**{"optim.micro_batch_rows": 4, "optim.grad_checkpoint": False}), 1)
    )
    assert "optim.micro_batch_rows" not in keys_tried(make_plan(**{"optim.micro_batch_rows": 1}), 1)
    change = cheapest_change(plan, 2_000_000)
    assert change is not None and change.key == "adapter.rank" and change.peak <= 2_000_000
    assert to_fit(change, (), None).startswith(f"set adapter.rank to {change.value}: peak ")

    limit = 1_200_000
    assert cheapest_change(plan, limit) is None
    least = {"run.eval_rows": 1, "adapter.rank": 1, "adapter.layers": 1, "sampling.max_prompt_tokens": 16}
    least |= {"sampling.prompts_per_step": 1, "sampling.group_size": 2, "sampling.max_completion_tokens": 1, "quantize.bits": 4}
    for key, value in least.items():
        section, field = key.split(".")
        assert not plan.changed(**{section: {field: value}}).fit(limit).fits, key
    several = several_changes(plan, limit)
    assert several.fits and 1 < len(several.values) < len(KEYS) and several.peak <= limit
    sections: dict[str, dict[str, Any]] = {}
    for key, value in several.values:
        section, field = key.split(".")
        sections.setdefault(section, {})[field] = value
    assert plan.changed(**sections).fit(limit).peak == several.peak
    for section, fields in sections.items():  # not one too many
        for left_out in fields:
            rest = {name: value for name, value in fields.items() if name != left_out}
            assert not plan.changed(**{**sections, section: rest}).fit(limit).fits, left_out

    nothing = several_changes(plan, 1)
    assert not nothing.fits and nothing.peak > 1 and {key for key, _ in nothing.values} == set(KEYS)
    said = to_fit(None, KEYS, nothing)
    assert said.startswith("nothing that was tried is enough") and "adapter.rank 1" in said and "a smaller model" in said
    full = several_changes(make_plan(**{**packaged, "adapter.type": "full"}), 1)
    assert {"adapter.type", "adapter.rank", "quantize.bits"} <= {key for key, _ in full.values}


def test_what_keeps_each_size_from_being_more_is_said(make_plan: MakePlan) -> None:
    """With 8 GB the demo's 512 positions, the step's rows and the search do; with less, and all rows at once, the memory."""
    wide = found(make_plan, None, **{"sampling.max_completion_tokens": 16, "sampling.prompts_per_step": 1})
    assert wide.largest is not None
    assert wide.largest.bounds == {"micro_batch_rows": "step", "group_size": "search", "max_completion_tokens": "positions"}
    assert room(wide) == (
        "micro-batches of 8 rows (all of the step), groups of 1,024 completions (or more: the search ends there), completions of "
        "464 tokens (by the model's positions): each alone"
    )
    assert wide.as_dict()["largest"]["bounds"]["group_size"] == "search"
    tight = largest(make_plan(**{"optim.micro_batch_rows": 1 << 20}), 400_000_000)
    assert set(tight.bounds.values()) == {"memory", "step"} and tight.micro_batch_rows == 64
    tight = largest(make_plan(), 300_000_000)
    assert tight.bounds["micro_batch_rows"] == "memory" and tight.micro_batch_rows is not None


CUTS: list[dict[str, Any]] = [
    {},
    {"optim.micro_batch_rows": 4, "objective.beta": 0.1},
    {"optim.micro_batch_rows": 1, "sampling.max_prompt_tokens": 400, "sampling.max_completion_tokens": 2, "run.eval_rows": 1},
    {"adapter.type": "dora", "quantize.bits": 4, "optim.grad_checkpoint": True},
    {"adapter.type": "full", "optim.grad_checkpoint": True, "optim.micro_batch_rows": 1, "sampling.max_completion_tokens": 1},
    {"adapter.type": "full", "objective.beta": 0.1, "sampling.share_prompts": False},
    {"run.eval_rows": 128, "sampling.prompts_per_step": 1},
    {"run.memory_limit_gb": 0.003},
]


@pytest.mark.parametrize("changes", CUTS)
def test_parts_add_up_to_their_peak(make_plan: MakePlan, changes: dict[str, Any]) -> None:
    """Of every phase, in JSON, on the command line and in the app; the highest comes first and is the run's."""
    plan = make_plan(**changes)
    estimated = estimate(plan.config, MACHINE)
    fit = plan.fit(estimated.limit_bytes)
    wanted = {"update": fit.update_peak, "rollout": fit.rollout_peak, "score": fit.score_peak}
    told = estimated.as_dict()
    assert {phase["phase"]: phase["peak_bytes"] for phase in told["phases"]} == {k: v for k, v in wanted.items() if v is not None}
    for phase in told["phases"]:
        assert sum(phase["parts"].values()) == phase["peak_bytes"]
        assert phase["parts"]["held throughout"] == told["held_bytes"] == plan.held
    assert told["peak_bytes"] == told["phases"][0]["peak_bytes"] and told["binding_phase"] == told["phases"][0]["phase"]
    screen, lines = drawn(estimated, 78, "braille").plain, "\n".join(estimate_lines.estimate(estimated))
    for each in estimated.phases:
        assert each.moment in screen and each.moment in lines
        assert all(name in screen and name in lines for name, _ in each.parts)


def test_the_larger_of_logits_and_work_under_way_is_named(make_plan: MakePlan, tmp_path: Path) -> None:
    """As the backward pass begins, one of them is there beside what layers keep: of 272 words the work, of 49,152 the logits."""
    shutil.copytree(share.demo_model(), tmp_path / "wide")
    described = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps({**described, "vocab_size": 49_152}))
    for model, there, gone in (("demo", "work under way", "logits"), (tmp_path / "wide", "logits", "work under way")):
        plan = make_plan(model, **{"optim.micro_batch_rows": 4})
        (update,) = (each for each in peaks(plan, plan.fit(10**10)) if each.phase == "update")
        assert update.moment == "as the backward pass begins" and gone not in dict(update.parts)
        assert there == "work under way" or dict(update.parts)[there] == plan.logits(4 * 200)
        assert there in dict(update.parts)


def test_scores_can_be_what_binds(make_plan: MakePlan) -> None:
    """Four updates of 16 rows each, layers computed again, after all 64 rows were scored at once; where nothing fixes the rows,
    they are as many as fit in either."""
    asked = {
        "objective.beta": 0.1,
        "objective.minibatches": 4,
        "optim.grad_checkpoint": True,
        "sampling.max_completion_tokens": 40,
    }
    plan = make_plan(**asked, **{"optim.micro_batch_rows": 64})
    fit = plan.fit(10**10)
    assert fit.score_peak is not None and fit.peak == fit.score_peak > max(fit.update_peak, fit.rollout_peak or 0)
    assert peaks(plan, fit)[0].phase == "score" and not plan.fit(fit.score_peak - 1).fits
    assert make_plan(**{"objective.beta": 0.0}).fit(10**10).score_peak is None


def test_how_the_work_is_cut_is_said_where_it_is_not_the_default(make_plan: MakePlan) -> None:
    plain = found(make_plan, None)
    assert not {"decodes", "computes", "fetches"} & dict(forecast(plain)).keys()
    cut = replace(plain, decode_rows=1, recomputes=True, fetch_bytes=3_000_000, micro_batch_rows=1)
    said = dict(forecast(cut))
    assert said["decodes"] == "1 row at once, the others wait" and "a third longer" in said["computes"]
    assert said["fetches"] == "3.00 MB of weights, when the run starts"
    screen, lines = drawn(cut, 100, "braille").plain, "\n".join(estimate_lines.estimate(cut))
    for text in (screen, lines):
        assert "1 row at once" in text and "a third longer" in text and "3.00 MB of weights" in text and "1 rows" not in text
    assert "micro-batches of 1 row," in lines and "held throughout" in lines
    assert any(line.split()[:3] == ["held", "throughout", "816.38"] for line in lines.splitlines())


def test_words_of_a_prediction(make_plan: MakePlan) -> None:
    assert [short(each) for each in (0.0, 0.00045, 0.0045, 0.12, 3.0, 75.0)] == [
        "0s",
        "under 1 ms",
        "4.5 ms",
        "0.12s",
        "3s",
        "1m 15s",
    ]
    said = found(make_plan, None, **{"sampling.max_completion_tokens": 2000}).assumptions
    assert any("completions of 2,000 tokens" in line for line in said)


def test_a_run_that_does_not_fit_is_named_with_need_limit_and_change(make_plan: MakePlan) -> None:
    config = make_plan(**{"run.memory_limit_gb": 0.003}).config
    estimated, short_of = estimate(config, MACHINE), shortfall(config, MACHINE)
    assert short_of is not None and estimated.change is not None
    assert (short_of.need_bytes, short_of.limit_bytes) == (estimated.peak_bytes, 3_000_000)
    assert "3.00 MB" in short_of.message and f"set {estimated.change.key} to {estimated.change.value}" in short_of.remedy
    assert shortfall(make_plan().config, MACHINE) is None
