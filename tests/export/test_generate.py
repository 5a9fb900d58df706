"""Prompts answered by base and tuned model: against mlx_lm's own generation; and what is read, refused and shown."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate as theirs
from mlx_lm.utils import load

from engine.api import Engine, Run
from engine.cli import generate as cli
from engine.errors import InputError
from engine.takehome.choice import Chosen
from engine.takehome.generate import Answer, Answers, Ask, Generated, read_prompts, with_system
from engine.types import Message
from engine.worker import generating
from engine.worker.loading import base_folder, base_policy
from tests.support.families import write_family

from .support import hand_made

PROMPTS = ((Message("user", "What is 12+34?"),), (Message("system", "Be brief."), Message("user", "What is 5+6-7?")))


@pytest.mark.usefixtures("warm_workers")
def test_greedy_answers_are_those_of_mlx_lm(trained: Run) -> None:
    """Both sides of one batch, token for token what mlx_lm.generate gives for the base and for base with adapter."""
    home = trained.record.folder.parent.parent
    told: list[tuple[str, int, int]] = []
    found = asyncio.run(Engine(home).generate("taken", PROMPTS, Ask(20, checkpoint="last"), lambda *what: told.append(what)))
    assert (found.checkpoint.name, found.checkpoint.step) == ("last", 2) and told[0][0] == "loading"
    for side, adapter in (("base", None), ("tuned", str(trained.record.checkpoints_dir / "step-000002"))):
        model, tokenizer = load(str(home / "base"), adapter_path=adapter)
        for number, turns in enumerate(PROMPTS):
            chat = [{"role": turn.role, "content": turn.content} for turn in turns]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
            (answer,) = found.sides[side].answers[number]  # type: ignore[index]
            assert answer.text == theirs(model, tokenizer, ids, max_tokens=20)
            assert answer.finish in ("stop", "length") and 0 < answer.tokens <= 20
        assert found.sides[side].tokens_per_second > 0  # type: ignore[index]
    tree = found.as_dict()
    assert [row["messages"][-1]["content"] for row in tree["answers"]] == ["What is 12+34?", "What is 5+6-7?"]
    assert tree["tokens_per_second"].keys() == {"base", "tuned"}


def test_samples_differ_repeat_by_seed_and_follow_the_system_message(tmp_path: Path) -> None:
    """In this process: three samples of a prompt at temperature 1, twice with a seed, once with another."""
    made = hand_made(tmp_path, write_family(tmp_path / "base", "llama"), {"type": "dora"})
    request = {"run": str(made.folder), "adapter": str(made.adapters_dir), "sides": ["base", "tuned"], "samples": 3}
    request |= {"prompts": [[{"role": "user", "content": "Hi"}]], "max_tokens": 8, "temperature": 1.0}

    def texts(seed: int, **more: Any) -> dict[str, list[str]]:
        said: list[dict[str, Any]] = []
        generating.generate({**request, "seed": seed, **more}, said.append)
        return {line["side"]: [a["text"] for a in line["answers"][0]] for line in said if line["event"] == "answers"}

    first = texts(1)
    assert len(set(first["tuned"])) == 3 and first["tuned"] != first["base"]
    assert texts(1) == first
    assert texts(2)["tuned"] != first["tuned"]
    assert texts(1, plain=True)["tuned"] != first["tuned"]  # another context: no template
    turns = (Message("user", "Hi"),)
    assert [turn.role for turn in with_system(turns, "Be brief.")] == ["system", "user"]
    assert with_system(PROMPTS[1], "Other") == PROMPTS[1] and with_system(turns, None) == turns


def test_full_training_swaps_its_weights_from_disk(tmp_path: Path) -> None:
    """One copy in memory: the base is the folder's weights again, to the bit, after the tuned ones, and the other way round."""
    made = hand_made(tmp_path, write_family(tmp_path / "base", "qwen2"), {"type": "full", "rank": 16})
    policy = base_policy(*base_folder(made.folder))
    tokens = mx.array([[1, 2, 3, 4]])
    base = np.array(policy.model(tokens))
    sides = generating.Sides(policy, made.adapters_dir)
    seen = {}
    for side in ("tuned", "base", "tuned", "base"):
        with sides.of(side):
            seen.setdefault(side, []).append(np.array(policy.model(tokens)))
    assert all(np.array_equal(base, other) for other in seen["base"])
    assert np.array_equal(*seen["tuned"]) and np.abs(seen["tuned"][0] - base).max() > 0.1
    assert policy.reference_arrays() is None


def test_prompts_of_a_file(tmp_path: Path) -> None:
    """`prompt`, `question` and `messages`, as text or turns; the assistant's last turn is what is asked for."""
    rows: list[dict[str, Any]] = [
        {"prompt": "One?", "answer": "1"},
        {"question": "Two?"},
        {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Three?"}]},
        {"messages": [{"role": "user", "content": "Four?"}, {"role": "assistant", "content": "4"}]},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_prompts(tmp_path / "p.jsonl")
    assert [turns[-1].content for turns in found] == ["One?", "Two?", "Three?", "Four?"]
    assert [turn.role for turn in found[2]] == ["system", "user"]
    for bad in (
        '{"text": "x"}',
        '{"prompt": [{"role": "king", "content": "x"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}]}',
    ):
        (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n' + bad + "\n")
        with pytest.raises(InputError, match=r"bad\.jsonl:2: has no prompt"):
            read_prompts(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("ask", "prompts", "what"),
    [
        (Ask(max_tokens=0), PROMPTS, "no number of tokens"),
        (Ask(temperature=-1.0), PROMPTS, "no temperature"),
        (Ask(temperature=float("nan")), PROMPTS, "no temperature"),
        (Ask(samples=2), PROMPTS, "greedy samples are all the same"),
        (Ask(seed=-1), PROMPTS, "no seed"),
        (Ask(), (), "no prompt"),
        (Ask(), ((Message("user", "\udcff"),),), "is not UTF-8"),
        (Ask(checkpoint="9"), PROMPTS, "no checkpoint after step 9"),
    ],
)
def test_what_cannot_be_asked(trained: Run, ask: Ask, prompts: Any, what: str) -> None:
    with pytest.raises(InputError, match=what):
        asyncio.run(Engine(trained.record.folder.parent.parent).generate("taken", prompts, ask))


def test_what_a_model_writes_cannot_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """An escape sequence and a mark that turns text round come out as pictures of themselves; a cut answer says so."""
    answers = Answers(((Answer("a\x1b[31m\u202eb\nc", 3, "length"),),), 3, 0.5)
    prompt = ((Message("user", "x\x07"),),)
    cli._show(Generated("r", Chosen("best", Path("a"), 4), prompt, {"tuned": answers}))
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        "user: x\u2407",
        "tuned: a\u241b[31m\\u202eb",
        "c [cut]",
        "",
        "tuned (checkpoint best, after step 4): 3 tokens in 0.5 s, 6 tokens/s",
    ]


def test_side_by_side() -> None:
    """Two columns of one table, an answer a row."""
    both = {side: Answers(((Answer(f"{side} says", 2, "stop"),),), 2, 1.0) for side in ("base", "tuned")}
    table = cli._side_by_side(Generated("r", Chosen("best", Path("a"), 4), PROMPTS[:1], both), 0)  # type: ignore[arg-type]
    assert [str(column.header) for column in table.columns] == ["base", "tuned"]
    assert [[str(cell) for cell in column.cells] for column in table.columns] == [["base says"], ["tuned says"]]
