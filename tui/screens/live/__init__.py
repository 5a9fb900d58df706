"""The live screen: one run, watched."""

from tui.screens.live.screen import LiveScreen

__all__ = ["LiveScreen"]
