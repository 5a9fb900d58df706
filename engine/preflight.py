"""Everything about a config that can be checked before its model is loaded, so that a run does not fail later."""

from __future__ import annotations

import os
from pathlib import Path

from engine import config as configs
from engine import hardware, methods, model_rules, start_rules
from engine.config import RunConfig
from engine.data import formats, sources, validate
from engine.data.template import ChatTokenizer
from engine.memory import Plan
from engine.model_files import read_json
from engine.models import sources as model_sources
from engine.rewards import process as reward_process
from engine.runs import launch


def preflight(config: RunConfig) -> tuple[RunConfig, str]:
    """The config as it will run, and the sha256 of its training file. Raises InputError for anything that would fail later.

    The config is read again as YAML, since one made in code has not been through the checks of a file.
    """
    config = sources.pinned(configs.parse(configs.dump(config), base=Path.cwd()).config)
    config = config.model_copy(update={"model": model_sources.fixed(config.model)})
    data = formats.load_training_data(config)
    _check_model(config, data)
    if methods.method(config.method).kind == "rl":
        reward_process.check(config.rewards, set.intersection(*(_columns(file) for file in data.files)))
    launch.worker_environment(os.environ, {})
    return config, data.files[0].sha256


def _check_model(config: RunConfig, data: formats.TrainingData) -> None:
    """InputError for a damaged model folder or one of a family that mlx_lm does not have, an adapter or a quantisation that
    fits nothing in it, an adapter to start from that is not there, and data without a row within the limits."""
    folder = configs.model_folder(config.model)
    model_sources.check_family(folder)
    model_sources.check_fetch(folder)
    plan = Plan(config, hardware.facts().backend)  # reads config.json and every weight file's header
    is_named = config.adapter.keys is not None and not plan.is_full
    refused = model_rules.unfit(config, read_json(folder / "config.json"), plan.modules, plan.adapted if is_named else ())
    if refused is not None:
        raise refused
    if config.adapter.start_from is not None:
        start_rules.adapter_file(config.adapter, config.chat.add_tokens)
    tokenizer, sampling = ChatTokenizer(folder, config.chat), config.sampling
    is_supervised = methods.method(config.method).kind == "sft"
    for examples, path in ((data.train, config.data.train), (data.held_out, config.data.valid or config.data.train)):
        validate.require_one_within(
            examples,
            tokenizer,
            max_prompt_tokens=sampling.max_prompt_tokens,
            max_completion_tokens=sampling.max_completion_tokens if is_supervised else None,
            targets=config.data.targets,
            where=path,
        )


def _columns(file: formats.DataSet) -> set[str]:
    """The names that a reward can ask for."""
    names = {name for example in file.examples for name in example.columns}
    return names | {"answer"} if any(example.answer is not None for example in file.examples) else names
