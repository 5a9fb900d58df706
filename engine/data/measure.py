"""Rows as a run makes them: rendered by the model's template and encoded.

Needs a model folder's tokenizer, but no model. It costs a thousand times what reading a row does: of large files a sample is
measured (structure.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from engine.data.report import Groups, ProblemGroup, TokenLengths, token_lengths
from engine.data.targets import TargetRow, Targets, context, decisive_share, target_rows
from engine.data.template import ChatTokenizer
from engine.data.values import Problem
from engine.errors import InputError
from engine.rewards.marks import DECISIVE_WEIGHT
from engine.types import Example

_SPLIT = (
    "the chat template does not keep earlier turns token for token (it strips their thinking, or tokens merge across a turn's "
    "border): the chat becomes several rows, each reply in its own exact context"
)
_SPLIT_REMEDY = "nothing is lost, but such chats take more rows of an update; data.targets: last learns the last reply only"


class Lengths:
    """Measures example after example. `refused` are those that the chat template does not take, `split` those that it parts."""

    def __init__(self, tokenizer: ChatTokenizer, targets: Targets | None, decisive_weight: float = DECISIVE_WEIGHT) -> None:
        self.refused = Groups()
        self.split = Groups()
        self.training_rows = 0
        self.split_chats = 0
        self._tokenizer = tokenizer
        self._targets = targets
        self._decisive_weight = decisive_weight
        self._target_tokens = self._decisive_tokens = 0
        self._prompts = {True: array("Q"), False: array("Q")}  # by whether the row was drawn by chance
        self._completions = {True: array("Q"), False: array("Q")}

    def add(self, example: Example, by_chance: bool = True) -> bool:
        """Measure it; whether the template takes it. Not `by_chance`: chosen because it is long."""
        try:
            rows = rows_of(example, self._tokenizer, self._targets, self._decisive_weight)
        except InputError as error:
            self.refused.add(Problem(example.line, "refused-by-template", "", error.what, error.remedy))
            return False
        self.training_rows += len(rows)
        if len(rows) > 1:
            self.split_chats += 1
            self.split.add(Problem(example.line, "prefix-not-stable", "messages", _SPLIT, _SPLIT_REMEDY))
        tokens = sum(sum(row.mask) for row in rows)
        self._target_tokens += tokens
        self._decisive_tokens += round(tokens * (decisive_share(rows) or 0))
        self._prompts[by_chance].extend(len(row.prompt) for row in rows)
        self._completions[by_chance].extend(len(row.tokens) for row in rows)
        return True

    @property
    def decisive_share(self) -> float | None:
        """The share, 0 to 1, of the target tokens that weigh more than others; None where no step is marked as decisive."""
        return self._decisive_tokens / self._target_tokens if self._decisive_tokens else None

    def has_row_within(self, max_prompt_tokens: int, max_completion_tokens: int) -> bool:
        """Whether a row that was measured is within both limits, as TargetRow.is_within says; of a sampled completion none is
        known."""
        return any(
            prompt <= max_prompt_tokens and (self._targets is None or 0 < completion <= max_completion_tokens)
            for by_chance, prompts in self._prompts.items()
            for prompt, completion in zip(prompts, self._completions[by_chance], strict=True)
        )

    def prompts(self, limit: int) -> TokenLengths | None:
        """The distribution of the prompts' lengths."""
        return token_lengths(self._prompts[True], limit, self._prompts[False])

    def completions(self, limit: int) -> TokenLengths | None:
        """The distribution of the completions' lengths; None for completions that are sampled."""
        return None if self._targets is None else token_lengths(self._completions[True], limit, self._completions[False])


def rows_of(example: Example, tokenizer: ChatTokenizer, targets: Targets | None, decisive_weight: float = 1) -> list[TargetRow]:
    """What a run makes of the example; without `targets`, for completions that are sampled, its prompt alone."""
    if targets is None:
        return [TargetRow(tuple(context(tokenizer, example.messages)[1]), (), ())]
    return target_rows(tokenizer, example, targets, decisive_weight)


def template_trouble(tokenizer: ChatTokenizer, example: Example, rows: int) -> list[ProblemGroup]:
    """What the model's chat template lacks, tried on one example that it takes; `rows` are concerned. Plain text needs none."""
    if not example.messages:
        return []
    if not tokenizer.has_template:
        reason = "the model has no chat template: a prompt is its turns' text, joined, and nothing says that a reply is due"
        return [
            ProblemGroup("no-template", rows, (), "", reason, "use an instruct model, or end each prompt with a sign of your own")
        ]
    if tokenizer.render(example.messages, True) == tokenizer.render(example.messages, False):
        reason = "the chat template has no generation prompt: nothing says that the model's turn begins"
        return [ProblemGroup("no-generation-prompt", rows, (), "", reason, "use the template of the model's instruct version")]
    return []


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
