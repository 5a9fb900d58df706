"""Step 5: the exact config, what the run will need, the command that would run it, and the start."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import yaml
from rich.cells import cell_len
from textual import work
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine import config as configs
from engine.config import RunConfig
from engine.errors import InputError
from engine.estimate import Estimate
from engine.safe_text import safe_text
from tui.draft import Opened
from tui.screens.new_run.checks import said
from tui.screens.new_run.forecast import EstimatedStep, forecast
from tui.screens.new_run.parts import Paper, Scroll, columns, wrapped

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")  # for a file name


class ReviewStep(EstimatedStep):
    """The config as it will run."""

    TITLE = "review"
    ACTIONS: ClassVar[frozenset[str]] = frozenset({"save", "origins", "measure"})
    DEFAULT_CSS = """
    ReviewStep > #command { margin-top: 1; }
    ReviewStep > #forecast { margin-top: 1; }
    ReviewStep > Scroll { margin-top: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._saved: Path | None = None
        self._starting = False
        self._with_origins = False

    def compose(self) -> ComposeResult:
        yield Paper(id="command")
        yield Paper(id="forecast")
        with Scroll():
            yield Paper(id="notes")
            yield Paper(id="yaml")

    @property
    def rest(self) -> Widget:
        return self.query_one(Scroll)

    def draft_checked(self) -> None:
        config = self.flow.checked.ready
        if config is not None:
            self._list()
            self._show_command(config)
            self.estimate()

    def _list(self) -> None:
        checked, opened = self.flow.checked, self.flow.draft.opened
        config = checked.ready
        if config is None:
            return
        text, origin = configs.dump(config), checked.origin if self._with_origins else {}
        self.query_one("#yaml", Paper).drawing = lambda width: listing(text, origin, width)
        notes = self.query_one("#notes", Paper)
        notes.display = opened is not None and opened.method == config.method
        if opened is not None:
            notes.drawing = lambda width: opening(opened, width)

    def show_estimate(self, found: Estimate) -> None:
        self.query_one("#forecast", Paper).drawing = lambda width: columns(forecast(found), width, 10, indent=0)

    def show_without(self, why: str) -> None:
        self.query_one("#forecast", Paper).drawing = lambda width: columns([("memory", why)], width, 10, indent=0)

    def toggle_origins(self) -> None:
        """Show where each value comes from, or the config alone again."""
        self._with_origins = not self._with_origins
        self._list()

    def _show_command(self, config: RunConfig) -> None:
        file, is_saved = self._saved or config_file(self.flow.engine.home, config), self._saved is not None
        self.query_one("#command", Paper).drawing = lambda width: instructions(file, is_saved, width)

    @work(exclusive=True, group="save", exit_on_error=False)
    async def save(self) -> None:
        """Write the config file."""
        config = self.flow.checked.ready
        if config is None:
            return
        try:
            self._saved = await asyncio.to_thread(save_config, config, self.flow.engine.home)
        except InputError as error:
            self.flow.fail(error)
            return
        self._show_command(config)
        self.flow.tell(safe_text(f"saved to {short(self._saved)}"))

    def start(self) -> None:
        """Start the run, once."""
        config = self.flow.checked.ready
        if config is not None and not self._starting:
            self._starting = True
            self._start(config)

    @work(exclusive=True, group="start", exit_on_error=False)
    async def _start(self, config: RunConfig) -> None:
        self.flow.tell("starting: checking data, rewards and model ...")
        try:
            run = await self.flow.engine.start(config)
        except InputError as error:
            self.flow.tell(f"✕ not started: {said(error)}", failed=True)
            return
        finally:
            self._starting = False
        await self.flow.started(run.id)


def listing(text: str, origin: Mapping[str, str], width: int) -> Content:
    """A config's YAML; beside the first line of each value where it comes from, as far as `origin` says."""
    said = {line: origin[key] for key, line in lines_of(text).items() if key in origin}
    shown = [safe_text(line) for line in text.splitlines()]
    room = min(max((cell_len(shown[line]) for line in said), default=0), width // 2) + 2
    lines: list[Content] = []
    for place, line in enumerate(shown):
        if place not in said:
            lines += [Content(part) for part in wrapped(line, width)]
            continue
        head, *more = [Content(part) for part in wrapped(line, width)]
        style = "$text-muted" if said[place] in ("default", "recipe") else "$text-accent"
        end = Content.styled(safe_text(said[place]), style)
        if not more and max(head.cell_length + 2, room) + end.cell_length <= width:
            lines.append(Content.assemble(head.pad_right(max(room - head.cell_length, 2)), end))
        else:
            lines += [head, *more, Content.assemble(" " * room, end).truncate(width, ellipsis=True)]
    return Content("\n").join(lines)


def lines_of(text: str) -> dict[str, int]:
    """The line on which each key of the config begins, by its dotted name; the first is 0."""
    found: dict[str, int] = {}
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for name, node in root.value:
        found[name.value] = name.start_mark.line
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            found[f"{name.value}.{key.value}"] = key.start_mark.line
    return found


def opening(opened: Opened, width: int) -> Content:
    """Which file the config was opened from, and what of it has no effect or another default here."""
    facts = [("opened", opened.file), *(("note", note) for note in opened.notes)]
    return columns([(label, safe_text(text)) for label, text in facts], width, 8, indent=0).append("\n")


def instructions(file: Path, is_saved: bool, width: int) -> Content:
    """What starts the run, here and from a shell."""
    command = f"droid-tune train {shlex.quote(short(file))}"
    how = "the same from a shell:" if is_saved else "the same from a shell, once w has saved it:"
    return Content("\n").join(
        [
            *(Content.styled(line, "bold") for line in wrapped("enter starts the run; it trains on when you leave", width)),
            *(Content.styled(line, "$text-muted") for line in wrapped(how, width)),
            *(Content(f"  {line}") for line in wrapped(safe_text(command), width - 2)),
        ]
    )


def config_file(home: Path, config: RunConfig) -> Path:
    """Where the config is saved: called as the run, else after method and model."""
    name = config.run.name or f"{config.method}-{Path(config.model).name}"
    return home / "configs" / f"{_UNFIT.sub('-', name).strip('.-')[:100] or config.method}.yaml"


def save_config(config: RunConfig, home: Path) -> Path:
    """Write the config as YAML; a file with another content keeps its name, and this one gets a number. Raises InputError."""
    text = configs.dump(config)
    first = config_file(home, config)
    path, number = first, 2
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        while path.exists() and path.read_bytes() != text.encode():
            path, number = first.with_name(f"{first.stem}-{number}.yaml"), number + 1
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"cannot be saved: {error.strerror}", where=str(path), remedy="make room there, or start without"
        ) from error
    return path


def short(path: Path) -> str:
    """The path with ~ for the user's home."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
