"""Keyed draws, the schedule, one update, and the figures that a run ends with."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import click
import mlx.core as mx
import numpy as np
import pytest
import typer
from mlx_lm.generate import setup_arg_parser

from engine.cli.app import app
from engine.config import ChatConfig, OptimConfig, QuantizeConfig, RunConfig
from engine.runs.record import RunRecord
from engine.runs.state import RunState
from engine.takehome.generate import is_plain_text
from engine.types import Message
from engine.worker.batching import Row, pack
from engine.worker.keys import generator, key32, step_rows
from engine.worker.logprobs import completion_logprobs
from engine.worker.losses import supervised_loss
from engine.worker.model import Policy
from engine.worker.summary import generate_command, paired_difference, summarise
from engine.worker.trainer import Loss, Trainer, learning_rate
from tests.support.live import small_config


def test_every_epoch_uses_every_row_once_in_a_new_order() -> None:
    """10 rows, 4 a step: steps 1 to 5 are two epochs, and step 3 spans them."""
    taken = [row for step in range(1, 6) for row in step_rows(10, 4, step, seed=7)]
    assert Counter(taken[:10]) == Counter(taken[10:]) == Counter(range(10))
    assert taken[:10] != taken[10:]
    assert step_rows(10, 4, 3, seed=7) == taken[8:12]
    assert step_rows(10, 4, 1, seed=8) != taken[:4]


def test_more_rows_a_step_than_there_are_repeats_epochs() -> None:
    assert Counter(step_rows(3, 7, 1, seed=0)) == Counter({0: 2, 1: 2, 2: 2}) + Counter(step_rows(3, 7, 1, seed=0)[6:])


def test_keys_tell_their_parts_apart() -> None:
    """1, 23 and 12, 3 must not be one key; neither must a number and its text."""
    found = {key32(1, 23), key32(12, 3), key32("1", 23), key32(1, "23"), key32(123)}
    assert len(found) == 5
    assert generator(0, "a").integers(1 << 30) == generator(0, "a").integers(1 << 30)


def test_the_schedule_by_hand() -> None:
    """20 updates, warm-up 0.2 of them = 4: 1/4, 2/4, 3/4, 4/4; then 16 updates: cosine is 1 at the first, 1/2 after 8; linear
    is 1 - 8/16 after 8."""
    for schedule, middle in (("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)):
        config = OptimConfig.model_validate({"learning_rate": 2.0, "schedule": schedule, "warmup": 0.2})
        rates = [learning_rate(config, update, 20) for update in range(20)]
        assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
        assert rates[12] == pytest.approx(2.0 * middle)
    assert learning_rate(OptimConfig(learning_rate=1.0, schedule="cosine", warmup=0.0), 0, 1) == 1.0


def nll(policy: Policy) -> Loss:
    return lambda batch: supervised_loss(
        completion_logprobs(policy, batch, 1.0), mask=mx.array(batch.mask), weight=mx.array(batch.weight)
    )


ROWS = [Row(0, (5, 6, 7), (8, 9, 10), weight=0.2), Row(1, (5, 6), (11, 12), weight=0.2)]


def test_an_sgd_update_moves_weights_against_the_clipped_gradient(make_policy: Callable[..., Policy]) -> None:
    """x' = x - rate * g * min(1, max_norm / |g|), with |g| over all arrays: the step's length is rate * max_norm when clipped."""
    policy = make_policy("full")
    config = OptimConfig.model_validate(
        {"name": "sgd", "learning_rate": 0.5, "schedule": "constant", "warmup": 0, "max_grad_norm": 0.1}
    )
    trainer = Trainer(policy, config, total_updates=1, seed=0)
    before = {name: np.array(value) for name, value in policy.trainable().items()}
    result = trainer.update(0, pack(ROWS, 1), nll(policy))
    moved = np.sqrt(sum(float(((np.array(value) - before[name]) ** 2).sum()) for name, value in policy.trainable().items()))
    assert result.applied and result.grad_norm > 0.1 and result.moved is not None and result.moved > 0.5
    assert moved == pytest.approx(0.5 * 0.1, rel=1e-3)


def test_a_gradient_that_is_not_finite_changes_nothing(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("lora")
    trainer = Trainer(policy, OptimConfig(), total_updates=1, seed=0)
    before, moments = policy.trainable(), trainer.state()
    loss = nll(policy)
    result = trainer.update(0, pack(ROWS, 2), lambda batch: (loss(batch)[0] * float("nan"), loss(batch)[1]))
    assert not result.applied and math.isnan(result.loss)
    for name, value in policy.trainable().items():
        assert mx.array_equal(value, before[name]).item()
    for name, value in trainer.state().items():
        assert mx.array_equal(value, moments[name]).item()


def test_an_update_without_rows_has_a_zero_gradient(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("lora")
    trainer = Trainer(policy, OptimConfig(schedule="constant", warmup=0), total_updates=1, seed=0)
    before = policy.trainable()
    result = trainer.update(0, [], nll(policy))
    assert (result.loss, result.grad_norm, result.applied, result.moved) == (0.0, 0.0, True, None)
    for name, value in policy.trainable().items():
        assert mx.array_equal(value, before[name]).item()


def test_paired_difference_by_hand() -> None:
    """Differences 1, 0, 1, 0 with counts 1: mean 1/2; s^2 = 4/3 * (4 * 1/4) / 16 = 1/12; 1.96 s = 0.5658."""
    found = paired_difference([0, 0, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1])
    assert found["difference"] == pytest.approx(0.5)
    assert found["high"] == pytest.approx(0.5 + 1.96 * math.sqrt(1 / 12))
    assert found["low"] == pytest.approx(0.5 - 1.96 * math.sqrt(1 / 12))


def test_paired_difference_of_a_loss_weighs_tokens() -> None:
    """Rows of 1 and 3 tokens whose sums fall by 1 and by 3: the loss per token falls by 4/4 = 1, with no spread."""
    found = paired_difference([5.0, 9.0], [4.0, 6.0], [1.0, 3.0])
    assert (found["difference"], found["low"], found["high"]) == (-1.0, -1.0, -1.0)


def test_the_command_that_uses_the_result_can_be_pasted() -> None:
    """Quoted for a shell, with the system message; a prompt too long for a command line, or that mlx_lm would change, is left to
    the user. mlx_lm's own parser reads it, with what the config says of chats."""
    run, asked = RunRecord(Path("/runs/my-run")), [Message("system", "Be brief."), Message("user", "What's 1+1?")]

    def parsed(example: Sequence[Message] = asked, **chat: Any) -> Any:
        words = shlex.split(generate_command(_config(chat=ChatConfig(**chat)), run, Path("/m odel"), example))
        assert words[0] == "mlx_lm.generate"
        return setup_arg_parser().parse_args(words[1:])

    plain = parsed()
    assert (plain.model, plain.adapter_path) == ("/m odel", "/runs/my-run/adapters")
    assert (plain.system_prompt, plain.prompt) == ("Be brief.", "What's 1+1?")
    assert (list(plain.extra_eos_token), plain.chat_template_config, plain.ignore_chat_template) == ([], None, False)
    chat = parsed(stop=["<|im_end|>", "</s>"], variables={"enable_thinking": False, "tone": "it's"})
    assert chat.extra_eos_token == ["<|im_end|>", "</s>"] and chat.prompt == "What's 1+1?"
    assert json.loads(chat.chat_template_config) == {"enable_thinking": False, "tone": "it's"}
    text = parsed((), stop=["</s>"])
    assert text.ignore_chat_template and text.extra_eos_token == ["</s>"]
    for prompt in ("x" * 201, "-1 + 1?", "a\\nb"):
        assert parsed([Message("user", prompt)]).prompt == "YOUR PROMPT"


@pytest.mark.parametrize(
    "changes",
    [
        {"quantize": QuantizeConfig(bits=4)},
        {"chat": ChatConfig(template="tool_use")},
        {"chat": ChatConfig(add_tokens=["<plan>"])},
        {"chat": ChatConfig(stop=["7"])},
    ],
)
def test_what_mlx_lm_has_no_option_for_is_asked_of_the_product(changes: dict[str, Any]) -> None:
    """It would load or render in another way: `droid-tune generate`, whose own parser reads the command."""
    run, config = RunRecord(Path("/runs/my-run")), _config(**changes)

    def parsed(example: Sequence[Message]) -> dict[str, Any]:
        words = shlex.split(generate_command(config, run, Path("/m"), example))
        verbs = cast(click.Group, typer.main.get_command(app)).commands
        assert words[0] == "droid-tune"
        return verbs[words[1]].make_context(words[1], words[2:]).params

    asked = parsed([Message("system", "Be brief."), Message("user", "What's 1+1?")])
    assert (asked["run"], list(asked["prompts"]), asked["system"]) == ("my-run", ["What's 1+1?"], "Be brief.")
    text = parsed(())
    assert text["plain"] is True and len(text["prompts"]) == 1
    for example, is_text in (((), True), ([Message("user", "say --plain x")], False)):
        assert is_plain_text(RunState(result={"command": generate_command(config, run, Path("/m"), example)})) is is_text


def _config(**sections: Any) -> RunConfig:
    return small_config("grpo").model_copy(update=sections)


def test_a_loss_is_summarised_with_its_own_sign() -> None:
    """Scores are negative losses: base 2.0, tuned 1.5 is a difference of -0.5, and low < high."""
    base = {"step": 0, "score": -2.0, "rows": [-2.0, -2.0, -2.0], "counts": [1.0, 1.0, 1.0]}
    best = {"step": 4, "score": -1.5, "rows": [-1.4, -1.5, -1.6], "counts": [1.0, 1.0, 1.0]}
    found = summarise(base, best, best, -1.0)
    assert (found["base"], found["tuned"], found["tuned_step"], found["n"]) == (2.0, 1.5, 4, 3)
    assert found["difference"] == pytest.approx(-0.5)
    assert found["low"] < found["difference"] < found["high"]
