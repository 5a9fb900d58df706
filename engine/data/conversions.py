"""One row from one format to another: what each format is made of, and what it cannot hold.

A row is read as training reads it (its prompt, the completion that is imitated, the answer that rewards compare with) and
written so that training reads the same prompt, completion and answer from the new row, which is checked for every row. What
would have to be guessed or would be lost of those is Unusable; what a format has by its nature no place for (which replies are
learned, which steps decide) is a note, and the row is written.

    target              made of
    messages            the prompt's turns, then the completion (else the answer) as the assistant's
    prompt+completion   the prompt; the completion, else the answer
    prompt+answer       the prompt; the answer, else the completion
    instruction         a prompt of one question; the completion, else the answer, as `output`
    gsm8k               a prompt of one question; a text that ends with #### NUMBER: the completion, or the steps of a
                        <think>...</think><answer>NUMBER</answer>, or the number alone
    reasoning           a prompt of one question; the row's reasoning_steps and solution, else the completion's: its
                        <think>...</think><answer>...</answer>, of gsm8k rows its lines and number
A system turn stands first in messages and in the field `system` elsewhere. An `answer` beside a completion is kept. All other
fields are kept as columns, which rewards read. `text` is not made of anything else nor into it: it has no prompt to part.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.data import chains
from engine.data.examples import FORMATS, detect, gsm8k_number, has_fields, to_example
from engine.data.fields import Unusable, required_text
from engine.data.meaning import DROP, Meaning, plain, read
from engine.data.values import Problem, Row
from engine.errors import InputError
from engine.rewards.format import TAGS
from engine.types import Example, Message

# Fields that a format is made of or reads, in the order in which they are written.
OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("system", "messages", "answer"),
    "reasoning": (
        *("system", "problem", "reasoning_steps", "solution", "answer", "sparse_indicators", "efficiency_markers"),
        *("domain", "expertise_level", "domain_context"),
    ),
    "prompt+completion": ("system", "prompt", "completion", "answer"),
    "prompt+answer": ("system", "prompt", "answer", "type"),
    "gsm8k": ("system", "question", "answer"),
    "instruction": ("system", "instruction", "input", "output", "answer"),
    "text": ("text",),
}
_CARRIED = {"reasoning": OWN_FIELDS["reasoning"][2:], "prompt+answer": ("type",)}  # columns that are a target's own fields
_WOULD_COUNT = {"instruction": ("input", "response")}  # columns that a target would read as its own
_LAYOUT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile("|".join(TAGS))


@dataclass(frozen=True, slots=True)
class Converted:
    """A row of the new format, and what it has no place for: the row is written all the same."""

    fields: dict[str, Any]
    notes: tuple[Problem, ...] = ()


def check_target(target: str) -> None:
    """InputError unless rows can become rows of the format."""
    if target not in FORMATS or target not in OWN_FIELDS:
        known = ", ".join(name for name in FORMATS if name in OWN_FIELDS)
        raise InputError(f"rows cannot be converted to {target!r}", where="--to", remedy=f"one of: {known}")


def check_pair(source: str, target: str) -> None:
    """InputError unless rows of the first format can become rows of the second."""
    check_target(target)
    if source not in OWN_FIELDS:
        raise InputError(f"{source} rows cannot be converted", where="--format", remedy=f"one of: {', '.join(OWN_FIELDS)}")
    if source != target and "text" in (source, target):
        why = "a text is not parted into prompt and completion"
        if target == "text":
            why = "a text does not say where its prompt ends: the prompt would be learned, too"
        what = f"{source} rows cannot become {target} rows: {why}"
        remedy = "part it into the fields prompt and completion" if source == "text" else "methods that read text read chats, too"
        raise InputError(what, where="--to", remedy=remedy)


def convert_row(row: Row, example: Example, source: str, target: str, *, only_format_fields: bool = False) -> Converted | Problem:
    """The row, of which training reads `example`, as one of the format `target`; a Problem where that cannot be exact."""
    if source == target:
        return Converted(_same(row, target, only_format_fields))
    try:
        meaning = read(row, example, source)
        if only_format_fields:
            carried = _CARRIED.get(target, ())
            meaning.columns = {name: value for name, value in meaning.columns.items() if name in carried}
        fields, completion, answer = _TARGETS[target](meaning)
        made = _joined(meaning, fields, target)
        _check(made, target, meaning, completion, answer)
        if example.marks:
            reason = "only reasoning rows say which steps decide: supervised training will weigh all of the completion alike"
            meaning.note("step-marks", "sparse_indicators", reason, "keep the format reasoning to weigh the decisive steps")
    except Unusable as unusable:
        return Problem(row.line, *unusable.parts)
    return Converted(made, tuple(meaning.notes))


def _same(row: Row, format: str, only_format_fields: bool) -> dict[str, Any]:
    fields = dict(row.fields)
    if format == "instruction" and fields.get("output") is None and fields.get("response") is not None:
        fields = {"output" if name == "response" else name: value for name, value in fields.items() if name != "output"}
    if not only_format_fields:
        return fields
    return {name: fields[name] for name in OWN_FIELDS[format] if name in fields}


def _joined(meaning: Meaning, fields: dict[str, Any], target: str) -> dict[str, Any]:
    """The new row: the format's own fields, then the columns that are kept."""
    columns = meaning.columns
    for name in (*fields, *_WOULD_COUNT.get(target, ())):
        if columns.get(name) is not None:
            raise Unusable("taken-name", name, f"the row has a column {name!r}, which {target} reads as its own", DROP)
    made = {name: fields[name] for name in OWN_FIELDS[target] if name in fields}
    made |= {name: value for name, value in columns.items() if name not in fields}
    while (found := detect(made)) != target:
        needed = [name for field in FORMATS.get(found or "", ()) for name in field.split("|")]
        if not (mine := [name for name in needed if name in columns and name in made]):
            raise Unusable("other-format", "", f"the new row would be taken for {found}", DROP)
        for name in mine:
            del made[name]
            reason = f"with a column {name!r} the rows would be taken for {found}: it is not carried"
            meaning.note("column", name, reason, "rename the column")
    return made


def _check(made: dict[str, Any], target: str, meaning: Meaning, completion: str, answer: str) -> None:
    """Raises Unusable unless training reads from the new row what was meant."""
    found = to_example(Row(meaning.line, made), target, "sft", None)
    if isinstance(found, Problem):
        raise Unusable(found.kind, found.field, f"as {target}: {found.reason}", found.remedy)
    reference = found.completion if found.answer is None else found.answer
    for what, is_same in (
        ("prompt", found.messages == meaning.prompt),
        ("completion", found.completion == completion),
        ("answer", reference == answer),
    ):
        if not is_same:
            raise Unusable("would-change", "", f"as {target} the row would have another {what}", "write the row by hand")


# What each target is made of: the new fields, and the completion and the answer that training is to read from them.
_Made = tuple[dict[str, Any], str, str]


def _messages(meaning: Meaning) -> _Made:
    if any(turn.role == "assistant" for turn in meaning.prompt):
        reason = "earlier replies in the prompt are learned, too, as every reply of a chat is"
        meaning.note("earlier-replies", "prompt", reason, "set data.targets: last to learn the last one alone")
    turns = plain([*meaning.prompt, Message("assistant", meaning.imitated)])
    return {"messages": turns} | meaning.own_answer, meaning.imitated, meaning.reference


def _prompt_completion(meaning: Meaning) -> _Made:
    _note_earlier(meaning)
    fields = meaning.prompt_fields() | {"completion": meaning.imitated} | meaning.own_answer
    return fields, meaning.imitated, meaning.reference


def _prompt_answer(meaning: Meaning) -> _Made:
    answer = meaning.reference
    if meaning.source == "gsm8k" and meaning.answer is None:
        raise Unusable("no-number", "answer", "there is no number after ####", "end it with `#### NUMBER`")
    _note_earlier(meaning)
    has_chain = has_fields(meaning.columns | {"problem": ""}, "reasoning")
    if meaning.completion not in (None, answer, f"#### {answer}") and not has_chain:
        reason = "the completion is not carried: the answer alone is"
        meaning.note("completion", "", reason, "convert to prompt+completion to keep it")
    return meaning.prompt_fields() | {"answer": answer}, answer, answer


def _note_earlier(meaning: Meaning) -> None:
    if meaning.source == "messages" and any(turn.role == "assistant" for turn in meaning.prompt):
        reason = "earlier replies become a part of the prompt: the last one alone is learned"
        meaning.note("earlier-replies", "messages", reason, "keep the format messages to learn all of them")


def _instruction(meaning: Meaning) -> _Made:
    fields = meaning.question_fields("instruction") | {"output": meaning.imitated} | meaning.own_answer
    return fields, meaning.imitated, meaning.reference


def _gsm8k(meaning: Meaning) -> _Made:
    fields = meaning.question_fields("question")
    text, answer = _numbered(meaning.imitated, meaning.answer)
    number = gsm8k_number(text)
    if number is None:
        reason = "the completion does not end with #### NUMBER" if answer is None else f"the answer {answer!r:.40} is no number"
        raise Unusable("no-number", "answer", reason, "write it so, or convert to prompt+completion instead")
    if answer is not None and number != answer:
        reason = f"the answer is {answer!r:.40}, but the number that gsm8k would read is {number!r:.40}"
        raise Unusable("other-number", "answer", reason, "write both alike: a plain number, without commas or units")
    return fields | {"answer": text}, text, number


def _numbered(completion: str, answer: str | None) -> tuple[str, str | None]:
    """The completion as gsm8k writes it, and the answer that it must end with; None where that is not known beforehand."""
    layout = _LAYOUT.fullmatch(completion)
    if layout is not None:
        thoughts, final = layout[1].strip(), layout[2].strip() if answer is None else answer
        return thoughts if gsm8k_number(thoughts) == final else f"{thoughts}\n#### {final}".lstrip(), final
    if "####" not in completion and answer in (None, completion) and gsm8k_number(f"#### {completion}") is not None:
        return f"#### {completion}", completion
    return completion, answer if "####" in completion or answer == completion else None


def _reasoning(meaning: Meaning) -> _Made:
    columns = meaning.columns
    fields = meaning.question_fields("problem", chains.domain_prompt(columns))
    if columns.get("reasoning_steps") is not None and columns.get("solution") is not None:
        return _kept_chain(meaning, fields)
    steps, final = _parsed(meaning)
    chain = [line.strip() for line in steps.splitlines() if line.strip()]
    if not chain or not final:
        raise Unusable("no-steps", "", "there is no step, or no answer", "write each step on a line of its own")
    if meaning.answer not in (None, final):
        reason = f"the answer is {meaning.answer!r:.40}, but the completion ends with {final!r:.40}"
        raise Unusable("other-answer", "answer", reason, "write both alike")
    fields |= {"reasoning_steps": chain, "solution": final}
    if chains.final_answer(final) != final:
        fields["answer"] = final
    completion = chains.render(chain, final, final)
    if meaning.source != "gsm8k" and completion != meaning.imitated:
        if _words(completion) != _words(meaning.imitated):
            raise Unusable(
                "other-layout", "", "the completion is not what its steps and answer give", "write a step on each line"
            )
        meaning.note(
            "layout", "", "line breaks and blanks between steps become those of the layout", "training sees the new ones"
        )
    return fields, completion, final


def _words(completion: str) -> list[str]:
    return _TAG.sub(r" \g<0> ", completion).split()


def _parsed(meaning: Meaning) -> tuple[str, str]:
    """The text of the steps, and the answer that they come to."""
    if meaning.source == "gsm8k":
        if meaning.answer is None:
            raise Unusable("no-number", "answer", "there is no number after ####", "end it with `#### NUMBER`")
        return meaning.imitated.rpartition("####")[0], meaning.answer
    layout = _LAYOUT.fullmatch(meaning.imitated)
    if layout is None:
        reason = f"a {meaning.source} row without steps of reasoning has none to write"
        raise Unusable("no-steps", "", reason, "write completions as <think>a step on each line</think><answer>...</answer>")
    return layout[1], layout[2].strip()


def _kept_chain(meaning: Meaning, fields: dict[str, Any]) -> _Made:
    """The chain that the row still has as columns, where the completion is made of it."""
    kept = {name: meaning.columns.pop(name) for name in ("reasoning_steps", "solution")}
    chain, solution = chains.steps(kept), required_text(kept, "solution")
    answer = chains.final_answer(solution) if meaning.answer is None else meaning.answer
    completion = chains.render(chain, solution, answer)
    if meaning.completion not in (None, completion, _numbered(completion, answer)[0]):
        reason = "the columns reasoning_steps and solution do not give the row's completion"
        raise Unusable("other-steps", "reasoning_steps", reason, DROP)
    if answer != chains.final_answer(solution):
        fields["answer"] = answer
    return fields | kept, completion, answer


_TARGETS: dict[str, Callable[[Meaning], _Made]] = {
    "messages": _messages,
    "reasoning": _reasoning,
    "prompt+completion": _prompt_completion,
    "prompt+answer": _prompt_answer,
    "gsm8k": _gsm8k,
    "instruction": _instruction,
}
