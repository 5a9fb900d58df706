"""Step 3: every value that the method uses, as a form made from the config's schema."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from engine.safe_text import safe_text
from tui import forms
from tui.draft import DEMO, Draft
from tui.forms import MODEL, Field
from tui.screens.new_run.checks import said
from tui.screens.new_run.fields import Entry, FieldRow
from tui.screens.new_run.parts import Paper, Scroll, columns
from tui.screens.new_run.step import Step

HELP_LINES = 4


class ConfigureStep(Step):
    """Groups of fields; below them what the present one means."""

    TITLE = "configure"
    ACTIONS: ClassVar[frozenset[str]] = frozenset({"next_field", "previous_field"})
    DEFAULT_CSS = f"""
    ConfigureStep > Scroll {{ margin-top: 1; }}
    ConfigureStep .group {{ color: $text-muted; text-style: bold; height: 1; }}
    ConfigureStep .later {{ margin-top: 1; height: 1; }}
    ConfigureStep > #help {{ height: {HELP_LINES}; }}
    """

    def compose(self) -> ComposeResult:
        draft = self.flow.draft
        with Scroll():
            section = ""
            for field in forms.fields(draft.method):
                if field.section != section and field.key != field.section:
                    yield Static(field.section, classes="group later" if section else "group", markup=False)
                elif field.key == field.section:
                    yield Static("", classes="group", markup=False)
                section = field.section
                yield FieldRow(field, draft.text(field.key))
        yield Paper(id="help")

    def on_mount(self) -> None:
        self._explain(None)

    @property
    def rest(self) -> Widget:
        return self.query_one(Scroll)

    def draft_checked(self) -> None:
        errors = self.flow.checked.errors
        for row in self.query(FieldRow):
            key = row.field.key
            row.changed = self.flow.draft.changed(key)
            row.error = said(errors[key], key) if key in errors else ""
        self._explain(self._present())

    def on_descendant_focus(self) -> None:
        self._explain(self._present())

    def on_descendant_blur(self) -> None:
        self._explain(self._present())

    async def obstacle(self) -> str:
        errors = self.flow.checked.errors
        if not errors:
            return ""
        key, error = next(iter(errors.items()))
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        return f"{key}: {said(error, key)}{more}" if key else said(error) + more

    def _present(self) -> Field | None:
        focused = self.screen.focused
        return focused.field if isinstance(focused, Entry) else None

    def _explain(self, field: Field | None) -> None:
        draft = self.flow.draft
        self.query_one("#help", Paper).drawing = lambda width: explanation(draft, field, width)


def explanation(draft: Draft, field: Field | None, width: int) -> Content:
    """What a field means and started from; between fields what is changed so far."""
    rule = Content.styled("─" * width, "$text-disabled")
    if field is None:
        changed = [key for key in draft.changes() if key not in forms.FILE_KEYS]
        facts = [("changed", safe_text(", ".join(changed)) if changed else "nothing yet; everything is ready as it is")]
        origin = f"the recipe of {draft.method}" if draft.text(MODEL) == DEMO else "the defaults, which suit most models"
        facts.append(("begun from", origin))
    else:
        start = draft.start(field.key)
        facts = [(field.key, field.help or "as its name says"), ("begun from", safe_text(start) or "not set")]
    drawn = columns(facts, width, max(len(label) for label, _ in facts) + 2, indent=0)
    return Content("\n").join([rule, *drawn.split("\n")[: HELP_LINES - 1]])
