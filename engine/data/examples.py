"""Turns a row into an Example: which format it has, how its columns are renamed, what prompt, completion and answer are.

Left out: formats that need more than these fields (reasoning chains, preferences, plain text).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from engine.data.rows import Problem, Row, json_type
from engine.errors import InputError
from engine.types import Example, Message

Kind = Literal["sft", "rl"]

FORMATS: dict[str, tuple[str, ...]] = {  # id: fields that a row must have; the first that fits a row is its format
    "messages": ("messages",),
    "prompt+completion": ("prompt", "completion"),
    "prompt+answer": ("prompt", "answer"),
    "gsm8k": ("question", "answer"),
}
ROLES = ("system", "user", "assistant")
_RESERVED = ("prompts", "completions")  # what a reward function's own two parameters are called
_GSM8K_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?%?")


class _Unusable(Exception):
    """Carries a row's Problem out of the function that found it."""

    def __init__(self, kind: str, field: str, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.parts = (kind, field, reason, remedy)


def detect(fields: Mapping[str, Any]) -> str | None:
    """The id of the first format whose fields are all there and not null, or None."""
    return next((name for name, needed in FORMATS.items() if all(fields.get(field) is not None for field in needed)), None)


def check_format(name: str) -> None:
    """InputError unless `name` is a format's id."""
    if name not in FORMATS:
        raise InputError(f"unknown data format {name!r}", where="data.format", remedy=f"auto, or one of: {', '.join(FORMATS)}")


def remap(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with `columns` (our name: the name in the file) renamed. A renamed field hides one that had our name."""
    if not columns:
        return row
    renamed = {ours: row.fields[theirs] for ours, theirs in columns.items() if theirs in row.fields}
    taken = set(columns.values())
    return Row(row.line, {name: value for name, value in row.fields.items() if name not in taken} | renamed)


def to_example(row: Row, format: str, kind: Kind, system: str | None) -> Example | Problem:
    """The row as an Example, or why it cannot be one.

    `rl`: an answer is required. `messages`: the prompt is everything before the last assistant turn, which is
    completion and (without an `answer` field) answer; under rl a conversation that ends with a user turn and has an
    `answer` is a prompt as a whole. `prompt+completion` under rl: the completion is the answer where there is no
    `answer` field. `gsm8k`: the answer is the number after the last ####; the whole text is sft's completion.
    `system`, or the row's own `system` field, goes before prompts that have no system turn. `columns` holds every
    field but the prompt itself; `type` is there as `types`, too, the name that reward functions use.
    """
    check_format(format)
    try:
        return _example(row, format, kind, system)
    except _Unusable as unusable:
        return Problem(row.line, *unusable.parts)


def _example(row: Row, format: str, kind: Kind, system: str | None) -> Example:
    fields = row.fields
    for field in FORMATS[format]:
        if fields.get(field) is None:
            state = "is null" if field in fields else "is missing"
            reason = f"{field!r} {state}; the row has: {', '.join(fields) or 'no fields'}"
            raise _Unusable("missing-field", field, reason, f"add it, or set columns: {{{field}: NAME}}")
    prompt, completion, answer = _READERS[format](fields, kind)
    if kind == "rl":
        if answer is None:
            raise _Unusable("no-reference", "answer", "there is no answer to compare completions with", "add an `answer` field")
        for field in _RESERVED:
            if field in fields:
                raise _Unusable("reserved-name", field, f"reward functions get {field!r} from the run", "rename the field")
    columns = {name: value for name, value in fields.items() if name not in ("prompt", "messages")}
    if answer is not None:
        columns["answer"] = answer
    if "type" in columns:
        columns.setdefault("types", columns["type"])
    return Example(row.line, _with_system(prompt, fields, system), completion, answer, columns)


_Parts = tuple[list[Message], str | None, str | None]  # prompt, completion, answer


def _prompt_answer(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    answer = _text(fields, "answer")
    return _prompt(fields["prompt"], "prompt"), answer if kind == "sft" else None, answer


def _gsm8k(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    solution = _text(fields, "answer")
    number = gsm8k_number(solution)
    if number is None and kind == "rl":
        reason = "no number after ####" if "####" in solution else "no #### in the answer"
        remedy = "end it with `#### NUMBER`, or set columns: {prompt: question} to compare all of it"
        raise _Unusable("no-reference", "answer", reason, remedy)
    return _prompt(fields["question"], "question"), solution if kind == "sft" else None, number


def _prompt_completion(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    completion = _text(fields, "completion")
    answer = _optional_text(fields, "answer")
    return _prompt(fields["prompt"], "prompt"), completion, completion if answer is None and kind == "rl" else answer


def _messages(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    turns = _turns(fields["messages"], "messages")
    answer = _optional_text(fields, "answer")
    if kind == "rl" and answer is not None and turns[-1].role == "user":
        return _asked(turns, "messages"), None, answer
    last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        if kind == "sft":
            raise _Unusable("no-completion", "messages", "no turn has the role assistant", "add the reply that should be learned")
        raise _Unusable("no-reference", "messages", "there is neither an assistant turn nor an `answer` field", "add one of them")
    completion = turns[last].content
    return _asked(turns[:last], "messages"), completion, completion if answer is None else answer


_READERS = {"messages": _messages, "prompt+completion": _prompt_completion, "prompt+answer": _prompt_answer, "gsm8k": _gsm8k}


def gsm8k_number(solution: str) -> str | None:
    """The number after the last ####, without commas and $; None where there is none."""
    _, mark, tail = solution.rpartition("####")
    match = _GSM8K_NUMBER.match(tail.replace(",", "").replace("$", "").replace("\N{MINUS SIGN}", "-").strip())
    return match[0] if mark and match else None


def _prompt(value: Any, field: str) -> list[Message]:
    """A prompt as turns: a string is one user turn."""
    if isinstance(value, str):
        if not value.strip():
            raise _Unusable("empty", field, f"{field!r} has no text", "write the prompt, or remove the row")
        return [Message("user", value)]
    if not isinstance(value, list):
        raise _Unusable("wrong-type", field, f"{field!r} is {json_type(value)}", "write a string or a list of messages")
    return _asked(_turns(value, field), field)


def _asked(turns: list[Message], field: str) -> list[Message]:
    if not any(turn.role == "user" for turn in turns):
        raise _Unusable("no-prompt", field, "there is no user turn to reply to", "put a user turn first")
    return turns


def _turns(value: Any, field: str) -> list[Message]:
    if not isinstance(value, list):
        raise _Unusable("wrong-type", field, f"{field!r} is {json_type(value)}", "write a list of {role, content}")
    if not value:
        raise _Unusable("empty", field, f"{field!r} is an empty list", "add turns, or remove the row")
    return [_turn(turn, f"{field}[{index}]") for index, turn in enumerate(value)]


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise _Unusable("wrong-type", place, f"is {json_type(turn)}, not a turn", "write {role, content}")
    for key in ("role", "content"):
        if turn.get(key) is None:
            raise _Unusable("missing-field", f"{place}.{key}", f"the turn has no {key!r}", "write {role, content}")
        if not isinstance(turn[key], str):
            raise _Unusable("wrong-type", f"{place}.{key}", f"is {json_type(turn[key])}, not a string", "write {role, content}")
    if turn["role"] not in ROLES:
        raise _Unusable("unknown-role", f"{place}.role", f"unknown role {turn['role']!r}", f"use one of: {', '.join(ROLES)}")
    if turn["role"] != "system" and not turn["content"].strip():
        raise _Unusable("empty", f"{place}.content", f"the {turn['role']} turn has no text", "write it, or remove the row")
    return Message(turn["role"], turn["content"])


def _text(fields: Mapping[str, Any], field: str) -> str:
    """A field's text; a number counts as its text, so that `"answer": 42` can be used."""
    value = fields[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _Unusable("wrong-type", field, f"{field!r} is {json_type(value)}", "write a string or a number")
    if not value.strip():
        raise _Unusable("empty", field, f"{field!r} has no text", "write it, or remove the row")
    return value


def _optional_text(fields: Mapping[str, Any], field: str) -> str | None:
    return None if fields.get(field) is None else _text(fields, field)


def _with_system(prompt: list[Message], fields: Mapping[str, Any], default: str | None) -> tuple[Message, ...]:
    own = fields.get("system")
    if own is not None and not isinstance(own, str):
        raise _Unusable("wrong-type", "system", f"'system' is {json_type(own)}", "write a string")
    has_turn = any(turn.role == "system" for turn in prompt)
    if own and has_turn:
        raise _Unusable("two-systems", "system", "the row has a system turn and a `system` field", "keep one of them")
    text = own or default
    return tuple(prompt) if has_turn or not text else (Message("system", text), *prompt)
