"""The config: strict, resolved, written out whole, and every error names the key, the place and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import config as configs
from engine import methods, share
from engine.errors import InputError

TEXT = """
model: demo
method: gspo
data: {train: rows.jsonl}
rewards: [{name: answer}]
optim: {learning_rate: 1e-5}
"""


def parse(text: str = TEXT, base: Path = Path("/somewhere"), **overrides: Any) -> configs.LoadedConfig:
    return configs.parse(text, base=base, overrides=overrides)


@pytest.mark.parametrize("path", sorted((share.share_root("configs")).glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load_and_their_files_exist(path: Path) -> None:
    config = configs.load(path).config
    assert path.stem in (config.method, "demo")
    for file in (config.data.train, config.data.valid):
        assert file is None or Path(file).is_file()
    assert configs.model_folder(config.model) == share.demo_model()
    assert len(path.read_text().splitlines()) <= 25


def test_there_is_a_recipe_for_every_method() -> None:
    assert {path.stem for path in share.share_root("configs").glob("*.yaml")} == {*methods.METHODS, "demo"}


def test_defaults_are_written_out_and_read_back_the_same(tmp_path: Path) -> None:
    config = parse().config
    (tmp_path / "config.yaml").write_text(configs.dump(config))
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert tree["objective"]["minibatches"] == 4 and tree["objective"]["epsilon_low"] == 3e-4  # the method's own
    again = configs.load(tmp_path / "config.yaml").config
    assert configs.dump(again) == configs.dump(config)
    assert again.resolved_objective() == config.resolved_objective() == methods.METHODS["gspo"].objective


def test_yaml_numbers_with_an_exponent_are_numbers() -> None:
    assert parse().config.optim.learning_rate == 1e-5


def test_every_value_knows_where_it_came_from() -> None:
    origin = parse(**{"run.steps": 7}).origin
    assert (origin["run.steps"], origin["optim.learning_rate"], origin["optim.eps"]) == ("flag", "file", "default")


def test_relative_paths_resolve_beside_the_file_then_in_the_packaged_data(tmp_path: Path) -> None:
    text = TEXT.replace("rows.jsonl", "datasets/arithmetic.jsonl")
    assert parse(text, tmp_path).config.data.train == str(share.share_root("datasets") / "arithmetic.jsonl")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "arithmetic.jsonl").write_text("")
    assert parse(text, tmp_path).config.data.train == str(tmp_path / "datasets" / "arithmetic.jsonl")
    assert parse(base=tmp_path).config.data.train == str(tmp_path / "rows.jsonl")


def test_a_model_is_a_folder_an_id_or_demo(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert parse(TEXT.replace("demo", "here"), tmp_path).config.model == str(tmp_path / "here")
    assert parse(TEXT.replace("demo", "owner/name"), tmp_path).config.model == "owner/name"
    assert parse(TEXT).config.model == "demo"


REFUSED = {
    "unknown key, near": ("optim: {learning_rate: 1e-5}", "optim: {learnin_rate: 1e-5}", "learning_rate"),
    "unknown section": ("optim:", "optimm:", "optim"),
    "wrong type": ("learning_rate: 1e-5", "learning_rate: fast", "fast"),
    "a boolean is no number": ("learning_rate: 1e-5", "learning_rate: true", "learning_rate"),
    "out of range": ("learning_rate: 1e-5", "learning_rate: -1.0", "learning_rate"),
    "missing": ("data: {train: rows.jsonl}", "data: {}", "data.train"),
    "a misspelt method": ("method: gspo", "metod: gspo", "unknown key 'metod' (did you mean 'method'?)"),
    "a misspelt section": ("data: {train", "datta: {train", "unknown key 'datta' (did you mean 'data'?)"),
    "a misspelt train": ("{train: rows.jsonl}", "{trian: rows.jsonl}", "unknown key 'data.trian' (did you mean 'train'?)"),
    "the key that is missing first": ("method: gspo", "foo: 1\nmetod: gspo", "unknown key 'metod'"),
    "method": ("method: gspo", "method: gpso", "gspo"),
    "no rewards": ("rewards: [{name: answer}]", "rewards: []", "rewards"),
    "reward twice": ("[{name: answer}]", "[{name: answer}, {name: answer}]", "same name"),
    "no yaml": ("data: {train: rows.jsonl}", "data: {train: [", "YAML"),
    "no mapping": (TEXT, "- a\n- b\n", "key: value"),
    "group of one": ("optim:", "sampling: {group_size: 1}\noptim:", "group_size"),
    "dropout with rewards": ("optim:", "adapter: {dropout: 0.1}\noptim:", "dropout"),
    "delta under the clip": ("optim:", "objective: {delta: 1.0001}\noptim:", "delta"),
    "no finite number": ("learning_rate: 1e-5", "learning_rate: .inf", "finite"),
    "a weight that is none": ("[{name: answer}]", "[{name: answer, weight: .nan}]", "finite"),
    "a time-out that is none": ("[{name: answer}]", "[{name: answer, timeout: .nan}]", "rewards.0.timeout"),
    "a beta of 1": ("learning_rate: 1e-5", "betas: [0.9, 1.0]", "optim.betas.1"),
    "a negative beta": ("learning_rate: 1e-5", "betas: [-0.1, 0.9]", "optim.betas.0"),
    "0 layers": ("optim:", "adapter: {layers: 0}\noptim:", "use -1 for all layers"),
    "fewer layers than all": ("optim:", "adapter: {layers: -2}\noptim:", "adapter.layers"),
    "a key twice": ("method: gspo", "method: gspo\nmethod: grpo", "the key 'method' is given twice, line 4"),
    "a nested key twice": ("{learning_rate: 1e-5}", "{eps: 1e-8, betas: [0, 0], eps: 1e-6}", "'eps' is given twice, line 6"),
    "a date that is none": ("model: demo", "model: 2001-99-99", "month must be"),
    "nested too deeply": ("model: demo", f"model: {'[' * 600}", "nested too deeply"),
    "more mini-batches than prompts": (
        "optim:",
        "objective: {minibatches: 5}\nsampling: {prompts_per_step: 4}\noptim:",
        "mini-batches",
    ),
    "an option without effect": ("optim:", "objective: {kl: k2}\noptim:", "kl has no effect: at beta 0 there is no reference"),
    "k1 as a loss": ("optim:", "objective: {beta: 0.1, kl: k1}\noptim:", "expected gradient is zero"),
    "targets of a reward method": ("{train: rows.jsonl}", "{train: rows.jsonl, targets: all}", "targets is for sft"),
    "steps without token advantages": ("[{name: answer}]", '[{name: f, file: f.py, steps: "\\n"}]', "gspo_token"),
    "a mean of adapters": ("optim:", "objective: {beta: 0.1, ref_sync_every: 2, ref_sync_mix: 0.5}\noptim:", "low-rank"),
    "betas of sgd": ("{learning_rate: 1e-5}", "{name: sgd, learning_rate: 1e-5, betas: [0.5, 0.5]}", "sgd has no betas"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str) -> None:
    old, new, expected = REFUSED[name]
    assert old in TEXT
    with pytest.raises(InputError) as caught:
        parse(TEXT.replace(old, new))
    assert expected in str(caught.value)
    assert caught.value.where and caught.value.remedy


def test_a_reward_may_take_forever_and_betas_and_layers_have_bounds_that_hold() -> None:
    text = TEXT.replace("answer}", "answer, timeout: .inf}").replace("learning_rate: 1e-5", "betas: [0, 0.999]")
    config = parse(f"{text}adapter: {{layers: 1}}\n").config
    assert config.rewards[0].timeout == float("inf")
    assert (config.optim.betas, config.adapter.layers) == ((0, 0.999), 1)
    assert configs.dump(configs.parse(configs.dump(config), base=Path("/")).config) == configs.dump(config)


def test_a_merge_may_be_overridden_and_is_no_key_given_twice() -> None:
    """`<<` copies the keys of another mapping; one that stands beside it wins. c is made before the nested b is."""
    text = "a: &a {x: 1}\nouter: {b: &b {<<: *a, x: 2}}\nc: {<<: *b, y: 3}\n"
    assert configs.flag_value(text) == {"a": {"x": 1}, "outer": {"b": {"x": 2}}, "c": {"x": 2, "y": 3}}


def test_a_setting_is_a_key_and_a_value_in_yaml() -> None:
    assert configs.setting("run.steps=20") == ("run.steps", 20)
    assert configs.setting("rewards=[{name: a=b}]") == ("rewards", [{"name": "a=b"}])
    for text, message in {
        "run.steps": "not KEY=VALUE",
        "run.steps=[": "not valid YAML",
        "data.columns={prompt: a, prompt: b}": "'prompt' is given twice",
        "run.name=2001-99-99": "month must be",
        f"run.name={'[' * 600}": "nested too deeply",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            configs.setting(text)
        assert caught.value.where.startswith("--set") and caught.value.remedy


def test_sft_refuses_what_it_has_no_use_for() -> None:
    text = "model: demo\nmethod: sft\ndata: {train: rows.jsonl}\n"
    assert parse(text).config.rewards == []
    for extra in ("rewards: [{name: answer}]", "objective: {beta: 0.1}"):
        with pytest.raises(InputError):
            parse(text + extra)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        configs.load(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        configs.load(tmp_path / "latin.yaml")


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        configs.model_folder(str(tmp_path))
    with pytest.raises(InputError, match="neither a folder nor a model on this machine"):
        configs.model_folder("nobody/has-this")
