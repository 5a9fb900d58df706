"""Step 2: which model, which data, and whether the data will train."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget

from engine.config import RunConfig
from engine.data.validate import DataReport
from engine.errors import InputError
from engine.safe_text import safe_text
from tui import forms
from tui.forms import FILE_KEYS, MODEL, TRAIN, VALID
from tui.screens.new_run.checks import (
    Checks,
    FileCheck,
    Trouble,
    check_file,
    check_model,
    first_obstacle,
    read_line,
    report,
    said,
    troubles,
)
from tui.screens.new_run.parts import FieldRow, Paper, Rows, Scroll, Step, columns, wrapped

SAMPLE_ROWS, SAMPLE_SEED = 300, 0
SETTLE_SECONDS = 0.25  # after the last key, before files are read
LABELS = {MODEL: "model", TRAIN: "data file", VALID: "held-out file"}
NO_DATA = InputError("no data file yet", where="", remedy="type its path, or press g for sample rows")


class DataStep(Step):
    """Three fields, the report on what they name, and the rows that cannot be used."""

    TITLE = "model and data"
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
                row.entry.value = text

    def draft_checked(self) -> None:
        """Look at the files, once typing has paused."""
        errors = self.flow.checked.errors
        for row in self.query(FieldRow):
            row.changed = self.flow.draft.changed(row.field.key)
            error = errors.get(row.field.key)
            row.error = "" if error is None else said(error, row.field.key)
        if self._settling is not None:
            self._settling.stop()
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
        config, draft = self.flow.checked.config, self.flow.draft
        self._checked = config
        if config is None:
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
            files[place] = replace(file, found=await asyncio.to_thread(check_file, file.path, config, None), measuring=True)
            checks = self._show(replace(checks, files=tuple(files)))
        model = await asyncio.to_thread(check_model, config.model)
        checks = self._show(replace(checks, model=model))
        for place, file in enumerate(files):
            if isinstance(model, Path) and not isinstance(file.found, InputError):
                file = replace(file, found=await asyncio.to_thread(check_file, file.path, config, model))
            files[place] = replace(file, measuring=False)
            checks = self._show(replace(checks, files=tuple(files)))

    def _show(self, checks: Checks) -> Checks:
        self.checks = checks
        model = self.flow.draft.text(MODEL)
        self.query_one("#report", Paper).drawing = lambda width: report(checks, model, width)
        found = troubles(checks.files)
        if found != self._troubles:
            self._troubles = found
            self.query_one(Rows).rows = tuple(trouble.row() for trouble in found)
        self._open_row()
        return checks

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
            shown = Trouble(data[0].path, 1, 0, False, "as an example", "")
        else:
            paper.drawing = lambda width: Content("")
            return
        try:
            text = await asyncio.to_thread(read_line, shown.path, shown.line)
        except OSError as error:
            text = f"the file cannot be read any more: {error.strerror}"
        paper.drawing = lambda width: row_text(shown, text, width)

    @work(exclusive=True, group="sample", exit_on_error=False)
    async def make_sample(self) -> None:
        """Write sample rows for the method, unless an earlier time did, and use them."""
        draft, engine = self.flow.draft, self.flow.engine
        topic = draft.topic()
        name = f"{draft.method}-sample.jsonl" if topic == "arithmetic" else f"{draft.method}-{topic}-sample.jsonl"
        path = engine.home / "data" / name
        if await asyncio.to_thread(path.exists):
            note = f"using {path}, which was there"
        else:
            try:
                await engine.sample_data(draft.method, path, SAMPLE_ROWS, SAMPLE_SEED, topic=topic)
            except InputError as error:
                self.flow.fail(error)
                return
            note = f"{SAMPLE_ROWS} rows written to {path}"
        self.flow.change(self.flow.draft.with_text(TRAIN, str(path)))
        self.flow.tell(safe_text(note))


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
