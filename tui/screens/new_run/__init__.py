"""The screens of a new run: method, model and data, configure, estimate, review."""

from tui.screens.new_run.screen import NewRunScreen

__all__ = ["NewRunScreen"]
