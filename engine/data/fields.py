"""Reads the parts of a row: text, prompts, turns. What cannot be used is raised as Unusable, with the field and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.data.values import json_type
from engine.types import Message

ROLES = ("system", "user", "assistant")
_TOOLS = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")
_NO_TOOLS = "remove the rows with tool turns, or write them as the text of user and assistant turns"


class Unusable(Exception):
    """Carries a row's Problem out of the function that found it."""

    def __init__(self, kind: str, field: str, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.parts = (kind, field, reason, remedy)


def required_text(fields: Mapping[str, Any], field: str) -> str:
    """A field's text; a number counts as its text, so that `"answer": 42` can be used."""
    value = fields[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Unusable("wrong-type", field, f"{field!r} is {json_type(value)}", "write a string or a number")
    if not value.strip():
        raise Unusable("empty", field, f"{field!r} has no text", "write it, or remove the row")
    return value


def optional_text(fields: Mapping[str, Any], field: str) -> str | None:
    """As required_text; None where the field is missing or null."""
    return None if fields.get(field) is None else required_text(fields, field)


def reply_text(fields: Mapping[str, Any], field: str) -> str:
    """A completion's text: as required_text, or that of a list with one assistant turn."""
    value = fields[field]
    if not isinstance(value, list):
        return required_text(fields, field)
    turns = chat_turns(value, field)
    if len(turns) > 1:
        reason = f"{field!r} has {len(turns)} turns, and it is one assistant turn that is learned"
        remedy = "write prompt and completion as one list `messages`: there every reply is learned"
        raise Unusable("several-turns", field, reason, remedy)
    if turns[0].role != "assistant":
        raise Unusable("wrong-role", f"{field}[0].role", f"is {turns[0].role!r}, not 'assistant'", "write the assistant's reply")
    return turns[0].content


def prompt_turns(value: Any, field: str) -> list[Message]:
    """A prompt as turns: a string is one user turn."""
    if isinstance(value, str):
        if not value.strip():
            raise Unusable("empty", field, f"{field!r} has no text", "write the prompt, or remove the row")
        return [Message("user", value)]
    if not isinstance(value, list):
        raise Unusable("wrong-type", field, f"{field!r} is {json_type(value)}", "write a string or a list of messages")
    return asked(chat_turns(value, field), field)


def asked(turns: list[Message], field: str) -> list[Message]:
    """The turns, which must hold a user's."""
    if not any(turn.role == "user" for turn in turns):
        raise Unusable("no-prompt", field, "there is no user turn to reply to", "put a user turn first")
    return turns


def chat_turns(value: Any, field: str) -> list[Message]:
    """A list of {role, content} as turns."""
    if not isinstance(value, list):
        raise Unusable("wrong-type", field, f"{field!r} is {json_type(value)}", "write a list of {role, content}")
    if not value:
        raise Unusable("empty", field, f"{field!r} is an empty list", "add turns, or remove the row")
    return [_turn(turn, f"{field}[{index}]") for index, turn in enumerate(value)]


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise Unusable("wrong-type", place, f"is {json_type(turn)}, not a turn", "write {role, content}")
    role, content = turn.get("role"), turn.get("content")
    if isinstance(content, list):
        content = _joined(content, f"{place}.content")
    if role in ROLES and isinstance(content, str) and (role == "system" or content.strip()):
        return Message(role, content)
    raise _no_turn(turn, role, content, place)


def _no_turn(turn: Mapping[str, Any], role: Any, content: Any, place: str) -> Unusable:
    """What is wrong with the turn."""
    if role in _TOOLS:
        return Unusable("tool-turn", f"{place}.role", f"the turn is a tool's ({role!r}), and tool use is not trained", _NO_TOOLS)
    if turn.get("tool_calls") or turn.get("function_call"):
        return Unusable("tool-turn", f"{place}.content", "the turn calls a tool and says nothing", _NO_TOOLS)
    for key, value in (("role", role), ("content", content)):
        if value is None:
            return Unusable("missing-field", f"{place}.{key}", f"the turn has no {key!r}", "write {role, content}")
        if not isinstance(value, str):
            return Unusable("wrong-type", f"{place}.{key}", f"is {json_type(value)}, not a string", "write {role, content}")
    if role not in ROLES:
        return Unusable("unknown-role", f"{place}.role", f"unknown role {role!r}", f"use one of: {', '.join(ROLES)}")
    return Unusable("empty", f"{place}.content", f"the {role} turn has no text", "write it, or remove the row")


def _joined(parts: Sequence[Any], place: str) -> str:
    """The text of a content that is a list of parts, `{"type": "text", "text": ...}` each, one behind the other."""
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            found = "an object without a type" if isinstance(part, dict) else json_type(part)
            raise Unusable("wrong-type", f"{place}[{index}]", f"is {found}, not a part", 'write {"type": "text", "text": ...}')
        if kind != "text":
            remedy = "remove the row, or say it in a text: the models here read text alone"
            raise Unusable("other-part", f"{place}[{index}].type", f"a part of the type {kind!r} cannot be read", remedy)
        text = part.get("text")
        if not isinstance(text, str):
            raise Unusable("wrong-type", f"{place}[{index}].text", f"is {json_type(text)}, not a string", "write the part's text")
        texts.append(text)
    return "".join(texts)
