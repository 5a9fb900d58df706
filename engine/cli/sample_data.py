"""The verb `sample-data`: rows to try a method with, before there is data of one's own."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml

from engine import methods, profiles
from engine.api import Engine
from engine.cli import screens
from engine.data import samples
from engine.data.examples import FORMATS
from engine.errors import InputError
from engine.safe_text import safe_text


def sample_data(
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="A new file: .jsonl, .json, .csv or .parquet. Without it: the list.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="The method that will use it; grpo, or the profile's own.")
    ] = None,
    topic: Annotated[str | None, typer.Option("--topic", help="What the rows are about, see above; arithmetic.")] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="The rows' format, such as reasoning; by itself the topic's or the method's own."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help=f"Topic and format of a kind of data: {', '.join(profiles.PROFILES)}.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="How many rows, each of them different.")] = 300,
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other rows.")] = 0,
    listed: Annotated[bool, typer.Option("--list", help="List topics, formats and profiles, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Generate rows to try a method with: problems with computed answers, each with its steps.

    --profile also prints the rewards that read the rows, to paste into the config of a reward method. Topics:
    """
    chosen = None if profile is None else profiles.profile(profile)
    if chosen is not None and (topic is not None or format is not None):
        what = f"the profile {chosen.id} brings topic and format"
        raise InputError(what, where="profile", remedy="leave --topic and --format off, or --profile")
    method = method or (chosen.methods[0] if chosen is not None else "grpo")
    if out is None or listed:
        _list(method, as_json)
        return
    if chosen is not None:
        topic, format = chosen.topic, chosen.format
    topic = topic or "arithmetic"
    format = format or samples.formats(method, topic)[0]
    work = Engine().sample_data(method, out, rows, seed, topic=cast(samples.Topic, topic), format=format, overwrite=force)
    path = asyncio.run(work)
    rewards = () if chosen is None or methods.method(method).kind == "sft" else chosen.rewards
    if as_json:
        made = {"path": str(path), "method": method, "rows": rows, "seed": seed, "topic": topic, "format": format}
        more = {} if chosen is None else {"profile": chosen.id, "rewards": [dict(reward) for reward in rewards]}
        print(json.dumps(made | more, indent=1))
        return
    print(safe_text(str(path)))
    if rewards:
        print(_section(rewards))


def _section(rewards: Sequence[Mapping[str, Any]]) -> str:
    """The config's `rewards`, with a reward on each line."""
    lines = [yaml.safe_dump(dict(reward), default_flow_style=True, sort_keys=False).strip() for reward in rewards]
    return "\n".join(["rewards:", *(f"  - {line}" for line in lines)])


def _list(method: str, as_json: bool) -> None:
    topics = [(samples.subject(topic), samples.formats(method, topic)) for topic in samples.TOPICS]
    if as_json:
        found: dict[str, Any] = {
            "method": method,
            "topics": [{"id": each.id, "summary": each.summary, "formats": usable} for each, usable in topics],
            "formats": FORMATS,
            "profiles": [asdict(each) for each in profiles.offered(method)],
        }
        print(json.dumps(found, indent=1))
        return
    usable = samples.formats(method, "arithmetic")
    lines = screens.table([("topic", "format", "what the rows ask"), *((t.id, own[0], t.summary) for t, own in topics)])
    lines += ["", *screens.table([("format", "fields"), *((name, ", ".join(FORMATS[name])) for name in sorted(usable))])]
    offered = [(each.id, each.topic, each.summary) for each in profiles.offered(method)]
    lines += ["", *screens.table([("profile", "topic", "what is rewarded"), *offered])]
    lines += ["", f"formats are those that {method} can use, each topic's own in the first table; choose with --topic, --format"]
    print("\n".join(lines))


# A line for each topic, from the table that makes them; \b keeps the lines apart.
_TOPIC_LINES = "\n".join(f"{topic:<12}{samples.subject(topic).summary}" for topic in samples.TOPICS)
sample_data.__doc__ = f"{inspect.getdoc(sample_data)}\n\n\b\n{_TOPIC_LINES}"
