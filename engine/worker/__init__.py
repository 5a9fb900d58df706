"""The detached worker: the only room that imports mlx. `python -P -m engine.worker run RUN_DIR` is its front door."""
