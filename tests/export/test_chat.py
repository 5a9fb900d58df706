"""A chat with a run's model: streamed, stopped, gone on with; typed at a terminal, and from a pipe."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from engine.cli.chat import Conversation
from engine.errors import InputError
from engine.runs.record import RunRecord
from engine.takehome.chat import Chat, End
from engine.takehome.generate import Side
from engine.types import Message
from engine.worker import generating
from tests.support.families import write_family
from tests.support.live import await_condition

from .support import hand_made

HI = (Message("user", "What is 12+34?"),)
DEADLINE_SECONDS = 120.0


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run whose random model never stops by itself, since its stop token lies outside the vocabulary, and wants no system
    turn: an answer is under way for as long as a test takes to end it."""
    home = tmp_path_factory.mktemp("endless")
    base = write_family(home / "base", "llama")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "eos_token_id": config["vocab_size"]}))
    path = base / "tokenizer_config.json"
    config = json.loads(path.read_text())
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    path.write_text(json.dumps({**config, "chat_template": refusal + config["chat_template"]}))
    return hand_made(home, base, {"type": "lora"})


async def whole(chat: Chat, messages: Sequence[Message], side: Side, limit: int) -> tuple[str, End]:
    """The pieces together, and the end."""
    pieces = [piece async for piece in chat.answer(messages, side, max_tokens=limit)]
    end = pieces.pop()
    assert isinstance(end, End)
    return "".join(piece for piece in pieces if isinstance(piece, str)), end


def test_answers_are_streamed_stopped_and_gone_on_with(endless: RunRecord) -> None:
    """What the pieces make is the end's text, and that of the verb `generate`; an answer that is left ends, and the next is
    whole; a chat that the template refuses is refused alone; a worker that dies is one clear error."""
    said: list[dict[str, Any]] = []
    request = {"run": str(endless.folder), "adapter": str(endless.adapters_dir), "sides": ["base", "tuned"], "samples": 1}
    turns = [{"role": "user", "content": HI[0].content}]
    generating.generate({**request, "prompts": [turns], "max_tokens": 5, "temperature": 0, "seed": 0}, said.append)
    expected = {line["side"]: line["answers"][0][0] for line in said if line["event"] == "answers"}

    async def go() -> None:
        async with Chat(endless) as chat:
            for side in ("base", "tuned"):
                text, end = await whole(chat, HI, side, 5)
                assert {"text": text, "tokens": end.tokens, "finish": end.finish} == expected[side]
                assert end.text == text and end.prompt_tokens > 10 and end.tokens_per_second > 0
            async with aclosing(chat.answer(HI, "tuned", max_tokens=100_000)) as pieces:
                assert isinstance(await anext(pieces), str)  # the first of very many
            text, end = await asyncio.wait_for(whole(chat, HI, "tuned", 5), 60)
            assert (end.finish, end.tokens, text) == ("length", 5, expected["tuned"]["text"])
            with pytest.raises(InputError, match="the chat template refuses the messages: no system turn"):
                await whole(chat, (Message("system", "S"), *HI), "tuned", 5)
            assert (await whole(chat, HI, "tuned", 5))[1].text == end.text
            os.kill(chat.pid, signal.SIGKILL)
            with pytest.raises(InputError, match="was ended by signal 9"):
                await whole(chat, HI, "tuned", 5)
            assert chat.is_gone

    asyncio.run(go())


def test_commands(tmp_path: Path) -> None:
    """What each does to the conversation, and that none is guessed at."""
    said = Conversation("S", 0.0)
    assert said.sides == ("tuned",)
    assert said.command("/base") == "the base model answers" and said.sides == ("base",)
    assert said.command("/both") == "both models answer" and said.sides == ("base", "tuned")
    assert said.command("/both") == "the tuned model answers"
    assert said.command("/temperature 0.7") == "temperature 0.7" and said.temperature == 0.7
    assert said.command("/system") == "no system message" and said.messages == []
    said.command("/system  Be brief. ")
    said.turns += [Message("user", "Hé"), Message("assistant", "Hi\n")]
    assert [message.content for message in said.messages] == ["Be brief.", "Hé", "Hi\n"]
    said.command(f"/save {tmp_path / 'c.jsonl'}")
    row = json.loads((tmp_path / "c.jsonl").read_text(encoding="utf-8"))
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert "/base" in said.command("/help")
    for wrong, what in (
        ("/sav x", "no command /sav"),
        ("/temperature hot", "'hot' is no temperature"),
        ("/save", "needs the name"),
    ):
        with pytest.raises(InputError, match=what):
            said.command(wrong)
    with pytest.raises(InputError, match="is there already"):
        said.command(f"/save {tmp_path / 'c.jsonl'}")
    assert said.command("/reset") == "the chat begins anew" and len(said.messages) == 1


def environment(record: RunRecord) -> dict[str, str]:
    return {
        **os.environ,
        "DROID_TUNE_HOME": str(record.folder.parent.parent),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TERM": "xterm",
    }


def test_lines_from_a_pipe(endless: RunRecord) -> None:
    """An answer for each line, in its order, and nothing else on stdout; /both gives two. The chat goes on from what was said."""
    lines = ["What is 12+34?", "/base", "What is 12+34?", "/both", "/reset", "What is 12+34?", "/nothing"]
    command = [sys.executable, "-P", "-m", "tui", "chat", "made", "--max-tokens", "12"]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", env=environment(endless), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second, *both = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in both] == ["base", "tuned"]
    assert both[1] == f"tuned: {first}"  # greedy, and the same chat again after /reset
    assert second != both[0].partition(": ")[2]  # with the first turn before it
    assert done.stderr.splitlines()[:3] == ["the base model answers", "both models answer", "the chat begins anew"]
    assert "no command /nothing" in done.stderr


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(endless: RunRecord) -> None:
    """At a real terminal: text comes piece by piece, ctrl+c ends it and not the chat, a command follows, ctrl+d ends it all. The
    child begins with the signal ignored, as whatever a shell starts in the background does: the key must work all the same."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child, which has the terminal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        command = [sys.executable, "-P", "-m", "tui", "chat", "made", "--max-tokens", "1000000"]
        os.execvpe(command[0], command, environment(endless))
    seen = ""

    def until(wanted: Callable[[str], bool]) -> None:
        """Read on until what was seen since the last call is as wanted."""
        nonlocal seen
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not wanted(seen):
            left = deadline - time.monotonic()  # text that never ends must not keep this from failing
            assert left > 0 and select.select([terminal], [], [], left)[0], f"{DEADLINE_SECONDS:.0f} s, and: {seen[-2000:]}"
            seen += os.read(terminal, 65536).decode("utf-8", "replace")

    def after(text: str) -> None:
        nonlocal seen
        until(lambda found: text in found)
        seen = seen.partition(text)[2]

    try:
        after("tuned> ")
        os.write(terminal, b"go on\n")
        after("go on\r\n")
        until(lambda found: len(found) > 200)
        os.write(terminal, b"\x03")
        after("[stopped]")
        after("tuned> ")
        os.write(terminal, b"/base\n")
        after("the base model answers")
        after("base> ")
        os.write(terminal, b"\x04")
        with suppress(OSError):  # EIO: nobody has the terminal any more; until then its end may wait for what it wrote to be read
            until(lambda found: False)
        _, status = await_condition(lambda: found if (found := os.waitpid(pid, os.WNOHANG))[0] else None, "the chat's end")
        pid = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
