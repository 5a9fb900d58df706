"""Reads ShareGPT's chats, `conversations: [{from, value}]`, as rows of the format `messages`.

A rename and no more: `conversations` becomes `messages`, `from` becomes `role`, `value` becomes `content`, and the speakers get
the names of ROLES. A speaker that has none (a tool) keeps its own, and is refused as such where the turns are read.
"""

from __future__ import annotations

from typing import Any

from engine.data.values import Row

NAME = "conversations"
_SPEAKERS = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant", "model": "assistant"}


def as_messages(row: Row, name: str) -> Row:
    """The row with the chat in its field `name` as `messages`; the row itself where that field holds no list of objects."""
    turns = row.fields.get(name)
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return row
    others = {field: value for field, value in row.fields.items() if field not in (name, "messages")}
    return Row(row.line, {"messages": [_turn(turn) for turn in turns], **others})


def has_speakers(turns: Any) -> bool:
    """Whether the first turn says `from` in place of `role`."""
    return (
        isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "from" in turns[0] and "role" not in turns[0]
    )


def _turn(turn: Any) -> Any:
    """The turn with our names; whatever is none is left for the reader of turns to refuse."""
    if not isinstance(turn, dict) or "role" in turn or "from" not in turn:
        return turn
    speaker = turn["from"]
    role = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    others = {field: value for field, value in turn.items() if field not in ("from", "value", "content")}
    return {"role": role, "content": turn.get("value", turn.get("content")), **others}
