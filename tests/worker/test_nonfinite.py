"""A loss or a gradient that is not finite: the update is skipped, the rows are named, and too many in a row end the run."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.config import AdapterConfig, OptimConfig
from engine.runs.journal import Event
from engine.worker.batching import Batch, Row, pack
from engine.worker.blame import one_row, rows_to_blame
from engine.worker.loop import Cursor
from engine.worker.model import Policy, load_policy
from engine.worker.trainer import Trainer
from tests.support.live import events, finish, small_config

from .test_keys_trainer_summary import nll

POISON = ord("@")  # the byte-level tokenizer's ids are bytes
ROWS = [Row(n, (5, 6, 7), (8, 9, 10 + n), weight=0.1) for n in (4, 2, 0, 3)]
POISONED = Row(1, (5, 6, 7), (8, POISON, 11), weight=0.1)


@pytest.fixture(scope="session")
def poisoned_folder(blank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blank model with a head of its own, and an embedding that is not a number for one token: whoever reads that token
    computes nan, all others are as they were."""
    folder = tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(blank_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    embedding = np.array(weights["model.embed_tokens.weight"])
    weights["lm_head.weight"] = mx.array(embedding)
    embedding[POISON] = np.nan
    weights["model.embed_tokens.weight"] = mx.array(embedding)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def trainer_on(folder: Path, kind: str) -> tuple[Policy, Trainer]:
    policy = load_policy(folder, AdapterConfig.model_validate({"type": kind, "rank": 4}), seed=0)
    return policy, Trainer(policy, OptimConfig(), total_updates=1, seed=0)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("micro_batch_rows", [1, 2, 8])
def test_the_one_row_that_reads_a_poisoned_token_is_blamed(poisoned_folder: Path, kind: str, micro_batch_rows: int) -> None:
    """Alone, beside another row, and beside all others of its micro-batch; weights and optimizer stay as they are."""
    policy, trainer = trainer_on(poisoned_folder, kind)
    batches = pack([*ROWS, POISONED], micro_batch_rows)
    before, moments = policy.trainable(), trainer.state()
    found = trainer.update(0, batches, nll(policy))
    assert (found.applied, found.moved, math.isnan(found.loss)) == (False, None, True)
    assert trainer.blame(0, batches, nll(policy)) == [1]
    assert trainer.weights_are_finite() == (kind == "lora")
    for name, value in policy.trainable().items():
        assert mx.array_equal(value, before[name], equal_nan=True).item()
    for name, value in trainer.state().items():
        assert mx.array_equal(value, moments[name]).item()
    assert trainer.update(0, pack(ROWS, micro_batch_rows), nll(policy)).applied


def test_one_row_of_a_batch_has_its_share_of_the_loss(make_policy: Callable[..., Policy]) -> None:
    """Two prompts, three rows: the losses of the rows alone sum to the batch's, and every array is the row's own."""
    policy = make_policy("lora")
    rows = [Row(0, (5, 6), (8, 9), weight=0.1), Row(1, (5, 6, 7), (8, 9, 10), weight=0.2), Row(2, (5, 6), (11, 12), weight=0.3)]
    old = [np.full(len(row.tokens), -1.0 - row.index, dtype=np.float32) for row in rows]
    (batch,) = pack(rows, 8, old=old)
    parts = [one_row(batch, place) for place in range(3)]
    values = [nll(policy)(part)[0].item() for part in parts]
    assert sum(values) == pytest.approx(nll(policy)(batch)[0].item(), rel=1e-5)
    for place, part in enumerate(parts):
        row = rows[int(batch.index[place])]
        assert part.index.tolist() == [row.index] and part.weight.tolist() == [np.float32(row.weight)]
        assert part.prompts[0, : part.prompt_lengths[0]].tolist() == list(row.prompt) and part.prompt_row.tolist() == [0]
        assert part.old is not None and part.old[0, 0] == -1.0 - row.index


def test_who_is_blamed_where_only_a_sum_is_not_finite() -> None:
    """Micro-batches of 2: (0, 1), (2, 3), (4,). The second fails as a whole only: both its rows. No part fails: all rows."""
    batches = pack([Row(n, (5, 6, 7), (8, 9), weight=0.1) for n in range(5)], 2)
    tried: list[list[int]] = []

    def together(number: int, batch: Batch) -> bool:
        tried.append(batch.index.tolist())
        return not (number == 1 and len(batch.index) == 2)

    assert rows_to_blame(batches, together) == [2, 3]
    assert tried == [[0, 1], [2, 3], [4], [2], [3]]  # no single rows of micro-batches that are finite
    assert rows_to_blame(batches, lambda number, batch: True) == [0, 1, 2, 3, 4]


def test_the_count_in_a_row_is_part_of_the_cursor() -> None:
    """And a checkpoint that was written before there was one counts from 0."""
    tree = Cursor(done=3, nonfinite=2).as_dict()
    assert Cursor.from_dict(json.loads(json.dumps(tree))).nonfinite == 2
    del tree["nonfinite"]
    assert Cursor.from_dict(tree).nonfinite == 0


def warnings(found: list[Event]) -> list[Event]:
    return [event for event in found if event.type == "warning" and event.fields["kind"] == "non-finite"]


@pytest.mark.usefixtures("warm_workers")
async def test_a_run_recovers_from_a_row_that_it_names(poisoned_folder: Path, tmp_path: Path) -> None:
    """8 rows, 4 a step, 6 steps: three epochs, each of which meets the poisoned row once. All other steps are applied, the run
    finishes although two skipped updates in a row would end it, and the newest kept checkpoint outlives newer ones."""
    rows = [{"prompt": f"{letter}?", "completion": f"{letter}!"} for letter in "abcdefg"]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in [*rows, {"prompt": "@?", "completion": "@!"}]))
    (tmp_path / "valid.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = small_config(
        "sft",
        model=str(poisoned_folder),
        data={"train": str(tmp_path / "rows.jsonl"), "valid": str(tmp_path / "valid.jsonl")},
        sampling__prompts_per_step=4,
        optim__max_nonfinite=2,
        optim__micro_batch_rows=2,
        run__steps=6,
        run__keep_checkpoints=1,
        run__checkpoint_every=1,
    )
    run, state = await finish(tmp_path, config)
    assert state.state == "finished", state.failure
    found = events(run)
    skipped = warnings(found)
    steps = [event.fields["step"] + 1 for event in skipped]  # of the step under way: `step` counts those that are done
    assert len(skipped) == 3 and len({(step + 1) // 2 for step in steps}) == 3
    assert all(len(event.fields["rows"]) == 1 and "completions" not in event.fields for event in skipped)
    assert all(event.fields["lines"] == [8] for event in skipped)  # where the poisoned row stands in the file
    saved = [event.fields for event in found if event.type == "checkpoint" and event.fields["reason"] == "non-finite"]
    assert [entry["path"] for entry in saved] == [event.fields["checkpoint"] for event in skipped]
    left = {path.name for path in run.record.checkpoints_dir.iterdir()}
    assert left == {"step-000006", Path(saved[-1]["path"]).name}


@pytest.mark.usefixtures("warm_workers")
async def test_weights_that_blow_up_end_the_run_and_it_says_what_to_do(tmp_path: Path) -> None:
    """SGD at 1e30, four mini-batches a step: the first update breaks the weights, the three others of step 1 are skipped, and
    the third ends the run. Resumed, the run takes up the count: the same update is skipped and ends it at once."""
    config = small_config(
        "gspo",
        optim={"name": "sgd", "learning_rate": 1e30, "max_grad_norm": 1e30, "warmup": 0, "max_nonfinite": 3},
        objective__minibatches=4,
        objective__beta=0.1,  # completions without an advantage count too: no mini-batch is empty
    )
    run, state = await finish(tmp_path, config)
    assert state.state == "failed"
    (failed,) = [event for event in events(run) if event.type == "failed"]
    assert re.search(r"step 1: 3 updates in a row .*checkpoints/step-000000\.3", failed.fields["error"])
    assert failed.fields["kind"] == "input" and "learning_rate" in failed.fields["remedy"]
    skipped = warnings(events(run))
    assert [event.fields["update"] for event in skipped] == [1, 2, 3]
    for event in skipped:
        rows, completions = event.fields["rows"], event.fields["completions"]
        assert len(rows) == 4 and len({prompt for prompt, _ in completions}) == 1  # one group of four is a mini-batch here
        assert [member for _, member in completions] == [row % 4 for row in rows]
    kept = run.record.checkpoints_dir / "step-000000.3"
    assert (kept / "kept").read_text() == "non-finite\n"
    state_of = json.loads((kept / "state.json").read_text())["cursor"]
    assert state_of["nonfinite"] == 2 and len(state_of["work"]["groups"]) == 4 and len(state_of["work"]["updates"]) == 3
    seen = len(events(run))
    await run.resume()
    assert (await run.wait()).state == "failed"
    again = events(run)[seen:]
    assert [event.fields["update"] for event in warnings(again)] == [3]
    assert not [event for event in again if event.type == "checkpoint"]  # it is there already


@pytest.mark.usefixtures("warm_workers")
@pytest.mark.parametrize("recipe", ["grpo", "rloo"])
async def test_scores_that_are_no_numbers_are_not_taken_for_equal_rewards(tmp_path: Path, recipe: str) -> None:
    """SGD at 1e30 and a single update a step, no KL in the loss: the broken weights sample garbage of equal rewards, whose
    gradient would be exactly zero. Every later step's scores are not finite, so three are skipped, and the run ends."""
    config = small_config(
        recipe,
        objective__minibatches=1,
        objective__beta=0.0 if recipe == "grpo" else 0.05,
        optim__name="sgd",
        optim__learning_rate=1e30,
        run__steps=8,
        run__eval_every=8,
    )
    run, state = await finish(tmp_path, config)
    assert state.state == "failed" and state.failure is not None and "3 updates in a row" in state.failure["error"]
    found = warnings(events(run))
    assert len(found) == 3 and all(warning.fields["completions"] for warning in found)
    assert state.series["skipped"].values[-1] == 1
