"""The engine: everything of droid-tune except its terminal app. Imports no textual; only `engine.worker` imports mlx."""

__version__ = "0.1.0"
