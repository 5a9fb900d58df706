"""What a row says to training, whatever its format: the first half of a conversion. The second is conversions.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.data.fields import Unusable
from engine.data.values import Problem, Row
from engine.types import Example, Message

DROP = "rename the column, or leave it out with --only-format-fields"
_USED = {  # the fields that a format is made of; all others are columns
    "messages": {"messages"},
    "reasoning": {"problem"},  # the chain stays a column, for rewards to read
    "prompt+completion": {"prompt", "completion"},
    "prompt+answer": {"prompt"},
    "gsm8k": {"question"},
    "instruction": {"instruction", "input"},
}
_EVERYWHERE = {"system", "answer"}
_DOMAIN = ("domain", "expertise_level", "domain_context")


@dataclass(slots=True)
class Meaning:
    """What training reads from a row, the columns beside it, and notes on what another format has no place for."""

    line: int
    source: str
    prompt: tuple[Message, ...]  # with the system turn
    completion: str | None  # None: the answer is imitated
    answer: str | None  # None: the completion is compared with
    columns: dict[str, Any]
    notes: list[Problem]

    @property
    def imitated(self) -> str:
        """What supervised training learns: the completion, else the answer."""
        text = self.answer if self.completion is None else self.completion
        assert text is not None  # an example has one of them
        return text

    @property
    def reference(self) -> str:
        """What rewards compare with: the answer, else the completion."""
        return self.imitated if self.answer is None else self.answer

    @property
    def own_answer(self) -> dict[str, Any]:
        """The field `answer` beside a completion, where the row has one of its own."""
        return {} if self.completion is None or self.answer is None else {"answer": self.answer}

    def note(self, kind: str, field: str, reason: str, remedy: str) -> None:
        """Say what is not carried, or is read otherwise."""
        self.notes.append(Problem(self.line, kind, field, reason, remedy))

    def prompt_fields(self) -> dict[str, Any]:
        """The fields `system` and `prompt`; a text where there is nothing but a question."""
        system, turns = _parted(self.prompt)
        if any(turn.role == "system" for turn in turns):  # an empty one, or one that is not the first
            return {"prompt": plain(self.prompt)}
        question = turns[0].content if len(turns) == 1 else plain(turns)
        return _system(system) | {"prompt": question}

    def question_fields(self, field: str, domain: str = "") -> dict[str, Any]:
        """The fields `system` and `field` of a format that holds one question. `domain` is the text that the format puts behind
        the system text by itself. Raises Unusable for a chat."""
        system, turns = _parted(self.prompt)
        if len(turns) != 1 or turns[0].role != "user":
            reason = f"the prompt has {len(turns)} turns, and the format holds one question"
            raise Unusable("several-turns", field, reason, "convert to messages, prompt+completion or prompt+answer instead")
        if domain:
            if system != domain and not system.endswith(f"\n\n{domain}"):
                name = next(name for name in _DOMAIN if self.columns.get(name) is not None)
                raise Unusable("taken-name", name, "it would become a system text that the prompt does not have", DROP)
            system = system[: -len(domain)].removesuffix("\n\n")
        return _system(system) | {field: turns[0].content}


def read(row: Row, example: Example, source: str) -> Meaning:
    """What the row, of which training reads `example`, says."""
    fields = row.fields
    used = _USED[source] | _EVERYWHERE
    completion, answer = example.completion, example.answer
    if source in ("messages", "prompt+completion", "instruction") and fields.get("answer") is None:
        answer = None
    if source == "prompt+answer":
        completion = None
    if source == "instruction":
        used.add("output" if fields.get("response") is None else "response")
    columns = {name: value for name, value in fields.items() if name not in used}
    found = Meaning(row.line, source, example.messages, completion, answer, columns, [])
    for name in sorted(used):
        turns = fields.get(name)
        if isinstance(turns, list) and any(
            value is not None and key not in ("role", "content") for turn in turns for key, value in turn.items()
        ):
            reason = "turns have more than role and content: the rest is not carried"
            found.note("turn-fields", name, reason, "training does not read it; the source file still has it")
    if source == "messages" and completion is not None:
        is_made = bool(fields.get("system")) and example.messages[0].role == "system"  # a turn made of the field
        if len(fields["messages"]) > len(example.messages) - is_made + 1:
            reason = "turns behind the last reply are not carried"
            found.note("later-turns", "messages", reason, "training does not use them; end the chat with a reply")
    if source == "gsm8k" and answer is None:
        reason = "there is no number after ####: rewards will compare with the whole text"
        found.note("no-number", "answer", reason, "end it with `#### NUMBER`")
    return found


def plain(turns: Sequence[Message]) -> list[dict[str, str]]:
    """The turns as a file has them."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _parted(prompt: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The system text in front, empty where there is none, and the other turns."""
    is_first = prompt[0].role == "system" and prompt[0].content
    return (prompt[0].content, prompt[1:]) if is_first else ("", prompt)


def _system(text: str) -> dict[str, str]:
    return {"system": text} if text else {}
