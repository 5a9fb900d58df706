"""Every key of the app in one table: footer, help screen, palette and bindings are fed from it."""

from __future__ import annotations

from tui.actions import app_scope, live, new_run, runs
from tui.actions.base import Action

ACTIONS: tuple[Action, ...] = (*app_scope.ACTIONS, *runs.ACTIONS, *live.ACTIONS, *new_run.ACTIONS)
