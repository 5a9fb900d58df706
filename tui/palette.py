"""The palette: search every action that is valid on the screen, and run it by its name."""

from __future__ import annotations

from functools import partial

from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from tui.actions.base import Action, key_name
from tui.screens.base import Page


class RegistryProvider(Provider):
    """The actions of the registry that the screen allows."""

    async def discover(self) -> Hits:
        for action in self._actions():
            yield DiscoveryHit(Content(_title(action)), partial(self._run, action), action.label, action.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action in self._actions():
            score = matcher.match(f"{action.label} {action.help}")
            if score > 0:
                yield Hit(score, Content(_title(action)), partial(self._run, action), action.label, action.help)

    def _actions(self) -> list[Action]:
        page = self.screen
        if not isinstance(page, Page):
            return []
        return [action for action in page.valid_actions() if action.id != "app.palette"]

    async def _run(self, action: Action) -> None:
        node = self.app if action.scope == "app" else self.screen
        await node.run_action(action.method)


def palette() -> CommandPalette:
    """The palette for the present screen."""
    return CommandPalette([RegistryProvider], placeholder="What do you want to do?", id="palette")


def _title(action: Action) -> str:
    return f"{action.label}  ({key_name(action.keys[0])})"
