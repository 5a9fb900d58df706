"""Prompts answered by a run's base and tuned model: what is asked, what comes back. The answers are made in a worker process."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine import config as configs
from engine.data.rows import read_rows
from engine.data.values import Problem
from engine.errors import InputError
from engine.runs import launch
from engine.runs.journal import JournalReader
from engine.runs.record import RunRecord
from engine.runs.state import RunState
from engine.takehome import asking
from engine.takehome.choice import Chosen, choose
from engine.types import Message

Side = Literal["base", "tuned"]
OnPhase = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: not known)
Turns = tuple[Message, ...]

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Ask:
    """How prompts are answered. Temperature 0 is greedy; `system` stands before prompts that have no system turn."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    samples: int = 1
    sides: tuple[Side, ...] = ("base", "tuned")
    checkpoint: str = "best"
    system: str | None = None  # None: the run's own data.system
    plain: bool | None = None  # texts to go on with, without a chat template; None: where the run learned plain text

    def check(self) -> None:
        """Raise InputError for numbers that mean nothing."""
        for wrong, what, where, remedy in (
            (self.max_tokens < 1, f"{self.max_tokens} is no number of tokens", "--max-tokens", "give 1 or more"),
            (
                not 0 <= self.temperature < 100,
                f"{self.temperature} is no temperature",
                "--temperature",
                "0 is greedy, 1 as trained",
            ),
            (self.samples < 1, f"{self.samples} is no number of samples", "--samples", "give 1 or more"),
            (self.seed < 0, f"{self.seed} is no seed", "--seed", "give 0 or more"),
            (self.samples > 1 and self.temperature == 0, "greedy samples are all the same", "--samples", "add --temperature 1"),
        ):
            if wrong:
                raise InputError(what, where=where, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion; `finish` is stop, or length where it was cut at max_tokens."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What one side said: [prompts][samples], and how fast (prompts included)."""

    answers: tuple[tuple[Answer, ...], ...]
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Generated:
    """Prompts with the answers of each side."""

    run: str
    checkpoint: Chosen
    prompts: tuple[Turns, ...]
    sides: dict[Side, Answers]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        rows = []
        for number, turns in enumerate(self.prompts):
            own = {str(side): [asdict(answer) for answer in found.answers[number]] for side, found in self.sides.items()}
            rows.append({"messages": [asdict(turn) for turn in turns]} | own)
        speed = {str(side): found.tokens_per_second for side, found in self.sides.items()}
        made = {"run": self.run, "checkpoint": self.checkpoint.name, "step": self.checkpoint.step}
        return {**made, "answers": rows, "tokens_per_second": speed}


async def generate(
    record: RunRecord,
    prompts: Sequence[Turns],
    ask: Ask,
    on_phase: OnPhase = lambda name, done, total: None,
    *,
    program: Sequence[str] = launch.WORKER,
) -> Generated:
    """Every prompt answered in one batch by each side. The run may be training. Raises InputError."""
    ask.check()
    if not prompts:
        raise InputError("no prompt", where="generate", remedy="give one, or --file with one in each row")
    chosen, request, environment = await asyncio.to_thread(opening, record, ask.checkpoint)
    if ask.plain if ask.plain is not None else is_plain_text(await asyncio.to_thread(folded, record)):
        request["plain"] = True
        ask = replace(ask, system="")
    system = ask.system if ask.system is not None else configs.load(record.config_file).config.data.system
    asked = [with_system(turns, system) for turns in prompts]
    for turns in asked:
        check_text(turns)
    request |= {"prompts": [[asdict(turn) for turn in turns] for turns in asked], "sides": list(ask.sides)}
    request |= {name: getattr(ask, name) for name in ("samples", "max_tokens", "temperature", "seed")}
    found: dict[Side, Answers] = {}

    def take(line: asking.Line) -> None:
        if line["event"] == "phase":
            on_phase(line["name"], line.get("done", 0), line.get("total", 0))
        else:
            answers = tuple(tuple(Answer(**answer) for answer in group) for group in line["answers"])
            found[line["side"]] = Answers(answers, line["tokens"], line["seconds"])

    await asking.ask("generate", request, environment, take, program=program)
    return Generated(record.id, chosen, tuple(asked), found)


def opening(record: RunRecord, checkpoint: str) -> tuple[Chosen, dict[str, Any], dict[str, str]]:
    """The adapter that is meant, the request's part that has a worker load it, and the run's environment. Raises InputError."""
    summary = record.summary()
    chosen = choose(record, folded(record), checkpoint)
    request = {"run": str(record.folder.absolute()), "adapter": str(chosen.folder.absolute())}
    return chosen, request, launch.worker_environment(os.environ, summary.environment)[0]


def is_plain_text(state: RunState) -> bool:
    """Whether a finished run learned plain text, without a chat template: as the command says that it ends with."""
    parts = shlex.split(str((state.result or {}).get("command", "")))
    return "--ignore-chat-template" in parts or "--plain" in parts


def folded(record: RunRecord) -> RunState:
    """The run as its journal tells it."""
    reader, state = JournalReader(record.journal_file), RunState()
    while events := reader.read():
        for event in events:
            state.apply(event)
    return state


def check_text(turns: Sequence[Message]) -> None:
    """InputError for what is no text: bytes that are not UTF-8, as an argument or a pipe may bring them."""
    for turn in turns:
        try:
            turn.content.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = turn.content[:40].encode("utf-8", "replace").decode()
            raise InputError("is not UTF-8", where=repr(shown), remedy="give it in UTF-8") from error


def with_system(turns: Turns, system: str | None) -> Turns:
    """The turns with the system message before them, where there is one and they have none."""
    if not system or any(turn.role == "system" for turn in turns):
        return turns
    return (Message("system", system), *turns)


def read_prompts(path: Path) -> list[Turns]:
    """The prompts of a data file: of each row `prompt` or `question` (text, or turns) or `messages`, up to the last user's turn.

    Raises InputError that names the row.
    """
    found = []
    for row in read_rows(path):
        if isinstance(row, Problem):
            raise InputError(row.reason, where=f"{path}:{row.line}", remedy=row.remedy)
        given = next((row.fields[name] for name in ("messages", "prompt", "question") if row.fields.get(name)), None)
        turns = _turns(given)
        if not turns:
            remedy = 'for example {"prompt": "What is 12+34?"}, or messages of a role and a content each'
            raise InputError("has no prompt", where=f"{path}:{row.line}", remedy=remedy)
        found.append(turns)
    return found


def _turns(given: Any) -> Turns:
    """() where it is no prompt."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        return ()
    turns = []
    for turn in given:
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES or not isinstance(turn.get("content"), str):
            return ()
        turns.append(Message(turn["role"], turn["content"]))
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return tuple(turns)
