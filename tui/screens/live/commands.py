"""Commands to the worker as the screen tells of them: requested, until the journal says what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.runs.state import CommandStatus

PAUSABLE = frozenset({"running", "starting", "stalled"})
PAUSED = frozenset({"pausing", "paused"})
LIVE = PAUSABLE | PAUSED
RESUMABLE = frozenset({"lost", "stopped", "failed"})

_EXPLAINED = {
    ("pause", "accepted"): "pause accepted: it takes effect between two tokens or two updates",
    ("stop", "accepted"): "stop accepted: the worker writes a checkpoint and ends",
    ("checkpoint", "accepted"): "checkpoint accepted: it is written between two updates",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A command that was asked for while the journal knew the commands `known` and had `seq` events."""

    verb: str
    known: frozenset[str]
    seq: int
    outcome: str = ""  # what the engine said of it: why it was not done, or that a worker was started

    def answer(self, commands: Mapping[str, CommandStatus]) -> CommandStatus | None:
        """What the journal says of it; None while it says nothing."""
        found = [status for key, status in commands.items() if key not in self.known and status.verb == self.verb]
        return found[-1] if found else None

    def line(self, commands: Mapping[str, CommandStatus]) -> str:
        """What became of it, in words."""
        answer = self.answer(commands)
        if answer is None:
            return self.outcome or f"{self.verb} requested"
        if answer.status in ("refused", "expired"):
            return f"{self.verb} {answer.status}: {answer.reason}"
        return _EXPLAINED.get((self.verb, answer.status), f"{self.verb} {answer.status}")

    def is_settled(self, commands: Mapping[str, CommandStatus]) -> bool:
        """Whether nothing more will be heard of it."""
        answer = self.answer(commands)
        if answer is None:
            return bool(self.outcome)
        return answer.status != "accepted" or self.verb == "resume"
