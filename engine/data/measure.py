"""Rows as a run makes them: rendered by the model's template, encoded, and, where rewards are known, scored with their answers.

Needs a model folder's tokenizer, but no model. Each of this costs a thousand times what reading a row does: see sample.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence

from engine.data.report import Groups, ProblemGroup, TokenLengths, token_lengths
from engine.data.targets import TargetRow, Targets, context, target_rows
from engine.data.template import ChatTokenizer
from engine.data.values import Problem
from engine.errors import InputError
from engine.types import Example

# Scores completions, one for each example: by the name of the reward, how far each falls short of that reward's full marks.
# 0: full marks; None: not applicable. A reward whose full marks are not known is left out.
Scorer = Callable[[Sequence[Example], Sequence[str]], Mapping[str, Sequence[float | None]]]
_ROUNDING = 1e-9


class Lengths:
    """Measures example after example. `refused` are those that the chat template does not take."""

    def __init__(self, tokenizer: ChatTokenizer, targets: Targets | None) -> None:
        self.refused = Groups()
        self.training_rows = 0
        self.split_chats = 0
        self._tokenizer = tokenizer
        self._targets = targets
        self._prompts = {True: array("Q"), False: array("Q")}  # by whether the row was drawn by chance
        self._completions = {True: array("Q"), False: array("Q")}

    def add(self, example: Example, by_chance: bool = True) -> bool:
        """Measure it; whether the template takes it. Not `by_chance`: chosen because it is long."""
        try:
            rows = rows_of(example, self._tokenizer, self._targets)
        except InputError as error:
            self.refused.add(Problem(example.line, "refused-by-template", "", error.what, error.remedy))
            return False
        self.training_rows += len(rows)
        self.split_chats += len(rows) > 1
        self._prompts[by_chance].extend(len(row.prompt) for row in rows)
        self._completions[by_chance].extend(len(row.tokens) for row in rows)
        return True

    def prompts(self, limit: int) -> TokenLengths | None:
        """The distribution of the prompts' lengths."""
        return token_lengths(self._prompts[True], limit, self._prompts[False])

    def completions(self, limit: int) -> TokenLengths | None:
        """The distribution of the completions' lengths; None for completions that are sampled."""
        return None if self._targets is None else token_lengths(self._completions[True], limit, self._completions[False])


def rows_of(example: Example, tokenizer: ChatTokenizer, targets: Targets | None) -> list[TargetRow]:
    """What a run makes of the example; without `targets`, for completions that are sampled, its prompt alone."""
    if targets is None:
        return [TargetRow(tuple(context(tokenizer, example.messages)[1]), (), ())]
    return target_rows(tokenizer, example, targets)


def template_trouble(tokenizer: ChatTokenizer, example: Example, rows: int) -> list[ProblemGroup]:
    """What the model's chat template lacks, tried on one example that it takes; `rows` are concerned."""
    if not tokenizer.has_template:
        reason = "the model has no chat template: a prompt is its turns' text, joined, and nothing says that a reply is due"
        return [
            ProblemGroup("no-template", rows, (), "", reason, "use an instruct model, or end each prompt with a sign of your own")
        ]
    if tokenizer.render(example.messages, True) == tokenizer.render(example.messages, False):
        reason = "the chat template has no generation prompt: nothing says that the model's turn begins"
        return [ProblemGroup("no-generation-prompt", rows, (), "", reason, "use the template of the model's instruct version")]
    return []


def reference_completion(example: Example) -> str:
    """The completion that a right model would give: the answer, and the chain's steps where there are some, in the layout of the
    `format` reward. An answer that has a layout of its own, and a completion without an answer, stand as they are."""
    if example.answer is None:
        return example.completion or ""
    if "<answer>" in example.answer:
        return example.answer
    steps = example.columns.get("reasoning_steps")
    thoughts = steps if isinstance(steps, list) else [f"The answer is {example.answer}."]
    return "<think>\n" + "\n".join(map(str, thoughts)) + f"\n</think>\n<answer>{example.answer}</answer>"


def dry_run(examples: Sequence[Example], scorer: Scorer) -> list[Problem]:
    """A problem for each example whose own answer falls short of full marks with a reward that applies, or to which none does."""
    if not examples:
        return []
    shortfalls = scorer(examples, [reference_completion(example) for example in examples])
    problems = []
    remedy = "correct the answer, or use another reward"
    for place, example in enumerate(examples):
        own = {name: values[place] for name, values in shortfalls.items()}
        low = {name: value for name, value in own.items() if value is not None and value > _ROUNDING}
        if low:
            shown = ", ".join(f"{name} by {value:g}" for name, value in low.items())
            reason = f"the row's own answer falls short of full marks: {shown}"
            problems.append(Problem(example.line, "answer-below-full", "answer", reason, remedy))
        elif own and all(value is None for value in own.values()):
            reason = f"{' and '.join(own)} cannot judge the row's own answer"
            problems.append(Problem(example.line, "answer-not-scored", "answer", reason, remedy))
    return problems


def require_one_within(
    examples: Sequence[Example],
    tokenizer: ChatTokenizer,
    *,
    max_prompt_tokens: int,
    max_completion_tokens: int | None,
    where: str,
    targets: Targets = "assistant",
) -> None:
    """InputError unless some training row is within the limits, measured as in validate; reads no further than the first.

    `max_completion_tokens` None: the completions are sampled, not given.
    """
    refusal: InputError | None = None
    shortest: int | None = None
    for example in examples:
        try:
            rows = rows_of(example, tokenizer, None if max_completion_tokens is None else targets)
        except InputError as error:
            refusal = refusal or error
            continue
        for row in rows:
            shortest = len(row.prompt) if shortest is None else min(shortest, len(row.prompt))
            if max_completion_tokens is None:
                if len(row.prompt) <= max_prompt_tokens:
                    return
            elif row.is_within(max_prompt_tokens, max_completion_tokens):
                return
    if shortest is None and refusal is not None:
        raise InputError(f"none of its {len(examples)} prompts can be used: {refusal.what}", where=where, remedy=refusal.remedy)
    what = f"none of its {len(examples)} rows is within the token limits; the shortest prompt has {shortest} tokens"
    limit = "max_prompt_tokens" if max_completion_tokens is None else "max_prompt_tokens and max_completion_tokens"
    raise InputError(what, where=where, remedy=f"raise {limit} in sampling")
