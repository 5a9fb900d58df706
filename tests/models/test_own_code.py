"""Models that bring code of their own: it is never run, and what cannot do without it is refused before a worker starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, dynamic_module_utils

from engine import config as configs
from engine import share
from engine.api import Engine
from engine.errors import InputError
from engine.preflight import preflight
from engine.worker.model import load_policy
from tests.support.live import finish, small_config

AUTO_MAP = {
    "AutoConfig": "own.Config",
    "AutoModel": "own.Model",
    "AutoModelForCausalLM": "own.Model",
    "AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"],
}


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the model's code leaves behind, were it run."""
    return tmp_path / "ran"


@pytest.fixture
def model(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model, whose config.json and tokenizer_config.json name code that lies beside them."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    shutil.copytree(share.demo_model(), folder)
    code = f"""
        open({str(ran)!r}, "w").close()
        from transformers import PreTrainedTokenizerFast, PretrainedConfig
        class Tokenizer(PreTrainedTokenizerFast): pass
        class Config(PretrainedConfig): model_type = "llama"
        Model = Config
    """
    (folder / "own.py").write_text("\n".join(line.strip() for line in code.splitlines()))
    for name in ("config.json", "tokenizer_config.json"):
        change(folder / name, auto_map=AUTO_MAP)
    return folder


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def run_of(model: Path) -> configs.RunConfig:
    data = {"train": "datasets/arithmetic.jsonl"}
    return small_config("sft", model=str(model), data=data, run={"steps": 1, "eval_rows": 2, "eval_every": 1})


@pytest.mark.usefixtures("warm_workers")
async def test_code_beside_a_model_is_not_run(model: Path, ran: Path, _own_home: Path) -> None:
    """mlx_lm has its family and transformers its tokenizer: it is measured, validated and trained without its code."""
    report = await Engine(_own_home).validate_config(run_of(model))
    assert report.usable > 0
    _, state = await finish(_own_home, run_of(model))
    assert state.state == "finished", state.failure
    assert not ran.exists()


def test_a_tokenizer_of_its_own_is_not_asked_about(model: Path, ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers would ask the terminal whether to run it, and a worker's stdin has other lines than the answer."""
    change(model / "tokenizer_config.json", tokenizer_class="Tokenizer")
    with pytest.raises(InputError, match="mlx_lm cannot load this model"):
        load_policy(model, run_of(model).adapter, 0)
    assert not ran.exists() and "trust" not in capsys.readouterr().out
    AutoTokenizer.from_pretrained(model, trust_remote_code=True)
    assert ran.exists(), "it would have run"


def test_a_model_that_needs_its_code_is_refused_before_a_worker_starts(model: Path, ran: Path) -> None:
    """One error that names the family, the folder and the remedy; a family that mlx_lm has needs nobody's code."""
    preflight(run_of(model))
    change(model / "config.json", model_type="llama9")
    with pytest.raises(InputError) as unknown:
        preflight(run_of(model))
    error = unknown.value
    assert error.what.startswith("is a 'llama9' model, a family that the installed mlx_lm does not have")
    assert error.where == str(model) and error.remedy.startswith("update mlx-lm, or take a model of another family")
    change(model / "config.json", model_type="llama", model_file="own.py")
    with pytest.raises(InputError, match="brings its own code"):
        preflight(run_of(model))
    assert not ran.exists()
