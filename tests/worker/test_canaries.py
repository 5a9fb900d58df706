"""Every learning canary fires in a run that goes wrong in its way, with the measured number, and is silent in its healthy twin.

The runs are real: the blank model, the reward process, the trainer and the loop. No metric is made by hand.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import pytest
from pydantic import TypeAdapter

from engine.config import RunConfig
from engine.runs.journal import Event
from engine.sections import Section
from tests.support.live import finish, small_config

from .canary_runs import LETTERS, bfloat16, four_bit_sampler, train, write_rows

Steps = list[dict[str, Any]]


def paid(*names: str, weight: float = 1.0) -> list[dict[str, Any]]:
    """Rewards of canary_runs by name; the first with another weight."""
    return [{"name": name, "file": "rewards.py", "weight": weight if not n else 1.0} for n, name in enumerate(names)]


def fixed_rows(folder: Path) -> None:
    """Twelve prompts of which one has a reward that is chance, the others 0 or 1 whatever is written."""
    fixed = [None, *(float(n % 2) for n in range(1, len(LETTERS)))]
    write_rows(
        folder / "train.jsonl", [{"prompt": f"{x}?", "answer": x, "fixed": f} for x, f in zip(LETTERS, fixed, strict=True)]
    )
    write_rows(folder / "valid.jsonl", [{"prompt": f"{x}!", "answer": x, "fixed": 1.0} for x in LETTERS])


def open_rows(folder: Path) -> None:
    """The same prompts, each with a reward that is chance."""
    for name in ("train.jsonl", "valid.jsonl"):
        write_rows(folder / name, [{"prompt": f"{x}?", "answer": x, "fixed": None} for x in LETTERS])


def words_by_chance(folder: Path) -> None:
    """Prompts with random words, others held out: the alphabet can be learned, everything else only by heart."""
    chance = random.Random(0)
    for name, end in (("train.jsonl", "?"), ("valid.jsonl", "!")):
        words = ["".join(chance.choice("abcdefgh") for _ in range(8)) for _ in LETTERS]
        write_rows(folder / name, [{"prompt": x + end, "completion": word} for x, word in zip(LETTERS, words, strict=True)])


def mean_of(name: str, form: str = "{:.0%}") -> Callable[[Steps], str]:
    """The mean of a metric over the five steps up to the warning, as the message writes it."""
    return lambda steps: form.format(fmean(step[name] for step in steps[-5:]))


def last_of(name: str, form: str = "{:.2g}") -> Callable[[Steps], str]:
    return lambda steps: form.format(steps[-1][name])


def flat_share(steps: Steps) -> str:
    return f"{sum(s['zero_std_groups'] for s in steps[-5:]) / sum(s['groups'] for s in steps[-5:]):.0%}"


def clip_share(steps: Steps) -> str:
    return f"{fmean(s['clip_low'] + s['clip_high'] for s in steps[-5:]):.0%}"


def loud_share(steps: Steps) -> str:
    odd, other = (fmean(s["parts_spread"][name] for s in steps[-5:]) for name in ("odd", "other"))
    return f"{odd / (odd + other):.1%}"


@dataclass(frozen=True)
class Case:
    """A run that provokes `kind`, what else must follow from the same cause, and the value that heals it."""

    kind: str
    sick: Mapping[str, Any]
    healthy: Mapping[str, Any] | None  # what stands in the place of `sick`; None: the plain run, which several share
    number: Callable[[Steps], str]  # what the message has to say, worked out from the steps up to it
    also: frozenset[str] = frozenset()
    common: Mapping[str, Any] = field(default_factory=dict)
    files: Callable[[Path], None] = lambda folder: None
    healthy_files: Callable[[Path], None] | None = None


LOW_RANK = {"type": "lora", "rank": 4}
CASES = (
    # A step of 1e-6 is lost in any bfloat16 number above 0.0005.
    Case(
        "weights-still",
        {"optim__learning_rate": 1e-6},
        {"optim__learning_rate": 1e-2},
        mean_of("moved", "{:.2%}"),
        common={"prepare": bfloat16, "run__steps": 6},
    ),
    # Nothing ends a completion, so all are cut; cut ones are masked.
    Case(
        "gradient-zero",
        {"ends": frozenset(), "sampling__max_completion_tokens": 4},
        {},
        lambda steps: f"norm 0, although {steps[-1]['groups'] - steps[-1]['zero_std_groups']} of 4 groups",
        also=frozenset({"truncated"}),
        common={"objective__truncated": "mask", "run__steps": 5},
    ),
    # The sampler's own log-probabilities stand for the old policy's, and the sampler has another policy.
    Case(
        "ratio-start",
        {"arrange": four_bit_sampler},
        {},
        last_of("ratio_gap_first"),
        common={"objective__old": "sampler", "run__steps": 3},
    ),
    # LoRA's zero half becomes 1e-12: it moves, and no log-probability does.
    Case(
        "ratio-still",
        {"optim__learning_rate": 1e-12},
        {"optim__learning_rate": 1e-5},
        mean_of("ratio_gap_later", "{:.2g}"),
        common={"adapter": LOW_RANK, "objective__minibatches": 2, "run__steps": 6},
    ),
    Case("sampler-gap", {"arrange": four_bit_sampler}, None, last_of("mismatch"), common={"run__steps": 3}),
    # Eight passes over the same rollouts: all but the first leave so narrow a range.
    Case(
        "clipped",
        {"objective__epsilon_low": 1e-5, "objective__epsilon_high": 1e-5},
        {"objective__epsilon_low": 0.2, "objective__epsilon_high": 0.2},
        clip_share,
        common={"objective__updates_per_rollout": 8, "run__steps": 5},
    ),
    # Three of four untrained completions have no end among their first two tokens: (7/8)^2.
    Case(
        "truncated",
        {"sampling__max_completion_tokens": 2},
        None,
        mean_of("truncated"),
        common={"run__steps": 5},
    ),
    # At this rate the policy is certain of one completion before it is right: half the reward, and no way on.
    Case(
        "entropy-collapse",
        {"optim__learning_rate": 0.12},
        {"optim__learning_rate": 1e-3},
        mean_of("entropy", "{:.2g}"),
        also=frozenset({"no-contrast", "reward-constant"}),
        common={"rewards": paid("habit"), "run__steps": 13},
    ),
    # Whoever writes more than his group gets more, yet the mean reward is 0.5 by construction.
    Case(
        "length-explosion",
        {"optim__learning_rate": 4e-2},
        {"optim__learning_rate": 1e-3},
        mean_of("length", "{:.0f} tokens"),
        common={"rewards": paid("longest"), "sampling__max_completion_tokens": 64, "run__steps": 9},
    ),
    Case(
        "kl-blow-up",
        {"optim__learning_rate": 3e-2},
        {"optim__learning_rate": 1e-3},
        lambda steps: f"{median(s['kl'] for s in steps[-3:]):.2g} nats",
        common={"rewards": paid("short"), "objective__beta": 1e-6, "run__steps": 8},
    ),
    Case(
        "reward-constant",
        {"rewards": paid("half")},
        None,
        last_of("reward", "{:g}"),
        common={"run__steps": 5},
    ),
    Case(
        "reward-saturated",
        {"optim__learning_rate": 3e-2},
        {"optim__learning_rate": 1e-3},
        mean_of("reward", "{:.3g}"),
        common={"rewards": paid("short"), "run__steps": 17},
    ),
    Case(
        "no-contrast",
        {},
        {},
        flat_share,
        common={"rewards": paid("by_prompt"), "run__steps": 5},
        files=fixed_rows,
        healthy_files=open_rows,
    ),
    Case(
        "part-drowns",
        {"rewards": paid("odd", "other", weight=100.0)},
        {"rewards": paid("odd", "other", weight=10.0)},
        loud_share,
        common={"run__steps": 5},
    ),
    # Twelve rows, all of them in every update.
    Case(
        "overfit",
        {"optim__learning_rate": 1e-2},
        {"optim__learning_rate": 1e-3},
        lambda steps: f"to {fmean(s['loss'] for s in steps[-5:]):.3g}",
        common={"method": "sft", "sampling__prompts_per_step": 12, "run__steps": 35, "run__eval_every": 5, "run__eval_rows": 12},
        files=words_by_chance,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=[case.kind for case in CASES])
def test_it_fires_with_the_number_it_measured(case: Case, blank_folder: Path, tmp_path: Path) -> None:
    case.files(tmp_path)
    found = train(tmp_path, blank_folder, **{**case.common, **case.sick})
    assert found.kinds - case.also == {case.kind}
    warning = found.of(case.kind)
    so_far = [step for step in found.steps if step["step"] <= warning.fields["step"]]
    assert case.number(so_far) in warning.fields["message"]
    for one in found.warnings:
        assert_remedy_is_real(one)


PLAIN = Case("plain", {}, {}, mean_of("reward"), common={"run__steps": 5})  # 12 tokens, a coin for a reward, its own sampler
TWINS = (PLAIN, *(case for case in CASES if case.healthy is not None))


@pytest.mark.parametrize("case", TWINS, ids=[case.kind for case in TWINS])
def test_it_is_silent_where_the_cause_is_taken_away(case: Case, blank_folder: Path, tmp_path: Path) -> None:
    """The same run with a healthy value; where nothing else is said, without what made it sick."""
    (case.healthy_files or case.files)(tmp_path)
    found = train(tmp_path, blank_folder, **{**case.common, **(case.healthy or {})})
    assert found.told == []


def test_all_kinds_are_provoked_here() -> None:
    """What the canaries' source can say, and what this file makes it say."""
    worker = Path(__file__).parents[2] / "engine" / "worker"
    source = "".join((worker / f"{name}_canaries.py").read_text() for name in ("update", "reward"))
    assert set(re.findall(r'Finding\(\s*"([a-z-]+)"', source)) == {case.kind for case in CASES}


def test_a_loss_that_is_not_finite_trips_no_other_canary(blank_folder: Path, tmp_path: Path) -> None:
    """SGD at 1e30 breaks the weights with its first update; the loop says so, and nan is no reason to say more."""
    optim = {"name": "sgd", "learning_rate": 1e30, "max_grad_norm": 1e30, "warmup": 0, "max_nonfinite": 100}
    found = train(tmp_path, blank_folder, method="sft", optim=optim, run__steps=7, run__eval_every=2)
    assert found.kinds == {"non-finite"} and len(found.warnings) == 6


@pytest.mark.usefixtures("warm_workers")
async def test_a_worker_of_its_own_says_it_too(tmp_path: Path) -> None:
    """The embedded model, whose shortest answer has five tokens, cut after three."""
    _, state = await finish(tmp_path, small_config("grpo", sampling__max_completion_tokens=3, run__steps=5))
    warning = next(one for one in state.warnings if one.kind == "truncated")
    assert (warning.step, state.state) == (5, "finished")
    assert "100%" in warning.message and "sampling.max_completion_tokens" in warning.remedy


@pytest.mark.parametrize(
    ("changes", "files", "checkpoints"),
    [
        ({"rewards": paid("habit"), "optim__learning_rate": 0.12, "run__steps": 13}, lambda folder: None, (4, 8, 12)),
        (
            {
                "method": "sft",
                "optim__learning_rate": 1e-2,
                "sampling__prompts_per_step": 12,
                "run__steps": 32,
                "run__eval_every": 4,
                "run__eval_rows": 12,
            },
            words_by_chance,
            (24, 28),
        ),
    ],
    ids=["collapse", "overfit"],
)
def test_a_resumed_run_warns_as_the_first_would_have(
    changes: dict[str, Any], files: Callable[[Path], None], checkpoints: tuple[int, ...], blank_folder: Path, tmp_path: Path
) -> None:
    """From each checkpoint on: the same warnings, at the same steps, with the same numbers, and none that was given before."""
    files(tmp_path)
    whole = train(tmp_path, blank_folder, **changes, run__checkpoint_every=4, run__keep_checkpoints=99)
    assert len(whole.told) >= (3 if "rewards" in changes else 1)
    for step in checkpoints:
        folder = whole.record.checkpoints_dir / f"step-{step:06d}"
        resumed = train(tmp_path, blank_folder, **changes, run__checkpoint_every=4, resume_from=folder)
        assert [metrics["step"] for metrics in resumed.steps] == list(range(step + 1, len(whole.steps) + 1))
        assert resumed.told == [warning for warning in whole.told if warning[1] > step]


KEY = re.compile(r"\b(data|adapter|sampling|objective|optim|run)\.([a-z_]+)(?:: ([a-z_]+))?")


def assert_remedy_is_real(warning: Event) -> None:
    """Every section.key that the remedy names is a key of the config, and a value after it is one that the key takes."""
    for section, key, value in KEY.findall(warning.fields["remedy"]):
        options = cast(type[Section], RunConfig.model_fields[section].annotation).model_fields
        assert key in options, f"{section}.{key}"
        if value:
            TypeAdapter(options[key].annotation).validate_python(value)


def test_a_remedy_that_is_not_real_is_seen() -> None:
    for remedy in ("raise optim.rate", "set objective.tis: on", "set adapter.type: loraa"):
        with pytest.raises((AssertionError, ValueError)):
            assert_remedy_is_real(Event(1, 0.0, "warning", {"remedy": remedy}))
    assert_remedy_is_real(Event(1, 0.0, "warning", {"remedy": "set adapter.type: lora, or objective.tis: token_mask"}))
