"""GRPO steps of mlx-lm-lora, timed: run by peer.py with the Python of the peer's own environment, which has nothing of ours.

Reads one request as JSON from stdin (model, prompts as token ids, group, max_tokens, rank, batch_size, steps; warm: whether one
batch comes first that is not counted; grad_checkpoint) and prints one JSON line. No completion stops early: the tokenizer's end
tokens are taken away.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm_lora.trainer import grpo_trainer


def alternating(prompts: list[str], completions: list[str], answer: list[str], types: Any = None) -> list[float]:
    """Every other completion is right: the reward that our side has, too."""
    return [float(place % 2) for place in range(len(completions))]


class Stamps:
    """When each call of the trainer's sampler began and ended, what it sampled, and mlx's peaks within the calls and outside."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float, float, float, int]] = []  # (start, end, CPU start, CPU end, tokens)
        self.rollout_peak = self.update_peak = 0  # bytes, the most of any call, and of all that lies after a call
        self._sample = grpo_trainer.generate_grpo

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.end()
        start, cpu = time.perf_counter(), time.process_time()
        found = self._sample(*args, **kwargs)
        tokens = sum(completion.size for completion in found[0])
        self.calls.append((start, time.perf_counter(), cpu, time.process_time(), tokens))
        self.rollout_peak = max(self.rollout_peak, peak_since())
        return found

    def end(self) -> None:
        """What followed the last call, the update, is over."""
        found = peak_since()
        if self.calls:
            self.update_peak = max(self.update_peak, found)


def peak_since() -> int:
    """mlx's peak since the last time that this was asked, in bytes."""
    found = max(mx.get_peak_memory(), mx.get_active_memory())  # the first is 0 where nothing was allocated
    mx.reset_peak_memory()
    return found


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each counted step, with the share of its rollout, and the peaks of all steps above the weights."""
    mx.random.seed(0)
    model, tokenizer = load(request["model"])
    if mx.default_device().type == mx.DeviceType.cpu:
        model.set_dtype(mx.float32)  # as ours: half precision has no fast kernel there
    tokenizer._eos_token_ids = set()
    model.freeze()
    adapter = {"rank": request["rank"], "scale": 20.0, "dropout": 0.0}
    linear_to_lora_layers(model, len(model.layers), adapter)
    mx.eval(model.parameters())
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    data = [(ids, [0], str(place), "", None) for place, ids in enumerate(request["prompts"])]
    optimizer = optim.Adam(learning_rate=1e-5)
    optimizer.init(model.trainable_parameters())
    mx.eval(optimizer.state)  # a first step holds its moments, too
    stamps = Stamps()
    grpo_trainer.generate_grpo = stamps
    grpo_trainer.mx.save_safetensors = lambda *args, **kwargs: None  # the trainer saves at its end

    def train(iterations: int, passes: int, grad_checkpoint: bool) -> None:
        grpo_trainer.train_grpo(
            model,
            None,
            tokenizer,
            optimizer,
            data,
            None,
            reward_funcs=[alternating],
            args=grpo_trainer.GRPOTrainingArgs(
                batch_size=request["batch_size"],
                iters=iterations,
                gradient_accumulation_steps=passes,
                group_size=request["group"],
                max_completion_length=request["max_tokens"],
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                beta=0.0,
                epsilon=0.2,
                epsilon_high=0.2,
                steps_per_report=10**9,
                steps_per_save=10**9,
                adapter_file="/dev/null",
                max_seq_length=max(len(ids) for ids in request["prompts"]),
                grad_checkpoint=grad_checkpoint,
            ),
            end_answer_token="",
        )

    if request["warm"]:
        train(1, 1, False)
    warmed = len(stamps.calls)
    passes = len(data) // request["batch_size"]  # batches of a step
    train(request["steps"] * passes, passes, request["grad_checkpoint"])
    end, cpu_end = time.perf_counter(), time.process_time()
    stamps.end()
    counted = stamps.calls[warmed:]
    starts = [call[0] for call in counted[::passes]] + [end]
    cpu_starts = [call[2] for call in counted[::passes]] + [cpu_end]
    timed = []
    for step in range(request["steps"]):
        calls = counted[step * passes : (step + 1) * passes]
        timed.append(
            {
                "seconds": starts[step + 1] - starts[step],
                "cpu_seconds": cpu_starts[step + 1] - cpu_starts[step],
                "rollout_seconds": sum(call[1] - call[0] for call in calls),
                "rollout_cpu_seconds": sum(call[3] - call[2] for call in calls),
                "tokens": sum(call[4] for call in calls),
            }
        )
    return {
        "version": importlib.metadata.version("mlx-lm-lora"),
        "mlx": importlib.metadata.version("mlx"),
        "steps": timed,
        "peak_bytes_above_weights": max(stamps.rollout_peak, stamps.update_peak) - weights,
        "rollout_peak_bytes_above_weights": stamps.rollout_peak - weights,
        "update_peak_bytes_above_weights": stamps.update_peak - weights,
    }


if __name__ == "__main__":
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(json.loads(sys.stdin.readline()))
    answers.write(json.dumps(found) + "\n")
