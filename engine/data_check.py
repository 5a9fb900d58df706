"""The data check with its dry run: engine/data/validate.py, and beside it the reward process, for as long as the check takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from engine import config as configs
from engine import methods
from engine.config import ChatConfig, RewardConfig, RunConfig
from engine.data import validate
from engine.data.template import MODELS_OWN, ChatTokenizer
from engine.errors import InputError
from engine.rewards import dry_run

Rewards = Sequence[RewardConfig] | Literal["auto"]


def check(path: Path, method: str, rewards: Rewards, settings: Mapping[str, Any]) -> validate.DataReport:
    """`validate` with these settings; for a reward method the rewards score the rows' own answers. InputError as it raises it."""
    if not rewards or methods.method(method).kind != "rl":
        return validate.validate(path, method, **settings)
    folder: Path | None = settings["tokenizer"]
    encode = None if folder is None else _encoder(folder, settings.get("chat", MODELS_OWN))
    patience = math.inf if settings["full"] else dry_run.PATIENCE_SECONDS
    with dry_run.answer_scorer(rewards, encode=encode, patience_seconds=patience) as scorer:
        return validate.validate(path, method, scorer=scorer, **settings)


def check_config(config: RunConfig, rewards: Rewards | None, full: bool) -> validate.DataReport:
    """The config's training data as its run will use it. `rewards` None: the config's own."""
    settings = {**validate.as_configured(config), "tokenizer": _present_model(config.model), "full": full}
    return check(Path(config.data.train), config.method, config.rewards if rewards is None else rewards, settings)


def _encoder(folder: Path, chat: ChatConfig) -> dry_run.Encode:
    """A completion's token ids with the one that ends it. The tokenizer is read when it is first asked."""
    made = cache(lambda: ChatTokenizer(folder, chat))
    return lambda text: made().encode_reply(text)


def _present_model(model: str) -> Path | None:
    try:
        return configs.model_folder(model)
    except InputError:
        if Path(model).is_absolute() or model == "demo":
            raise  # a folder of the user's, and it is no model
        return None  # an id that has not been fetched: the data can be looked at all the same
