"""Step 2: which model, which data, and whether the data will train."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget

from engine.config import RewardConfig, RunConfig
from engine.data.validate import DataReport
from engine.errors import InputError
from engine.safe_text import safe_text
from tui import forms
from tui.draft import DEMO, Draft
from tui.forms import FILE_KEYS, MODEL, REWARDS, TRAIN, VALID
from tui.screens.new_run.checks import (
    NO_DATA,
    Checks,
    FileCheck,
    Trouble,
    check_file,
    check_model,
    first_obstacle,
    is_of_hub,
    read_line,
    said,
    troubles,
)
from tui.screens.new_run.fields import Entry, FieldRow
from tui.screens.new_run.parts import Paper, Rows, Scroll, columns, wrapped
from tui.screens.new_run.report import report
from tui.screens.new_run.step import Step

SAMPLE_ROWS, SAMPLE_SEED = 300, 0
SETTLE_SECONDS = 0.25  # after the last key, before files are read
LABELS = {MODEL: "model", TRAIN: "data file", VALID: "held-out file"}


class DataStep(Step):
    """Three fields, the report on what they name, and the rows that cannot be used."""

    TITLE = "model and data"
    ACTIONS: ClassVar[frozenset[str]] = frozenset({"next_field", "previous_field", "sample", "columns", "profile"})
    DEFAULT_CSS = """
    DataStep > FieldRow:first-of-type { margin-top: 1; }
    DataStep > #report { margin-top: 1; }
    DataStep > Rows { margin-top: 1; max-height: 30%; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.checks = Checks()
        self._checked: RunConfig | None = None  # what `checks` is about
        self._troubles: tuple[Trouble, ...] = ()
        self._settling: Timer | None = None
        self._waits = False  # for the end of a model's name

    def compose(self) -> ComposeResult:
        for key in FILE_KEYS:
            yield FieldRow(forms.all_fields()[key], self.flow.draft.text(key), LABELS[key])
        yield Paper(id="report")
        yield Rows()
        with Scroll(can_focus=False):
            yield Paper(id="row")

    @property
    def rest(self) -> Widget:
        return self.query_one(Rows)

    def draft_changed(self) -> None:
        draft = self.flow.draft
        for row in self.query(FieldRow):
            text = safe_text(draft.text(row.field.key))
            if row.entry.value != text and not row.entry.has_focus:
                row.entry.show(text)
        self._report()

    def draft_checked(self) -> None:
        """Look at the files, once typing has paused."""
        errors = self.flow.checked.errors
        for row in self.query(FieldRow):
            row.changed = self.flow.draft.changed(row.field.key)
            error = errors.get(row.field.key)
            row.error = "" if error is None else said(error, row.field.key)
        if self._settling is not None:
            self._settling.stop()
        if self._checked is not None and self._checked == self.flow.checked.config:
            self._show(self.checks)
            return
        self._settling = self.set_timer(SETTLE_SECONDS, self._look)

    async def obstacle(self) -> str:
        checked = self.flow.checked
        for key in FILE_KEYS:
            if key in checked.errors:
                return f"{LABELS[key]}: {said(checked.errors[key], key)}"
        if checked.config is None:
            return ""  # the next step shows what is wrong
        if self._checked == checked.config and self.checks.obstacle:
            return self.checks.obstacle
        if not self.flow.draft.text(TRAIN).strip():
            return said(NO_DATA)
        return await asyncio.to_thread(first_obstacle, checked.config)

    @work(exclusive=True, group="checks", exit_on_error=False)
    async def _look(self) -> None:
        """Fill in the report, the quick things first. A later call ends an earlier one."""
        if not self.is_attached:  # the step was left before this began
            return
        config, draft, engine = self.flow.checked.config, self.flow.draft, self.flow.engine
        self._waits = config is not None and self._is_being_named(config.model)
        self._checked = None if self._waits else config
        if config is None or self._waits:
            self._show(Checks())
            return
        if not draft.text(TRAIN).strip():
            self._show(Checks(await asyncio.to_thread(check_model, config.model), (FileCheck("data", Path(), NO_DATA),)))
            return
        files = [FileCheck("data", Path(config.data.train))]
        if config.data.valid is not None:
            files.append(FileCheck("held-out", Path(config.data.valid)))
        checks = self._show(Checks(None, tuple(files)))
        for place, file in enumerate(files):
            if not is_of_hub(str(file.path)):
                files[place] = replace(file, found=await check_file(engine, file, config, None), measuring=True)
            checks = self._show(replace(checks, files=tuple(files)))
        model = await asyncio.to_thread(check_model, config.model)
        checks = self._show(replace(checks, model=model))
        for place, file in enumerate(files):
            if isinstance(model, Path) and isinstance(file.found, DataReport):
                rewards = tried(draft, config) if file.role == "data" else ()
                file = replace(file, found=await check_file(engine, file, config, model, rewards))
            files[place] = replace(file, measuring=False)
            checks = self._show(replace(checks, files=tuple(files)))

    def _is_being_named(self, model: str) -> bool:
        """Whether a model's name is being typed: every beginning of it would be looked for, on the hub too."""
        focused = self.screen.focused
        is_name = model != DEMO and not Path(model).is_absolute()
        return is_name and isinstance(focused, Entry) and focused.field.key == MODEL

    def on_descendant_blur(self) -> None:
        if self._waits:
            self._look()

    def _show(self, checks: Checks) -> Checks:
        self.checks = checks
        self._report()
        found = troubles(checks.files)
        if found != self._troubles:
            self._troubles = found
            self.query_one(Rows).rows = tuple(trouble.row() for trouble in found)
        self._open_row()
        return checks

    def _report(self) -> None:
        checks, draft, glyphs = self.checks, self.flow.draft, self.flow.app.glyphs
        self.query_one("#report", Paper).drawing = lambda width: report(checks, draft, width, glyphs)

    @on(Rows.Moved)
    def _moved(self) -> None:
        self._open_row()

    @work(exclusive=True, group="row", exit_on_error=False)
    async def _open_row(self) -> None:
        """Show the marked line of the file as it stands there."""
        paper, data = self.query_one("#row", Paper), self.checks.files[:1]
        if self._troubles:
            shown = self._troubles[self.query_one(Rows).index]
        elif data and isinstance(data[0].found, DataReport):
            shown = Trouble(Path(data[0].found.path), 1, 0, False, "as an example", "")
        else:
            paper.drawing = lambda width: Content("")
            return
        try:
            text = await asyncio.to_thread(read_line, shown.path, shown.line)
        except OSError as error:
            text = f"the file cannot be read any more: {error.strerror}"
        except InputError as error:
            text = f"the file cannot be read any more: {said(error)}"
        paper.drawing = lambda width: row_text(shown, text, width)

    @work(exclusive=True, group="sample", exit_on_error=False)
    async def make_sample(self) -> None:
        """Write sample rows for the method, unless an earlier time did, and use them."""
        draft, engine = self.flow.draft, self.flow.engine
        topic, format = draft.sample()
        path = sample_file(engine.home, draft.method, topic, format)
        if await asyncio.to_thread(path.exists):
            note = f"using {path}, which was there"
        else:
            try:
                await engine.sample_data(draft.method, path, SAMPLE_ROWS, SAMPLE_SEED, topic=topic, format=format)
            except InputError as error:
                self.flow.fail(error)
                return
            note = f"{SAMPLE_ROWS} rows written to {path}"
        self.flow.change(self.flow.draft.with_text(TRAIN, str(path)))
        self.flow.tell(safe_text(note))


def tried(draft: Draft, config: RunConfig) -> list[RewardConfig]:
    """The rewards of the dry run: all, but no code that came with an opened file, before the run is started with it."""
    is_foreign = draft.came_with_file(REWARDS)
    return [reward for reward in config.rewards if reward.file is None or not is_foreign]


def sample_file(home: Path, method_id: str, topic: str, format: str | None) -> Path:
    """Where sample rows of that topic and format are kept."""
    return home / "data" / f"{'-'.join((method_id, topic, *([format] if format else [])))}-sample.jsonl".replace("+", "-")


def row_text(trouble: Trouble, text: str, width: int) -> Content:
    """The line's number, its text and the remedy; everything made safe."""
    facts = [("file", safe_text(trouble.path.name))]
    if trouble.remedy:
        facts.append(("remedy", safe_text(trouble.remedy)))
    return Content("\n").join(
        [
            Content.styled("─" * width, "$text-disabled"),
            Content.assemble((f"line {trouble.line}", "bold"), "  ", safe_text(trouble.what)).truncate(width, ellipsis=True),
            columns(facts, width, 8, indent=0),
            *(Content(line) for line in wrapped(safe_text(text), width)),
        ]
    )
