"""Rows of plain text: read alike from every kind of file, learned token for token, refused by the methods that need a prompt."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine import config as configs
from engine import share
from engine.api import Engine
from engine.data import formats
from engine.data.examples import detect
from engine.data.formats import Problem, Row
from engine.data.structure import duplicate_lines, keys
from engine.data.targets import Targets, target_rows
from engine.data.template import ChatTokenizer
from engine.data.validate import validate
from engine.errors import InputError
from engine.types import Example
from tests.support.chats import FAMILIES, write_family
from tests.support.data_files import KINDS, write_file
from tests.support.hub import Hub, Repo, use
from tests.support.live import events, small_config

TEXTS = ['He said "2, 3; 4"\n\tand\u2028 日本語 🎲', "[1, 2]", "  two spaces <|im_end|> before\r\n"]
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra `parquet` is not installed")
EVERY_KIND = [pytest.param(kind, marks=needs_pyarrow) if kind == "parquet" else kind for kind in KINDS]


def example(text: str, line: int = 1) -> Example:
    found = formats.to_example(Row(line, {"text": text}), "text", "sft", None)
    assert isinstance(found, Example)
    return found


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_text_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    for zipped in (False, True):
        path = write_file(tmp_path, kind, [{"text": text, "source": "web"} for text in TEXTS], zipped=zipped)
        data = formats.load(path, kind="sft")
        assert (data.format, data.problems) == ("text", ())
        assert [(e.messages, e.completion, e.answer, e.turns) for e in data.examples] == [((), t, None, ()) for t in TEXTS]
        assert data.examples[0].columns["source"] == "web"


def test_text_is_what_no_other_format_is() -> None:
    assert detect({"text": "a", "label": 1}) == "text"
    assert detect({"text": "a", "prompt": "b", "completion": "c"}) == "prompt+completion"
    assert detect({"text": "a", "chosen": "b", "rejected": "c"}) == "preference"
    assert detect({"text": None}) is None


REFUSED: dict[str, tuple[dict[str, Any], str | None, str]] = {  # row, data.system, kind of the problem
    "empty": ({"text": " \n"}, None, "empty"),
    "no text": ({"text": ["a"]}, None, "wrong-type"),
    "its own system message": ({"text": "a", "system": "S"}, None, "no-chat"),
    "a system message for all": ({"text": "a"}, "S", "no-chat"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_text_that_cannot_be_used(name: str) -> None:
    fields, system, kind = REFUSED[name]
    found = formats.to_example(Row(3, fields), "text", "sft", system)
    assert isinstance(found, Problem) and (found.line, found.kind) == (3, kind) and found.remedy


def config(path: Path, method: str, **data: Any) -> configs.RunConfig:
    tree = {"model": "demo", "method": method, "data": {"train": str(path), **data}}
    return configs.parse(
        json.dumps(tree | ({} if method == "sft" else {"rewards": [{"name": "answer"}]})), base=path.parent
    ).config


def test_methods_that_need_a_prompt_refuse_text(tmp_path: Path) -> None:
    path = write_file(tmp_path, "jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(InputError, match="grpo cannot use rows of plain text") as caught:
        validate(path, "grpo")
    assert "method: sft" in caught.value.remedy
    with pytest.raises(InputError, match="no prompt to reply to"):
        formats.load_training_data(config(path, "grpo"))
    with pytest.raises(InputError, match="all of it is learned") as caught:
        formats.load_training_data(config(path, "sft", targets="last"))
    assert caught.value.where == "data.targets"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_a_text_but_the_first_is_learned(tmp_path: Path, family: str) -> None:
    """The tokenizer puts <s> before a bare text: it is the one token that nothing predicts. Then the text, whatever chat template
    there is, and once the token that ends it."""
    chat = ChatTokenizer(write_family(tmp_path / family, family))
    tokenizer = Tokenizer.from_file(str(chat.folder / "tokenizer.json"))
    end = tokenizer.token_to_id(FAMILIES[family].end)
    for text in (*TEXTS, f"ends already{FAMILIES[family].end}"):
        ids = tokenizer.encode(text).ids
        assert ids[0] == tokenizer.token_to_id("<s>")
        for targets in ("assistant", "all"):
            wanted: Targets = targets  # type: ignore[assignment]
            (row,) = target_rows(chat, example(text), wanted)
            assert list(row.prompt + row.tokens) == (ids if ids[-1] == end else [*ids, end])
            assert len(row.prompt) == 1 and set(row.mask) == {1} and len(row.mask) == len(row.tokens)


def test_a_tokenizer_without_a_first_token_of_its_own() -> None:
    """Then the text's own first token is what nothing predicts."""
    chat = ChatTokenizer(share.demo_model())
    (row,) = target_rows(chat, example("2+2=4"), "assistant")
    assert list(row.prompt + row.tokens) == [*chat.encode("2+2=4"), chat.eos_id] and row.mask == (1,) * 5
    (row,) = target_rows(chat, example("2"), "assistant")
    assert row.tokens == (chat.eos_id,), "one character and its end"


def test_texts_are_told_apart_by_all_that_they_say(tmp_path: Path) -> None:
    """For repeats, for rows that training and held-out data share, and for the split: equal texts stay on one side."""
    same = [example("a", 1), example("b", 2), example("a", 3)]
    assert duplicate_lines(same) == [3] and keys(same[0])[0] == keys(same[2])[0] != keys(same[1])[0]
    assert formats.split_held_out([example("x", i) for i in range(9)] + [example("y", 9)], None, 1, 0)[1] == (example("y", 9),)
    train = write_file(tmp_path, "jsonl", [{"text": str(i)} for i in range(5)], stem="train")
    write_file(tmp_path, "jsonl", [{"text": "3"}], stem="valid")
    found = validate(tmp_path, "sft", tokenizer=share.demo_model(), max_completion_tokens=1)
    assert [(group.kind, group.lines) for group in found.warnings] == [("overlap", (4,))], "and no word of a chat template"
    assert found.completion_tokens is not None and (found.completion_tokens.max, found.verdict) == (1, "ready with warnings")
    train.write_text('{"text": "a long one"}\n')
    found = validate(train, "sft", tokenizer=share.demo_model(), max_completion_tokens=4)
    assert found.completion_tokens is not None and found.completion_tokens.over_limit == 1


async def test_a_run_on_text_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Shards and a validation split, fetched before the start; the worker, which has no network, reads them by their commit. One
    text is over the limit: it is left out, and counted."""
    texts = [f"{i}+{i}={2 * i}" for i in range(20)]
    shards = {f"data/train-{i:05d}-of-00002.jsonl": lines(texts[i::2]) for i in range(2)}
    shards["data/train-00001-of-00002.jsonl"] += lines(["1+" * 200])
    with Hub({"o/sums": Repo({**shards, "data/validation.jsonl": lines(["3+4=7", "1+1=2"])})}) as hub:
        use(hub, tmp_path / "home", monkeypatch)
        commit, _ = hub.repos["o/sums"].at("main") or ("", {})
        wanted = small_config("sft", data__train="o/sums", run__steps=2, sampling__max_completion_tokens=32)
        with caplog.at_level(logging.WARNING):
            run = await Engine(tmp_path / "runs").start(wanted)
        hub.close()
        state = await run.wait()
    assert state.state == "finished" and state.step == 2, run.record.log_file.read_text()
    written = configs.load(run.record.config_file).config.data
    assert (written.train, written.valid) == (f"o/sums@{commit}#train", f"o/sums@{commit}#validation")
    seen = events(run)
    started = next(event for event in seen if event.type == "started")
    created = next(event for event in seen if event.type == "created")
    assert started.fields["files"][written.train] == created.fields["data_sha256"]
    warned = {event.fields["kind"]: event.fields["message"] for event in seen if event.type == "warning"}
    assert warned.get("rows-left-out", "").startswith("1 of 21 training rows are left out")
    assert "--ignore-chat-template" in (state.result or {})["command"]
    assert caplog.text == ""


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
