"""A chat with a run's model: a worker that stays loaded, asked over pipes, one JSON line a request and one a piece of answer."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from typing import IO

from engine import config as configs
from engine.errors import InputError
from engine.runs import launch
from engine.runs.record import RunRecord
from engine.takehome import asking
from engine.takehome.choice import Chosen
from engine.takehome.generate import OnPhase, Side, check_text, opening
from engine.types import Message


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended: stop, length (cut at the limit) or cancelled; its whole text, and what it took."""

    text: str
    finish: str
    tokens: int
    prompt_tokens: int
    seconds: float  # the prompt's included

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Chat:
    """`async with Chat(record) as chat:` loads the model; `chat.answer(...)` then answers, as often as it is asked.

    One answer at a time. Leaving ends the worker. Raises InputError where the model cannot be loaded or the worker dies.
    """

    def __init__(
        self,
        record: RunRecord,
        checkpoint: str = "best",
        on_phase: OnPhase = lambda name, done, total: None,
        *,
        program: Sequence[str] = launch.WORKER,
    ) -> None:
        self._record, self._checkpoint, self._on_phase, self._program = record, checkpoint, on_phase, program
        self._number = 0
        self.chosen: Chosen

    async def __aenter__(self) -> Chat:
        self.chosen, request, environment = await asyncio.to_thread(opening, self._record, self._checkpoint)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _close
        # a session of its own: ctrl+c in the terminal is for whoever asks
        self._worker = await asyncio.create_subprocess_exec(
            *(*self._program, "serve"),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            limit=asking.LINE_BYTES,
            start_new_session=True,
        )
        try:
            self._send(request)
            while (line := await self._heard())["event"] != "ready":
                self._on_phase(line["name"], line.get("done", 0), line.get("total", 0))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    @property
    def system(self) -> str | None:
        """The run's own data.system. Raises InputError where its config cannot be read."""
        return configs.load(self._record.config_file).config.data.system

    @property
    def pid(self) -> int:
        """The worker's."""
        return self._worker.pid

    @property
    def is_gone(self) -> bool:
        """Whether the worker has ended."""
        return self._worker.returncode is not None

    async def answer(
        self, messages: Sequence[Message], side: Side, *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> AsyncGenerator[str | End, None]:
        """Pieces of the answer as they come, then its End. Closed or cancelled before, the worker stops at its next token; the
        next answer waits for that. Raises InputError where the chat template refuses the messages, or the worker has died."""
        check_text(messages)
        self._number += 1
        number = self._number
        asked = {"messages": [asdict(message) for message in messages], "side": side, "max_tokens": max_tokens}
        self._send({"id": number, **asked, "temperature": temperature, "seed": seed})
        is_over = False
        try:
            while not is_over:
                line = await self._heard()
                if line.get("id") != number:
                    continue  # the rest of an answer that was cancelled
                is_over = line["event"] != "text"
                if line["event"] == "refused":
                    raise InputError(line["what"], where=line["where"], remedy=line["remedy"])
                if line["event"] == "text":
                    yield line["text"]
                else:
                    yield End(**{name: line[name] for name in End.__slots__})
        finally:
            if not is_over and self._worker.returncode is None:
                self._send({"cancel": number})

    def _send(self, request: dict[str, object]) -> None:
        assert self._worker.stdin is not None
        if not self._worker.stdin.is_closing():  # a dead worker is found when it is listened to
            self._worker.stdin.write(json.dumps(request).encode() + b"\n")

    async def _heard(self) -> asking.Line:
        assert self._worker.stdout is not None
        line = await self._worker.stdout.readline()
        if not line:
            raise asking.died(await self._worker.wait(), self._errors, "serve")
        return asking.parsed(line, "serve")

    async def _close(self) -> None:
        assert self._worker.stdin is not None
        self._worker.stdin.close()  # it ends by itself, unless it is deep in a prompt
        if self._worker.returncode is None:
            self._worker.kill()
        await self._worker.wait()
        self._errors.close()
