"""Which options of an objective have an effect, which contradict each other, and that a config says all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import config as configs
from engine.errors import InputError
from engine.methods import METHODS, resolve_objective
from engine.objective import RULES, Objective, meaningless, with_overrides

GRPO = Objective(beta=0.04)
SILENT = Objective()  # beta 0
# A row, an option that it leaves without effect, another value of it, and what would give it one.
WITHOUT_EFFECT: list[tuple[Objective, str, Any, dict[str, Any]]] = [
    (SILENT, "kl", "k2", {"beta": 0.1}),
    (SILENT, "kl_in", "reward", {"beta": 0.1, "kl": "k1"}),
    (SILENT, "ref_sync_every", 5, {"beta": 0.1}),
    (SILENT, "ref_sync_mix", 0.5, {"beta": 0.1, "ref_sync_every": 5}),
    (GRPO, "ref_sync_mix", 0.5, {"ref_sync_every": 5}),
    (Objective(surrogate="cispo", epsilon_low=None), "delta", 2.0, {"surrogate": "clip", "epsilon_low": 0.2}),
    (Objective(ratio="sequence"), "entropy_quantile", 0.2, {"ratio": "sequence_token"}),
    (Objective(ratio="sequence_sum"), "entropy_quantile", 0.2, {"ratio": "token"}),
    (GRPO, "tis_cap", 2.0, {"tis": "token_truncate"}),
    (GRPO, "tis_floor", 0.5, {"tis": "token_mask"}),
    (Objective(tis="token_truncate"), "tis_floor", 0.5, {"tis": "token_mask"}),
    (Objective(tis="sequence_truncate"), "tis_floor", 0.5, {"tis": "sequence_mask"}),
    (Objective(old="sampler"), "tis", "token_truncate", {"old": "trainer"}),
    (Objective(advantage="global"), "dynamic_sampling", 2, {"advantage": "group"}),
]


@pytest.mark.parametrize(("row", "option", "value", "enabling"), WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused_unless_it_says_what_the_row_says(
    row: Objective, option: str, value: Any, enabling: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as error:
        with_overrides(row, {option: value})
    assert error.value.where == f"objective.{option}" and "no effect" in error.value.what and error.value.remedy
    assert option in meaningless(row)
    assert with_overrides(row, {option: getattr(row, option)}) == row
    assert getattr(with_overrides(row, {**enabling, option: value}), option) == value


def test_every_rule_is_tried_with_every_option() -> None:
    for rule in RULES:
        for option in rule.options:
            assert any(name == option and rule.when(row) for row, name, _, _ in WITHOUT_EFFECT), (rule.why, option)


ILLEGAL: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "cispo on sequences": ("cispo", {"ratio": "sequence"}, "ratio", {"ratio": "token"}),
    "cispo on sums": ("grpo", {"surrogate": "cispo", "ratio": "sequence_sum"}, "ratio", {"surrogate": "cispo"}),
    "a clip without a lower bound": ("cispo", {"surrogate": "clip"}, "epsilon_low", {"surrogate": "clip", "epsilon_low": 0.2}),
    "delta at the clip": ("dr_grpo", {"delta": 1.2}, "delta", {"delta": 1.21}),
    "delta within a wider clip": ("dapo", {"delta": 1.25}, "delta", {"delta": 1.3}),
    "k1 as a loss": ("grpo", {"kl": "k1"}, "kl", {"kl": "k1", "kl_in": "reward"}),
    "k3 in the reward": ("grpo", {"kl_in": "reward"}, "kl", {"kl": "k3"}),
    "k2 in the reward": ("rloo", {"kl": "k2"}, "kl", {"kl": "k2", "kl_in": "loss"}),
    "rloo's KL in the loss": ("rloo", {"kl_in": "loss"}, "kl", {"kl_in": "loss", "kl": "k3_ratio"}),
    "a floor at the cap": (
        "grpo",
        {"tis": "token_mask", "tis_cap": 2.0, "tis_floor": 2.0},
        "tis_floor",
        {"tis": "token_mask", "tis_cap": 2.0, "tis_floor": 0.5},
    ),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_options_that_contradict_each_other_are_refused(name: str) -> None:
    """And their lawful neighbours are not."""
    method, overrides, where, lawful = ILLEGAL[name]
    with pytest.raises(InputError) as error:
        resolve_objective(method, overrides)
    assert error.value.where == f"objective.{where}" and error.value.remedy
    resolved = resolve_objective(method, lawful)
    assert all(getattr(resolved, option) == value for option, value in lawful.items())


REWARD_METHODS = [name for name, row in METHODS.items() if row.objective is not None]


def config_of(method: str, tmp_path: Path, **sections: Any) -> configs.LoadedConfig:
    tree = {
        "model": "demo",
        "method": method,
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "rewards": [{"name": "answer"}],
        **sections,
    }
    return configs.parse(yaml.safe_dump(tree), base=tmp_path)


@pytest.mark.parametrize("method", REWARD_METHODS)
def test_what_a_config_says_of_its_method_is_read_back_the_same(method: str, tmp_path: Path) -> None:
    """Every option of the row is written out, and the written config is one that the row accepts, word for word."""
    loaded = config_of(method, tmp_path)
    text = configs.dump(loaded.config)
    again = configs.parse(text, base=tmp_path)
    assert again.config.resolved_objective() == loaded.config.resolved_objective() == METHODS[method].objective
    assert configs.dump(again.config) == text
    written = yaml.safe_load(text)["objective"]
    assert written == {name: getattr(METHODS[method].objective, name) for name in Objective.__dataclass_fields__}


CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "a KL again": ("dr_grpo", {"beta": 0.02, "kl": "k2", "ref_sync_every": 10}),
    "no KL": ("rloo", {"beta": 0.0}),
    "two-sided": ("gspo", {"delta": 4.0, "tis": "sequence_mask", "tis_cap": 2.0, "tis_floor": 0.5}),
    "of high entropy": ("gspo_token", {"entropy_quantile": 0.2, "entropy_bonus": 0.001}),
    "cispo by hand": ("grpo", {"surrogate": "cispo", "epsilon_low": 0.5, "aggregate": "group_token_mean", "old": "sampler"}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_overrides_are_read_back_the_same(name: str, tmp_path: Path) -> None:
    method, overrides = CHANGED[name]
    loaded = config_of(method, tmp_path, objective=overrides)
    again = configs.parse(configs.dump(loaded.config), base=tmp_path)
    assert again.config.resolved_objective() == loaded.config.resolved_objective()
    assert configs.dump(again.config) == configs.dump(loaded.config)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a mean of adapters": ("grpo", {"objective": {"ref_sync_every": 2, "ref_sync_mix": 0.5}}, "ref_sync_mix"),
    "steps by leave-one-out": ("rloo", {"rewards": [{"name": "own", "file": "r.py", "steps": "\n"}]}, "rewards"),
    "steps with a sequence ratio": ("gspo", {"rewards": [{"name": "own", "file": "r.py", "steps": "\n"}]}, "ratio"),
    "a group of one": ("dapo", {"sampling": {"group_size": 1}}, "group_size"),
    "too few prompts": ("gspo", {"sampling": {"prompts_per_step": 3}}, "prompts_per_step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_objective_has_to_fit_the_rest_of_the_config(name: str, tmp_path: Path) -> None:
    method, sections, where = REFUSED[name]
    (tmp_path / "r.py").write_text("def own(completions): return [None for _ in completions]\n")
    with pytest.raises(InputError) as error:
        config_of(method, tmp_path, **sections)
    assert where in error.value.where and error.value.remedy


def test_what_refuses_one_method_suits_another(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def own(completions): return [None for _ in completions]\n")
    config_of("gspo_token", tmp_path, rewards=[{"name": "own", "file": "r.py", "steps": "\n"}])
    config_of("reinforce_pp", tmp_path, sampling={"group_size": 1})
    config_of("grpo", tmp_path, objective={"ref_sync_every": 2, "ref_sync_mix": 0.5}, adapter={"type": "full"})
    assert config_of("dapo", tmp_path).config.sampling.prompts_per_step == 16  # one for each mini-batch
