"""The headless command line: every verb of droid-tune but the terminal app itself."""

from engine.cli.app import main

__all__ = ["main"]
