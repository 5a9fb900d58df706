"""The verb `chat`: a line, an answer as it comes; on a terminal, or with lines from a pipe."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.api import Engine
from engine.cli import phases
from engine.errors import InputError
from engine.figures import number
from engine.safe_text import safe_text
from engine.takehome.chat import Chat, End
from engine.takehome.generate import Side
from engine.types import Message

HELP = """\
/base           answer with the base model, and again: with the tuned one
/both           answer with both, and again: with one; the tuned answer is the one that the chat goes on from
/system TEXT    another system message; without TEXT none
/temperature T  0 is the likeliest token each time, 1 as trained
/reset          forget the chat so far
/save FILE      write the chat as one row of JSON that training can read
/help           this
ctrl+c stops an answer, ctrl+d leaves"""


@dataclass
class Conversation:
    """What is said so far, and how answers are asked for."""

    system: str | None
    temperature: float
    mode: Literal["tuned", "base", "both"] = "tuned"
    turns: list[Message] = field(default_factory=list)

    @property
    def sides(self) -> tuple[Side, ...]:
        """Who answers; the last one's answer is kept."""
        return ("base", "tuned") if self.mode == "both" else (self.mode,)

    @property
    def messages(self) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), *self.turns]

    def command(self, line: str) -> str:
        """Do what a line that begins with / says; what to tell the user. Raises InputError."""
        verb, _, rest = line.partition(" ")
        rest = rest.strip()
        if verb in ("/base", "/both"):
            wanted: Literal["base", "both"] = "base" if verb == "/base" else "both"
            self.mode = "tuned" if self.mode == wanted else wanted
            return "both models answer" if self.mode == "both" else f"the {self.mode} model answers"
        if verb == "/system":
            self.system = rest or None
            return "system message set" if rest else "no system message"
        if verb == "/temperature":
            self.temperature = _temperature(rest)
            return f"temperature {number(self.temperature)}"
        if verb == "/reset":
            self.turns.clear()
            return "the chat begins anew"
        if verb == "/save":
            return self._save(rest)
        if verb == "/help":
            return HELP
        raise InputError(
            f"no command {verb}", where="chat", remedy="/help lists them; a text that begins with / needs a space before"
        )

    def _save(self, name: str) -> str:
        if not name or not self.turns:
            what = "nothing is said yet" if name else "/save needs the name of a file"
            raise InputError(what, where="chat", remedy="such as /save chat.jsonl")
        path = Path(name).expanduser()
        row = json.dumps({"messages": [asdict(turn) for turn in self.messages]}, ensure_ascii=False)
        try:
            with path.open("x", encoding="utf-8", errors="replace") as file:
                file.write(row + "\n")
        except OSError as error:
            what = "is there already" if isinstance(error, FileExistsError) else f"cannot be written: {error.strerror}"
            raise InputError(what, where=str(path), remedy="name another file") from error
        return f"saved as {path}"


def chat(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the start of it.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="An answer is cut here.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest token each time; 1: as trained.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed draws other answers.")] = 0,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="best (by held-out reward), last, or the number of a step that is kept.")
    ] = "best",
    system: Annotated[str | None, typer.Option("--system", help="System message; by default the run's own data.system.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An answer as a JSON object in each line.")] = False,
) -> None:
    """Talk to a run's model, line by line; the run may still be training.

    /help lists the commands, such as /base for the untrained model. From a pipe each line is a message, and each answer one
    line (a newline inside shows as ␊; --json has it as it is).
    """
    if max_tokens < 1:
        raise InputError(f"{max_tokens} is no number of tokens", where="--max-tokens", remedy="give 1 or more")
    asked = _temperature(str(temperature))
    with asyncio.Runner() as runner:
        with phases.shown(hidden=as_json) as on_phase:
            made = runner.run(Engine().chat(run, checkpoint, on_phase))
            runner.run(made.__aenter__())
        talk = Conversation(made.system if system is None else system, asked)
        try:
            _Talk(runner, made, talk, max_tokens, seed, as_json).go()
        finally:
            runner.run(made.__aexit__(None, None, None))


@dataclass
class _Talk:
    """Reads lines, shows answers."""

    runner: asyncio.Runner
    chat: Chat
    said: Conversation
    max_tokens: int
    seed: int
    as_json: bool

    def go(self) -> None:
        is_typed = sys.stdin.isatty() and not self.as_json
        for line in _typed(self.said) if is_typed else sys.stdin:
            text = line.strip()
            if not text:
                continue
            try:
                if line.startswith("/"):
                    self._tell(self.said.command(text), is_typed)
                else:
                    self._answer(text, is_typed)
            except InputError as error:
                if self.chat.is_gone:
                    raise
                self._tell(str(error), is_typed)

    def _tell(self, text: str, is_typed: bool) -> None:
        """What is no answer: on stderr, where answers are read by a program."""
        print(safe_text(text, lines=True), file=None if is_typed else sys.stderr, flush=True)

    def _answer(self, text: str, is_typed: bool) -> None:
        asked = [*self.said.messages, Message("user", text)]
        kept = ""
        for side in self.said.sides:
            shown = _Shown(side, is_typed, is_labelled=len(self.said.sides) > 1)
            pieces = self.chat.answer(asked, side, max_tokens=self.max_tokens, temperature=self.said.temperature, seed=self.seed)
            try:
                self.runner.run(shown.all(pieces))
            except KeyboardInterrupt:
                shown.finish = "cancelled"
            shown.close(self.as_json)
            kept = shown.text
            if shown.finish == "cancelled":
                break
        self.said.turns += [Message("user", text), Message("assistant", kept)]


class _Shown:
    """One answer on its way to the screen; typed at a terminal it comes piece by piece, else as one line once it is whole."""

    def __init__(self, side: Side, is_typed: bool, is_labelled: bool) -> None:
        self._side, self._is_typed = side, is_typed
        self._label = f"{side}: " if is_labelled else ""
        self.text, self.finish = "", ""
        self._end: End | None = None
        if is_typed:
            print(self._label, end="", flush=True)

    async def all(self, pieces: AsyncGenerator[str | End, None]) -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, End):
                    self._end, self.text, self.finish = piece, piece.text, piece.finish
                else:
                    self.text += piece
                    if self._is_typed:
                        print(safe_text(piece, lines=True), end="", flush=True)

    def close(self, as_json: bool) -> None:
        """The end of the line, with what the answer took; from a pipe the answer itself."""
        end = self._end
        if as_json:
            figures = {} if end is None else {"tokens": end.tokens, "tokens_per_second": end.tokens_per_second}
            row = {"side": self._side, "text": self.text, "finish": self.finish, **figures}
            print(json.dumps(row), flush=True)
        elif not self._is_typed:
            print(self._label + safe_text(self.text), flush=True)
        elif end is None:
            print(" [stopped]", flush=True)
        else:
            cut = " [cut]" if end.finish == "length" else ""
            print(f"{cut}\n  {end.tokens} tokens, {number(end.tokens_per_second)} tokens/s", flush=True)


def _typed(said: Conversation) -> Iterator[str]:
    """Lines as they are typed, until ctrl+d; ctrl+c gives up the line."""
    import readline  # noqa: F401 - deferred: gives `input` its line editing and history

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # inherited, as of a shell's background job; a key sends it here
        signal.signal(signal.SIGINT, signal.default_int_handler)
    print("a line is a message; /help lists commands, ctrl+d leaves", flush=True)
    while True:
        try:
            yield input(f"{said.mode}> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise InputError(f"{text!r} is no temperature", where="temperature", remedy="0 is greedy, 1 as trained")
    return value
