"""Reads the parts of a row: text, prompts, turns. What cannot be used is raised as Unusable, with the field and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.data.values import json_type
from engine.types import Message

ROLES = ("system", "user", "assistant")


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
    for key in ("role", "content"):
        if turn.get(key) is None:
            raise Unusable("missing-field", f"{place}.{key}", f"the turn has no {key!r}", "write {role, content}")
        if not isinstance(turn[key], str):
            raise Unusable("wrong-type", f"{place}.{key}", f"is {json_type(turn[key])}, not a string", "write {role, content}")
    if turn["role"] not in ROLES:
        raise Unusable("unknown-role", f"{place}.role", f"unknown role {turn['role']!r}", f"use one of: {', '.join(ROLES)}")
    if turn["role"] != "system" and not turn["content"].strip():
        raise Unusable("empty", f"{place}.content", f"the {turn['role']} turn has no text", "write it, or remove the row")
    return Message(turn["role"], turn["content"])
