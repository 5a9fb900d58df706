"""Turns a row into an Example: which format it has, how its columns are renamed, what prompt, completion and answer are.

Plain text has no prompt: an example of it has no messages, and its completion is the text. Left out, and refused by name:
preferences, for which there is no method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from engine import methods
from engine.data import chains, sharegpt
from engine.data.fields import ROLES, Unusable, asked, chat_turns, optional_text, prompt_turns, reply_text, required_text
from engine.data.values import Problem, Row, json_type
from engine.errors import InputError
from engine.types import Example, Message

__all__ = [
    "FORMATS",
    "REFUSED",
    "ROLES",
    "Kind",
    "check_format",
    "detect",
    "gsm8k_number",
    "has_fields",
    "remap",
    "require_format",
    "to_example",
]

Kind = Literal["sft", "rl"]

# id: fields that a row must have, of a|b either; the first that fits a row is its format
FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "reasoning": ("problem", "reasoning_steps", "solution"),
    "prompt+completion": ("prompt", "completion"),
    "prompt+answer": ("prompt", "answer"),
    "gsm8k": ("question", "answer"),
    "instruction": ("instruction", "response|output"),
    "text": ("text",),
}
REFUSED: dict[str, tuple[tuple[str, ...], str, str]] = {  # id: its fields, why, remedy. Looked for after FORMATS
    "preference": (
        ("chosen", "rejected"),
        "these are preference rows, and preference methods are not there yet",
        "to imitate the chosen replies with method: sft "
        "set data.columns: {completion: chosen} (for `convert` --columns completion=chosen)",
    ),
}
_NEEDED = {name: tuple(tuple(field.split("|")) for field in needed) for name, needed in FORMATS.items()}
_RESERVED = ("prompts", "completions")  # what a reward function's own two parameters are called
_GSM8K_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?%?")


def detect(fields: Mapping[str, Any]) -> str | None:
    """The id of the first format (of FORMATS, then of REFUSED) whose fields are all there and not null, or None.

    Text is the last of all: other rows may have a field of that name, too.
    """
    found = next((name for name in FORMATS if has_fields(fields, name)), None)
    if found not in (None, "text"):
        return found
    return next((name for name, (needed, *_) in REFUSED.items() if all(fields.get(f) is not None for f in needed)), found)


def has_fields(fields: Mapping[str, Any], format: str) -> bool:
    """Whether all fields of the format are there and not null."""
    for names in _NEEDED[format]:
        if fields.get(names[0]) is None and (len(names) == 1 or all(fields.get(name) is None for name in names)):
            return False
    return True


def check_format(name: str) -> None:
    """InputError unless `name` is the id of a format that can be trained on."""
    if name in REFUSED:
        raise InputError(REFUSED[name][1], where="data.format", remedy=REFUSED[name][2])
    if name not in FORMATS:
        raise InputError(f"unknown data format {name!r}", where="data.format", remedy=f"auto, or one of: {', '.join(FORMATS)}")


def require_format(method: methods.Method, format: str, where: str) -> None:
    """InputError unless the method can use rows of the format; "unknown" passes, its rows say themselves what is wrong."""
    if format in REFUSED:
        raise InputError(REFUSED[format][1], where=where, remedy=REFUSED[format][2])
    if format == "text" and format not in method.formats:
        what = f"{method.id} cannot use rows of plain text: they have no prompt to reply to, and no answer"
        raise InputError(what, where=where, remedy="part them into prompt and answer, or use method: sft")
    if format not in ("unknown", *method.formats):
        raise InputError(f"{method.id} cannot use {format} rows", where=where, remedy=f"it uses: {', '.join(method.formats)}")


def remap(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with `columns` (our name: the name in the file) renamed. A renamed field hides one that had our name.

    ShareGPT's `conversations` become `messages` (see sharegpt.py) in a row that has no format of its own, or that of a text.
    """
    if columns:
        row = _renamed(row, columns)
    if sharegpt.NAME in row.fields and detect(row.fields) in (None, "text"):
        return sharegpt.as_messages(row, sharegpt.NAME)
    return sharegpt.as_messages(row, "messages") if sharegpt.has_speakers(row.fields.get("messages")) else row


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    renamed = {ours: row.fields[theirs] for ours, theirs in columns.items() if theirs in row.fields}
    taken = set(columns.values())
    return Row(row.line, {name: value for name, value in row.fields.items() if name not in taken} | renamed)


def renaming(ours: str, theirs: str) -> str:
    """How a column is renamed, in a config and on the command line."""
    return f"set data.columns: {{{ours}: {theirs}}} (for `convert` --columns {ours}={theirs})"


def to_example(row: Row, format: str, kind: Kind, system: str | None) -> Example | Problem:
    """The row as an Example, or why it cannot be one.

    `rl`: an answer is required. `messages`: the prompt is everything before the last assistant turn, which is
    completion and (without an `answer` field) answer; under sft `turns` holds both, where there are earlier assistant
    turns; what follows the last one is not used. Under rl a conversation that ends with a user turn and has an
    `answer` is a prompt as a whole. `prompt+completion` and `instruction` under rl: the completion is the answer where there is
    no `answer` field; a completion may be a list of one assistant turn. `gsm8k`: the answer is the number after the last ####;
    the whole text is sft's completion. `reasoning`: see chains.py; the answer is the solution's final answer unless there is an
    `answer` field. `text`: there are no messages.
    `system`, or the row's own `system` field, goes before prompts that have no system turn; what a chain's domain fields say
    goes behind it. `columns` holds every field but the prompt itself; `type` is there as `types`, too, the name that reward
    functions use.
    """
    check_format(format)
    try:
        return _example(row, format, kind, system)
    except Unusable as unusable:
        return Problem(row.line, *unusable.parts)


def _example(row: Row, format: str, kind: Kind, system: str | None) -> Example:
    fields = row.fields
    if not has_fields(fields, format):
        names = next(names for names in _NEEDED[format] if all(fields.get(name) is None for name in names))
        state = "is null" if names[0] in fields else "is missing"
        reason = f"{' or '.join(map(repr, names))} {state}; the row has: {', '.join(fields) or 'no fields'}"
        raise Unusable("missing-field", names[0], reason, f"add it, or {renaming(names[0], 'NAME')}")
    prompt, completion, answer = _READERS[format](fields, kind)
    if kind == "rl":
        if answer is None:
            raise Unusable("no-reference", "answer", "there is no answer to compare completions with", "add an `answer` field")
        for field in _RESERVED:
            if field in fields:
                raise Unusable("reserved-name", field, f"reward functions get {field!r} from the run", "rename the field")
    columns = {name: value for name, value in fields.items() if name not in ("prompt", "messages")}
    if answer is not None:
        columns["answer"] = answer
    if format == "prompt+completion":
        columns["completion"] = completion  # a text, however it was written
    if format == "reasoning":
        columns["reasoning_steps"] = chains.steps(fields)  # a list, however it was written
    if "type" in columns:
        columns.setdefault("types", columns["type"])
    messages = _with_system(prompt, fields, system, chains.domain_prompt(fields) if format == "reasoning" else "")
    turns: tuple[Message, ...] = ()
    if kind == "sft" and format == "messages" and any(turn.role == "assistant" for turn in messages):
        turns = (*messages, Message("assistant", completion or ""))
    marks = chains.marked_spans(fields) if kind == "sft" and format == "reasoning" else ()
    return Example(row.line, messages, completion, answer, columns, turns, marks)


_Parts = tuple[list[Message], str | None, str | None]  # prompt, completion, answer


def _prompt_answer(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    answer = required_text(fields, "answer")
    return prompt_turns(fields["prompt"], "prompt"), answer if kind == "sft" else None, answer


def _gsm8k(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    solution = required_text(fields, "answer")
    number = gsm8k_number(solution)
    if number is None and kind == "rl":
        reason = "no number after ####" if "####" in solution else "no #### in the answer"
        remedy = f"end it with `#### NUMBER`, or, to compare all of it, {renaming('prompt', 'question')}"
        raise Unusable("no-reference", "answer", reason, remedy)
    return prompt_turns(fields["question"], "question"), solution if kind == "sft" else None, number


def _prompt_completion(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    completion = reply_text(fields, "completion")
    answer = optional_text(fields, "answer")
    return prompt_turns(fields["prompt"], "prompt"), completion, completion if answer is None and kind == "rl" else answer


def _instruction(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    completion = required_text(fields, "output" if fields.get("response") is None else "response")
    asks = required_text(fields, "instruction")
    given = fields.get("input")
    if given is not None and not (isinstance(given, str) and not given.strip()):  # the format writes "" where there is none
        asks = f"{asks}\n\n{required_text(fields, 'input')}"
    answer = optional_text(fields, "answer")
    return [Message("user", asks)], completion, completion if answer is None and kind == "rl" else answer


def _reasoning(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    chain = chains.steps(fields)
    chains.check_marks(fields, chain)
    solution = required_text(fields, "solution")
    answer = optional_text(fields, "answer") or chains.final_answer(solution)
    completion = chains.render(chain, solution, answer) if kind == "sft" else None
    return prompt_turns(fields["problem"], "problem"), completion, answer


def _messages(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    turns = chat_turns(fields["messages"], "messages")
    answer = optional_text(fields, "answer")
    if kind == "rl" and answer is not None and turns[-1].role == "user":
        return asked(turns, "messages"), None, answer
    last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None:
        if kind == "sft":
            raise Unusable("no-completion", "messages", "no turn has the role assistant", "add the reply that should be learned")
        raise Unusable("no-reference", "messages", "there is neither an assistant turn nor an `answer` field", "add one of them")
    completion = turns[last].content
    return asked(turns[:last], "messages"), completion, completion if answer is None else answer


def _text(fields: Mapping[str, Any], kind: Kind) -> _Parts:
    if kind == "rl":
        remedy = "part it into prompt and answer, or use method: sft"
        raise Unusable("no-prompt", "text", "plain text has no prompt to reply to, and no answer", remedy)
    return [], required_text(fields, "text"), None


_READERS = {
    "messages": _messages,
    "reasoning": _reasoning,
    "prompt+completion": _prompt_completion,
    "prompt+answer": _prompt_answer,
    "gsm8k": _gsm8k,
    "instruction": _instruction,
    "text": _text,
}


def gsm8k_number(solution: str) -> str | None:
    """The number after the last ####, without commas and $; None where there is none."""
    _, mark, tail = solution.rpartition("####")
    match = _GSM8K_NUMBER.match(tail.replace(",", "").replace("$", "").replace("\N{MINUS SIGN}", "-").strip())
    return match[0] if mark and match else None


def _with_system(prompt: list[Message], fields: Mapping[str, Any], default: str | None, domain: str) -> tuple[Message, ...]:
    own = fields.get("system")
    if not prompt and (own or default):
        remedy = "remove data.system and the `system` field, or use prompt+completion rows"
        raise Unusable("no-chat", "system", "plain text has no prompt that a system message could stand before", remedy)
    if own is None and not default and not domain:
        return tuple(prompt)
    if own is not None and not isinstance(own, str):
        raise Unusable("wrong-type", "system", f"'system' is {json_type(own)}", "write a string")
    has_turn = any(turn.role == "system" for turn in prompt)
    if (own or domain) and has_turn:
        field = "system" if own else "domain"
        raise Unusable("two-systems", field, f"the row has a system turn and a `{field}` field", "keep one of them")
    text = "\n\n".join(part for part in (own or default, domain) if part)
    return tuple(prompt) if has_turn or not text else (Message("system", text), *prompt)
