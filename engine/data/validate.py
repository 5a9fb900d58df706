"""What a data file holds for a method, without loading a model: usable rows, problems, lengths in tokens, repeats, overlap.

Every row is read, and the structure is that of every row. Rendering, encoding and scoring are done on all rows of a small file
and on a sample of a large one, and the report says so. Lengths are those of the rows that a run makes. For supervised training
that is engine/data/targets.py: a row is a whole chat, its `prompt` everything before the first target, its `completion`
everything from there on, masked text between replies included.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import methods
from engine.config import ChatConfig, DataConfig, RunConfig
from engine.data import held_out, sources
from engine.data.examples import require_format
from engine.data.formats import stream
from engine.data.measure import Lengths, require_one_within, template_trouble
from engine.data.report import (
    DataReport,
    DryRun,
    Groups,
    HeldOut,
    ProblemGroup,
    TokenLengths,
    Verdict,
    grouped,
    token_lengths,
)
from engine.data.scoring import OwnAnswer, Scorer, Tally, reference_completion
from engine.data.structure import SAMPLE_ROWS, Sample, Structure, duplicate_lines
from engine.data.targets import Targets
from engine.data.template import MODELS_OWN, ChatTokenizer
from engine.rewards.marks import DECISIVE_WEIGHT
from engine.sections import RunSection
from engine.types import Example

__all__ = [
    "DataReport",
    "DryRun",
    "HeldOut",
    "ProblemGroup",
    "Scorer",
    "TokenLengths",
    "Verdict",
    "as_configured",
    "duplicate_lines",
    "grouped",
    "require_one_within",
    "token_lengths",
    "validate",
]

EVAL_ROWS = RunSection().eval_rows
_SCORED_AT_ONCE = 2048
_NO_PROMPT = "rows of plain text have no prompt: all of it is learned, and targets: last has nothing to go by"


def validate(
    path: Path,
    method_id: str,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    system: str | None = None,
    tokenizer: Path | None = None,
    chat: ChatConfig = MODELS_OWN,
    max_prompt_tokens: int = 512,
    max_completion_tokens: int = 512,
    targets: Targets = "assistant",
    decisive_weight: float = DECISIVE_WEIGHT,
    valid: Path | None = None,
    is_held_out: bool = False,
    scorer: Scorer | None = None,
    full: bool = False,
    eval_rows: int = EVAL_ROWS,
    seed: int = 0,
) -> DataReport:
    """Check every row of `path`, a file or a folder's train file, for the method.

    With `tokenizer`, a model folder, lengths are measured as well, in the template that `chat` says; with `valid`, the held-out
    file (a folder's own is found), that one is read, too, and prompts that are in both are warned of; without, a row must be
    left to hold out, unless `path` itself `is_held_out` (of up to 2,000 rows, with a tokenizer, one within the limits: a run
    holds back `eval_rows` by `seed`); with `scorer`, for a reward method, rows whose own answer does not get
    full marks, and rewards that fail. The last and the first of these take all rows up to 2,000, then as many drawn by `seed`
    and the 100 longest, unless `full`.
    A completion's length includes the token that ends it; of a chat with several targets it is all that follows the first
    target's beginning, and with `targets` "all" the prompt is one token. Chats that the chat template refuses are problems.
    InputError for an unknown method, a format that the method cannot use, and whatever makes the file unreadable as a whole;
    a damaged line is a problem and makes the file unusable, as does all else that a run would refuse: of the held-out file as
    well, of the limits, and of rewards that fail on every row.
    """
    method = methods.method(method_id)
    file, valid = sources.training_files(DataConfig(train=str(path), valid=None if valid is None else str(valid)))
    chosen, results = stream(file, kind=method.kind, format=format, columns=columns, system=system)
    require_format(method, chosen, str(file))
    is_supervised = method.kind == "sft"
    measured = None if tokenizer is None else ChatTokenizer(tokenizer, chat)
    held: HeldOut | None = None
    taken: frozenset[bytes] = frozenset()
    if valid is not None:
        held, taken = held_out.look(
            valid,
            method,
            format=format,
            columns=columns,
            system=system,
            tokenizer=measured,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
            targets=targets,
        )
    structure = Structure(taken)
    lengths = None if measured is None else Lengths(measured, targets if is_supervised else None, decisive_weight)
    closer = _Closer(measured, lengths, None if is_supervised else scorer, full, seed)
    problems = Groups()
    for result in results:
        if isinstance(result, Example):
            structure.add(result)
            closer.add(result)
        else:
            problems.add(result)
    rows = structure.count + len(problems)
    closer.finish(problems, structure.warnings)
    usable = rows - len(problems)
    prompt_tokens = None if lengths is None else lengths.prompts(max_prompt_tokens)
    completion_tokens = None if lengths is None else lengths.completions(max_completion_tokens)
    one_sided = () if is_supervised else _one_sided(structure)
    warnings = (*closer.template_trouble(usable), *closer.tally.failures(), *structure.warnings.groups(), *one_sided)
    over = sum(found.over_limit for found in (prompt_tokens, completion_tokens) if found is not None)
    of_data: list[ProblemGroup] = []  # why the file cannot be used, beside its rows' own problems
    of_settings: list[ProblemGroup] = []
    if usable == 1 and held is None and not is_held_out:
        of_data.append(ProblemGroup("too-few", 1, (), "", "one row leaves nothing to hold out", "add rows, or give data.valid"))
    if chosen == "text" and targets == "last" and is_supervised:
        of_settings.append(ProblemGroup("no-prompt", usable, (), "", _NO_PROMPT, "leave data.targets out"))
    if lengths is not None and lengths.training_rows and not lengths.has_row_within(max_prompt_tokens, max_completion_tokens):
        of_settings.append(_over_limits(lengths.training_rows, is_supervised))
    elif measured is not None and held is None and not is_held_out and len(closer.every) > 1:
        of_settings += held_out.of_the_split(
            closer.every,
            measured,
            eval_rows=eval_rows,
            seed=seed,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens if is_supervised else None,
            targets=targets,
        )
    verdict: Verdict = "ready"
    is_spoiled = not usable or problems.is_broken or bool(of_data) or (held is not None and held.is_unusable)
    is_settings_only = not is_spoiled and (bool(of_settings) or closer.tally.is_refused)
    if is_spoiled or is_settings_only:
        verdict = "unusable"
    elif len(problems) or structure.duplicate_lines or over or warnings or (held is not None and held.problems):
        verdict = "ready with warnings"
    return DataReport(
        path=str(file),
        method=method_id,
        format=chosen,
        rows=rows,
        usable=usable,
        problems=(*of_data, *of_settings, *problems.groups()),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        duplicates=len(structure.duplicate_lines),
        duplicate_lines=tuple(structure.duplicate_lines),
        verdict=verdict,
        training_rows=None if lengths is None else lengths.training_rows,
        split_chats=0 if lengths is None else lengths.split_chats,
        warnings=warnings,
        sampled=closer.sampled,
        dry_run=closer.tally.runs(),
        decisive_share=None if lengths is None else lengths.decisive_share,
        held_out=held,
        is_settings_only=is_settings_only,
        labels=() if is_supervised else structure.labels(),
    )


def as_configured(config: RunConfig) -> dict[str, Any]:
    """The arguments of `validate` that a config sets, so that its data is read as the run will read it; all but the file, the
    method, the tokenizer and the scorer."""
    data, sampling = config.data, config.sampling
    return {
        "format": data.format,
        "columns": data.columns,
        "system": data.system,
        "chat": config.chat,
        "targets": data.targets,
        "decisive_weight": data.decisive_weight,
        "valid": None if data.valid is None else Path(data.valid),
        "max_prompt_tokens": sampling.max_prompt_tokens,
        "max_completion_tokens": sampling.max_completion_tokens,
        "eval_rows": config.run.eval_rows,
        "seed": config.run.seed,
    }


class _Closer:
    """The costly look: at every example as it comes, or at the end at a sample of them."""

    def __init__(
        self, tokenizer: ChatTokenizer | None, lengths: Lengths | None, scorer: Scorer | None, full: bool, seed: int
    ) -> None:
        self.tally = Tally()
        self.every: list[Example] = []  # none where they are more than a sample has
        self.sampled: int | None = None
        self._tokenizer = tokenizer
        self._lengths = lengths
        self._scorer = scorer
        self._waiting: list[OwnAnswer] = []
        self._taken: Example | None = None  # the first that the template takes
        self._count = 0
        self._is_idle = lengths is None and scorer is None
        self._sample = None if full or self._is_idle else Sample(seed=seed)

    def add(self, example: Example) -> None:
        """One more example."""
        if self._is_idle:
            return
        self._count += 1
        if self._count <= SAMPLE_ROWS:
            self.every.append(example)
        else:
            self.every.clear()
        if self._sample is None:
            self._look(example, by_chance=True)
            if len(self._waiting) >= _SCORED_AT_ONCE:
                self._score()
        else:
            self._sample.add(example)

    def finish(self, problems: Groups, warnings: Groups) -> None:
        """Look at what is left; put what the template refuses among the problems, what else there is among the warnings."""
        if self._sample is not None:
            drawn, longest = self._sample.taken()
            for example in drawn:
                self._look(example, by_chance=True)
            for example in longest:
                self._look(example, by_chance=False)
            if len(drawn) + len(longest) < self._count:
                self.sampled = len(drawn) + len(longest)
        self._score()
        if self._lengths is not None:
            problems.update(self._lengths.refused)
            warnings.update(self._lengths.split)
        warnings.update(self.tally.warnings)

    def template_trouble(self, rows: int) -> list[ProblemGroup]:
        """What the model's chat template lacks."""
        if self._tokenizer is None or self._taken is None:
            return []
        return template_trouble(self._tokenizer, self._taken, rows)

    def _look(self, example: Example, *, by_chance: bool) -> None:
        if self._lengths is not None:
            if not self._lengths.add(example, by_chance):
                return
            self._taken = self._taken or example
        if self._scorer is not None:
            if self._tokenizer is None:
                prompt = "\n".join(turn.content for turn in example.messages)
            else:
                prompt = self._tokenizer.render(example.messages, True)
            self._waiting.append(OwnAnswer(example, prompt, reference_completion(example, prompt)))

    def _score(self) -> None:
        if self._scorer is not None and self._waiting:
            self.tally.add(self._waiting, self._scorer(self._waiting))
            self._waiting.clear()


def _one_sided(structure: Structure) -> tuple[ProblemGroup, ...]:
    """That one answer is right for nearly every row, where it is; no single row is to blame."""
    found = structure.one_sided()
    if found is None:
        return ()
    return (ProblemGroup(found.kind, structure.labels()[0][1], (), found.field, found.reason, found.remedy),)


def _over_limits(rows: int, is_supervised: bool) -> ProblemGroup:
    """That no row is within the limits."""
    limits = "max_prompt_tokens and max_completion_tokens" if is_supervised else "max_prompt_tokens"
    return ProblemGroup("over-limits", rows, (), "", "no row is within the token limits", f"raise {limits} in sampling")
