"""A question before something that cannot be taken back."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from engine.safe_text import safe_text


class ConfirmScreen(ModalScreen[bool]):
    """`y` or `n`; where `word` is given (a run's name), it must be typed instead. Esc is always no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "answer(False)", show=False),
        Binding("n", "answer(False)", show=False),
        Binding("y", "answer(True)", show=False),
    ]
    DEFAULT_CSS = """
    ConfirmScreen { align: center middle; }
    ConfirmScreen > Vertical { width: 64; max-width: 90%; height: auto; padding: 1 2; background: $panel; }
    ConfirmScreen Input { border: none; height: 1; padding: 0; margin: 1 0; }
    """

    def __init__(self, question: str, word: str | None = None) -> None:
        super().__init__()
        self._question = question
        self._word = word

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Content(safe_text(self._question, lines=True)))
            if self._word is None:
                yield Static(keys(("y", "yes"), ("n", "no")))
            else:
                yield Static(Content(f"type {safe_text(self._word)} and press enter to do it"))
                yield Input(id="word")
                yield Static(keys(("enter", "do it"), ("esc", "leave it as it is")), id="answer")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return parameters == (False,) or self._word is None

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip() == self._word:
            self.dismiss(True)
            return
        what = Content.assemble(
            ("that is not the name; ", "$text-warning"), keys(("enter", "do it"), ("esc", "leave it as it is"))
        )
        self.query_one("#answer", Static).update(what)


def keys(*pairs: tuple[str, str]) -> Content:
    """Keys and what they do, side by side."""
    shown = [Content.assemble((key, "bold $text-accent"), " ", (label, "$text-muted")) for key, label in pairs]
    return Content("   ").join(shown)
