"""The verbs `rewards` and `rewards test`: what there is to reward with, and what a config's rewards give before any training."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import config as configs
from engine.cli import loading
from engine.cli.screens import table
from engine.config import RunConfig
from engine.data import formats
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.rewards import trial
from engine.rewards.given import given_completions
from engine.rewards.registry import RewardInfo, describe
from engine.rewards.trial import AnswersTrial, CompletionsTrial
from engine.runs import record
from engine.safe_text import safe_text
from engine.types import Example

_SHOWN_LINES = 8
_WIDTH = 96

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    help="""List the built-in rewards: what each scores and the columns of the data that it needs.

    `droid-tune rewards test CONFIG` tries those of a config on the data's own answers before any training.
    """,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.callback()
def rewards(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    found = describe()
    print(json.dumps([asdict(info) for info in found], indent=1) if as_json else "\n".join(listed(found)))


@app.command(name="test")
def test(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged recipe such as grpo.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="At most so many rows, from the first on.")] = 200,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Score this run's latest completions instead.")] = None,
    completions: Annotated[
        Path | None, typer.Option("--completions", metavar="FILE", help="Score the completions of this .jsonl file instead.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a config value, e.g. --set data.train=x.jsonl."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try a config's rewards through the real reward process, before any training.

    Every row's own answer must get full marks from the rewards that judge answers, and more than another row's answer. It is
    tried as <think>...</think><answer>...</answer>, and bare as well by functions of your own, where the better of the two
    counts. Exits with 1 where that is not so. llm_judge and code_tests are left out: a bare answer tells nothing of them.

    With --run, the completions that a run has stored in its latest step are scored instead, by all rewards. With --completions
    those of a file: {"line": 3, "completion": "..."} replies to line 3 of the training file; or each line is a row of the data
    with a completion beside, such as {"prompt": "2+2?", "answer": "4", "completion": "..."}.
    """
    found = loading.load(config, settings).config
    if not found.rewards:
        raise InputError("there are no rewards to test", where=config, remedy="add a `rewards` section and a reward method")
    if run is not None and completions is not None:
        raise InputError("two sources of completions are given", where="--completions", remedy="leave out --run or --completions")
    data = formats.load_training_data(found)
    examples = data.train
    if run is not None or completions is not None:
        if completions is not None:
            scored = _given(found, data.files[0], completions, rows)
        else:
            assert run is not None
            scored = _stored(found, examples, run, rows)
        as_text = completion_lines(scored)
        faults = [part.name for part in scored if part.errors]
        source = {"run": run} if run is not None else {"completions": str(completions)}
        report: dict[str, Any] = {**source, "rewards": [asdict(part) for part in scored]}
    else:
        tried = examples[:rows]
        chat = ChatTokenizer(configs.model_folder(found.model), found.chat)
        prompts = [chat.render(example.messages, True) for example in tried]
        answers, left_out = trial.try_answers(found.rewards, tried, prompts, chat.encode_reply)
        if not answers:
            what = f"{' and '.join(left_out)} cannot be tried on bare answers"
            raise InputError(what, where=config, remedy="try it on completions, with --run RUN or --completions FILE")
        as_text = answer_lines(answers, len(tried), len(examples))
        as_text += [f"note  {name} is left out: try it on completions, with --run RUN or --completions FILE" for name in left_out]
        faults = [part.name for part in answers if part.fault]
        report = {"rows": len(tried), "of": len(examples), "left_out": left_out}
        report["rewards"] = [{**asdict(part), "fault": part.fault} for part in answers]
    print(json.dumps(report, indent=1, ensure_ascii=False) if as_json else "\n".join(as_text))
    raise typer.Exit(1 if faults else 0)


def listed(found: Sequence[RewardInfo]) -> list[str]:
    """The built-in rewards as a text."""
    lines = []
    for info in found:
        facts = [info.summary, *([info.details] if info.details else [])]
        columns = ", ".join([*info.columns, *(f"[{name}]" for name in info.optional)])
        facts += [f"columns: {columns}"] if columns else []
        facts += [f"option {option.name}: {option.meaning}; default: {option.default}" for option in info.options]
        facts += [f'needs: pip install "droid-tune[{info.extra}]"'] if info.extra else []
        wrapped = [line for fact in facts for line in textwrap.wrap(fact, _WIDTH)]
        lines += [info.name, *(f"    {line}" for line in wrapped)]
    notes = [
        "[column]: looked at where the data has it. A row's own column wins over an option.",
        "`droid-tune rewards test CONFIG` tries those of a config.",
    ]
    return [*lines, "", *notes]


def answer_lines(found: Sequence[AnswersTrial], rows: int, of: int) -> list[str]:
    """The trial of reference answers as a text."""
    head = ("reward", "full marks", "own answer", "another's", "nothing", "below", "n/a", "seconds")
    body = [
        (
            safe_text(part.name),
            _figure(part.full_marks),
            _figure(part.reference),
            _figure(part.other),
            _figure(part.empty),
            str(len(part.below)),
            str(part.not_applicable),
            f"{part.seconds:.3f}",
        )
        for part in found
    ]
    lines = [f"{rows} of {of} rows: mean reward of the row's own answer, of another row's, and of an empty completion", ""]
    lines += table([head, *body], right=range(1, len(head)))
    for part in found:
        if part.fault:
            lines.append(f"✕ {safe_text(part.name)}: {safe_text(part.fault)}")
        if part.below:
            shown = ", ".join(map(str, part.below[:_SHOWN_LINES])) + (", ..." if len(part.below) > _SHOWN_LINES else "")
            lines.append(f"  {safe_text(part.name)}: below full marks in line {shown}")
    return lines if any(part.fault for part in found) else [*lines, "✓ the answers get full marks"]


def completion_lines(found: Sequence[CompletionsTrial]) -> list[str]:
    """The trial of stored completions as a text."""
    head = ("reward", "mean", "least", "most", "n/a", "seconds")
    body = [
        (
            safe_text(part.name),
            _figure(part.mean),
            _figure(part.least),
            _figure(part.most),
            str(part.not_applicable),
            f"{part.seconds:.3f}",
        )
        for part in found
    ]
    errors = [f"✕ {safe_text(part.name)}: {safe_text(error)}" for part in found for error in part.errors]
    return [*table([head, *body], right=range(1, len(head))), *errors]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _stored(config: RunConfig, examples: Sequence[Example], run: str, rows: int) -> list[CompletionsTrial]:
    """The rewards on the completions of the run's latest step. InputError where it has none, or was trained on other data."""
    folder = record.find(run, record.home()).samples_dir
    files = sorted(folder.glob("step-*.jsonl"))
    if not files:
        raise InputError("the run has no stored completions", where=str(folder), remedy="let it train a step")
    with files[-1].open(encoding="utf-8", errors="surrogatepass") as lines:
        samples = [json.loads(line) for _, line in zip(range(rows), lines, strict=False)]
    places = [sample["prompt_id"] for sample in samples]
    own = [examples[place] if place < len(examples) else None for place in places]
    kept = [example for example in own if example is not None]
    if [example.answer for example in kept] != [sample["answer"] for sample in samples]:
        remedy = "give the run's own config: config.yaml in its folder, with the rewards to try"
        raise InputError("the run was trained on other data than this config's", where=str(files[-1]), remedy=remedy)
    prompts, completions = ([sample[key] for sample in samples] for key in ("prompt", "text"))
    ids = [sample["token_ids"] for sample in samples if "token_ids" in sample]
    return trial.try_completions(config.rewards, prompts, completions, ids if len(ids) == len(samples) else None, kept)


def _given(config: RunConfig, data: formats.DataSet, file: Path, rows: int) -> list[CompletionsTrial]:
    """The rewards on the completions of the file. InputError as given_completions raises it."""
    pairs = given_completions(file, data, config.data, rows)
    examples, texts = [example for example, _ in pairs], [text for _, text in pairs]
    chat = ChatTokenizer(configs.model_folder(config.model), config.chat)
    prompts = [chat.render(example.messages, True) for example in examples]
    return trial.try_completions(config.rewards, prompts, texts, [chat.encode_reply(text) for text in texts], examples)
