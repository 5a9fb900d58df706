"""What can be told of every row of a file, however many there are: repeats, overlap, answers that the prompt gives away.

A row leaves 8 bytes of a hash behind, not itself. Two of a million different rows get the same one with a chance of 3 in 10^8.
"""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Sequence, Set
from hashlib import blake2b
from heapq import heappush, heappushpop

from engine.data.report import Groups
from engine.data.values import Problem
from engine.types import Example, Message

SAMPLE_ROWS = 2000
LONGEST_ROWS = 100
MAX_LABELS = 20
_LEAK_CHARACTERS = 16  # shorter answers are in many prompts by chance, or among the choices
_ONE_SIDED = 0.8
_BETWEEN, _NULL = b"\xff", b"\xfe"  # bytes that UTF-8 never has: no two lists of parts give the same
_GIVEN = re.compile(r"(?:answer\s*(?:is|[:=])|####)\s*", re.IGNORECASE)


class Structure:
    """Takes example after example; `taken` are the prompt keys of the held-out file."""

    def __init__(self, taken: Set[bytes] = frozenset()) -> None:
        self.count = 0
        self.duplicate_lines = array("Q")
        self.warnings = Groups()
        self._taken = taken
        self._seen: set[bytes] = set()
        self._labels: dict[str, int] = {}

    def add(self, example: Example) -> None:
        """One more example."""
        self.count += 1
        prompt, row = keys(example)
        if row in self._seen:
            self.duplicate_lines.append(example.line)
        else:
            self._seen.add(row)
        if prompt in self._taken:
            reason = "the held-out file has the same prompt: what is measured on it is not new to the model"
            self.warnings.add(Problem(example.line, "overlap", "", reason, "remove the row from one of the two files"))
        if gives_away(example):
            reason = "the answer stands in the prompt, word for word"
            remedy = "harmless where finding it there is the task; else take it out of the prompt"
            self.warnings.add(Problem(example.line, "answer-in-prompt", "", reason, remedy))
        answer = example.answer
        if answer is not None and (answer in self._labels or len(self._labels) <= MAX_LABELS):
            self._labels[answer] = self._labels.get(answer, 0) + 1

    def labels(self) -> tuple[tuple[str, int], ...]:
        """Every reference answer and how many rows have it, most frequent first; () for more than 20 different ones."""
        if len(self._labels) > MAX_LABELS:
            return ()
        return tuple(sorted(self._labels.items(), key=lambda item: -item[1]))

    def one_sided(self) -> Problem | None:
        """That one answer is right for nearly every row, where it is."""
        labels = self.labels()
        if self.count <= MAX_LABELS or not labels or labels[0][1] <= _ONE_SIDED * self.count:
            return None
        share = f"{100 * labels[0][1] // self.count}% of the rows have the answer {labels[0][0]!r:.40}"
        reason = f"{share}: a model that always says so is nearly always right"
        return Problem(1, "one-sided", "answer", reason, "add rows with other answers")


class Sample:
    """Of a stream of examples `rows` drawn by chance, and the `longest` of the others. The same seed draws the same."""

    def __init__(self, rows: int = SAMPLE_ROWS, longest: int = LONGEST_ROWS, seed: int = 0) -> None:
        self._draw = random.Random(seed).random  # its sequence is the same in every version of Python
        self._rows = rows
        self._longest = longest
        self._count = 0
        # A heap's smallest goes first. The number of the example settles ties: examples have no order.
        self._drawn: list[tuple[float, int, Example]] = []
        self._long: list[tuple[int, int, Example]] = []

    def add(self, example: Example) -> None:
        """One more example."""
        self._count += 1
        draw, length = self._draw(), characters(example)
        if len(self._drawn) < self._rows:
            heappush(self._drawn, (draw, -self._count, example))
        elif draw > self._drawn[0][0]:
            heappushpop(self._drawn, (draw, -self._count, example))
        if len(self._long) < self._longest:
            heappush(self._long, (length, -self._count, example))
        elif length > self._long[0][0]:
            heappushpop(self._long, (length, -self._count, example))

    def taken(self) -> tuple[list[Example], list[Example]]:
        """The examples that were drawn, and those of the longest that were not; each in file order."""
        drawn = {-number: example for _, number, example in self._drawn}
        others = {-number: example for _, number, example in self._long if -number not in drawn}
        return [drawn[number] for number in sorted(drawn)], [others[number] for number in sorted(others)]


def duplicate_lines(examples: Sequence[Example]) -> list[int]:
    """Lines of the examples that repeat an earlier one's prompt, completion and answer."""
    found = Structure()
    for example in examples:
        found.add(example)
    return list(found.duplicate_lines)


def gives_away(example: Example) -> bool:
    """Whether a user turn holds the answer: all of it where it is long, behind "answer:" or #### where it is short."""
    answer = (example.answer if example.answer is not None else example.completion or "").strip()
    if not answer:
        return False
    for turn in example.messages:
        if turn.role != "user":
            continue
        text = turn.content
        if len(answer) >= _LEAK_CHARACTERS:
            if answer in text:
                return True
        elif "nswer" in text or "NSWER" in text or "####" in text:
            for match in _GIVEN.finditer(text):
                end = match.end() + len(answer)
                if text.startswith(answer, match.end()) and not text[end : end + 1].isalnum():
                    return True
    return False


def opening(example: Example) -> tuple[Message, ...]:
    """The prompt; of a chat whose earlier replies are targets too, the prompt of the first of them; of plain text all of it."""
    if not example.messages:
        return (Message("text", example.completion or ""),)
    if not example.turns:
        return example.messages
    first = next((place for place, turn in enumerate(example.turns) if turn.role == "assistant"), None)
    return example.messages if first is None else example.turns[:first]


def characters(example: Example) -> int:
    """Length of prompt and completion."""
    length = len(example.completion or "")
    for turn in example.messages:
        length += len(turn.content)
    return length


def keys(example: Example) -> tuple[bytes, bytes]:
    """A hash of what the model is asked first, and one of prompt, completion and answer."""
    asked = _hash(example.messages)
    first = asked.digest() if example.messages and not example.turns else _hash(opening(example)).digest()
    for text in (example.completion, example.answer):
        asked.update(_NULL if text is None else text.encode())
        asked.update(_BETWEEN)
    return first, asked.digest()


def _hash(messages: Sequence[Message]) -> blake2b:
    parts: list[bytes] = []
    for turn in messages:
        parts += (turn.role.encode(), turn.content.encode())
    parts.append(b"")
    return blake2b(_BETWEEN.join(parts), digest_size=8)
