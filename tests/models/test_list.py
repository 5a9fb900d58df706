"""What is on this machine: the hub's cache, LM Studio's folders, converted files; how a name finds one, and the table of all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from engine import config as configs
from engine import hardware, home, share
from engine.api import Engine
from engine.cli.app import app
from engine.cli.models import lines
from engine.errors import InputError
from engine.estimate import estimate
from engine.gguf.folder import mlx_folder
from engine.model_list import ModelRow, rows
from engine.models import sources
from engine.preflight import preflight
from tests.support.gguf_files import tiny_file
from tests.support.live import small_config

_UNREADABLE = (("templates", "chat_template is neither"), ("jinja", "cannot be read"), ("link", "File name too long"))
A, B, C = ("0" * 39 + letter for letter in "abc")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home without any model."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def model(folder: Path, **config: object) -> Path:
    """The embedded model in a folder, with changes to its config.json."""
    shutil.copytree(share.demo_model(), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def snapshot(machine: Path, repo: str, commit: str, age: int = 0, branch: str = "", **config: object) -> Path:
    """One in the hub's cache as huggingface_hub lays it out: links to blobs. `age` in seconds."""
    storage = machine / "hub" / f"models--{repo.replace('/', '--')}"
    folder = model(storage / "snapshots" / commit, **config)
    (storage / "blobs").mkdir(exist_ok=True)
    for path in list(folder.iterdir()):
        blob = storage / "blobs" / f"{commit}-{path.name}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, folder))
    os.utime(folder, (folder.stat().st_mtime - age,) * 2)
    if branch:
        (storage / "refs").mkdir(exist_ok=True)
        (storage / "refs" / branch).write_text(commit)
    return folder


def quantised(folder: Path) -> Path:
    """The folder with the first layer's q_proj packed into 4 bits in groups of 64: zeros of the shapes that mlx makes."""
    weights = load_file(folder / "model.safetensors")
    weights = {name: array.astype(np.float16) for name, array in weights.items()}
    path = "model.layers.0.self_attn.q_proj"
    weights[f"{path}.weight"] = np.zeros((64, 8), np.uint32)
    weights |= {f"{path}.{part}": np.zeros((64, 1), np.float16) for part in ("scales", "biases")}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_name_means_the_hubs_cache_then_lm_studio(machine: Path) -> None:
    """The main branch's snapshot where it is whole, else the newest whole one; a revision means itself alone."""
    old = snapshot(machine, "o/n", A, age=100, branch="v1")
    main = snapshot(machine, "o/n", B, age=50, branch="main")
    new = snapshot(machine, "o/n", C)
    studio = model(machine / ".lmstudio" / "models" / "o" / "n")
    assert sources.model_folder("o/n") == main and sources.fixed("o/n") == f"o/n@{B}"
    assert sources.model_folder("o/n@v1") == old == sources.model_folder(f"o/n@{A}")
    (main / "tokenizer.json").resolve().unlink()  # a link to nothing: the download broke off
    assert sources.model_folder("o/n") == new and sources.fixed("o/n") == f"o/n@{C}"
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (new / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sources.model_folder("o/n") == old
    shutil.rmtree(machine / "hub")
    assert sources.model_folder("o/n") == studio and sources.fixed("o/n") == str(studio)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        sources.model_folder("o/n@main")
    here = model(machine / "o" / "n")
    assert sources.model_path("o/n", machine) == str(here), "a path that exists is that path"
    config = small_config("grpo", model="o/n", data={"train": "datasets/arithmetic.jsonl"})
    assert preflight(config)[0].model == str(studio)


def test_lm_studios_gguf_files(machine: Path) -> None:
    folder = machine / ".cache" / "lm-studio" / "models" / "p" / "m"
    folder.mkdir(parents=True)
    (folder / "mmproj-f16.gguf").write_bytes(b"")
    file = tiny_file(folder / "m-F16.gguf")
    assert sources.fixed("p/m") == str(file) and sources.model_folder("p/m").parent.name == ".described"
    tiny_file(folder / "m-Q8_0.gguf")
    with pytest.raises(InputError, match=r"has 2 \.gguf files in LM Studio's folder") as caught:
        sources.model_folder("p/m")
    assert str(file) in caught.value.remedy


def by_name(found: list[ModelRow]) -> dict[str, ModelRow]:
    assert len({row.name for row in found}) == len(found)
    return {row.name: row for row in found}


async def test_every_model_has_a_row(machine: Path) -> None:
    snapshot(machine, "o/n", A, age=100)
    whole = snapshot(machine, "o/n", B, branch="main")
    snapshot(machine, "o/bert", C, branch="main", model_type="bert")
    (snapshot(machine, "o/picture", C) / "tokenizer.json").unlink()
    (snapshot(machine, "o/small", C) / "model.safetensors").unlink()
    broken = snapshot(machine, "o/broken", C)
    (broken / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    )
    studio = machine / ".lmstudio" / "models"
    quantised(model(studio / "p" / "four", quantization={"bits": 4, "group_size": 64}))
    model(studio / "o" / "n")
    model(studio / "p" / "strange", hidden_size=None)
    (model(studio / "p" / "damaged") / "model.safetensors").write_bytes(b"\xff" * 99)
    (model(studio / "p" / "config") / "config.json").write_text("{")
    (studio / "p" / "nothing").mkdir()
    names = {"chat_template": [{"nme": "default"}]}
    (model(studio / "p" / "templates") / "tokenizer_config.json").write_text(json.dumps(names))
    (model(studio / "p" / "jinja") / "chat_template.jinja").write_bytes(b"\xff")
    for folder in (model(studio / "p" / "link"), snapshot(machine, "o/link", A)):
        (folder / "model-2.safetensors").symlink_to("x" * 999)  # not even to be looked at, as in a folder of another user's
    (snapshot(machine, "o/ref", A, branch="main").parents[1] / "refs" / "main").write_bytes(b"\xff")
    (studio / "p" / "g").mkdir()
    tiny_file(studio / "p" / "g" / "g.gguf")
    (studio / "p" / "k").mkdir()
    tiny_file(studio / "p" / "k" / "k.gguf", general__architecture="phi9")
    source = tiny_file(machine / "own.gguf")
    converted = mlx_folder(source, home.models())

    found = by_name(await Engine().models())
    assert set(found) == {
        *("demo", "o/n", f"o/n@{A}", "o/bert", "o/picture", "o/broken", str(studio / "o" / "n"), "p/four", "p/strange"),
        *("p/damaged", "p/config", "p/nothing", "p/g", "p/k", str(source)),
        *("p/templates", "p/jinja", "p/link", "o/link", "o/ref"),
    }
    demo, cached = found["demo"], found["o/n"]
    assert (demo.place, demo.family, demo.parameters, demo.dtype, demo.bits) == ("demo", "llama", 99_648, "float32", None)
    assert demo.trains == ("lora", "full") and demo.chat_template is True and demo.problem == demo.obstacle == demo.no_peak == ""
    own = estimate(configs.parse("{model: demo, method: grpo, data: {train: x}, rewards: [{name: answer}]}", base=machine).config)
    assert (demo.peak_bytes, demo.fits) == (own.peak_bytes, own.fits) and own.peak_bytes > 0
    size = sum(path.stat().st_size for path in whole.iterdir())
    assert (cached.path, cached.place, cached.bytes, cached.is_older) == (str(whole), "hub cache", size, False)
    assert found[f"o/n@{A}"].is_older and found[f"o/n@{A}"].trains == cached.trains == demo.trains
    assert "'bert' model, a family that" in found["o/bert"].obstacle and found["o/bert"].trains == ()
    assert found["o/picture"].obstacle.startswith("no tokenizer.json") and found["o/picture"].problem == ""
    assert "names model-2.safetensors, which is not there" in found["o/broken"].problem

    four = found["p/four"]
    assert (four.bits, four.group_size, four.dtype, four.trains) == (4, 64, "float16", ("lora",))
    assert four.parameters == demo.parameters, "64 x 64 packed into 64 x 8 words are 4,096 weights still"
    strange = found["p/strange"]
    assert strange.peak_bytes is None and "does not name this family's sizes" in strange.no_peak and strange.trains
    for name, what in (("damaged", "header claims"), ("config", "cannot be read"), ("nothing", "no config.json"), *_UNREADABLE):
        row = found[f"p/{name}"]
        assert what in row.problem and row.trains == () and row.peak_bytes is None, row
    assert "cannot be read: File name too long" in found["o/link"].problem and found["o/ref"].problem == ""
    gguf = found["p/g"]
    assert (gguf.family, gguf.trains, gguf.dtype, gguf.peak_bytes) == ("llama", ("lora", "full"), "float16", None)
    assert "converted first" in gguf.no_peak and gguf.bytes == (studio / "p" / "g" / "g.gguf").stat().st_size
    assert "phi9" in found["p/k"].obstacle and found["p/k"].trains == ()
    made = found[str(source)]
    assert (made.place, made.path, made.parameters) == ("converted", str(converted), gguf.parameters)
    assert json.loads(json.dumps(made.as_dict()))["trains"] == ["lora", "full"]
    source.unlink()
    assert str(converted) in by_name(rows(home.models()))


def test_the_table(machine: Path) -> None:
    """Names that a config can say, what is wrong below them; older snapshots and what cannot be trained are counted."""
    large = hardware.facts()
    small = hardware.Hardware("Linux", "x", "x", "cpu", 1, None, 1000, None)
    assert any(line.startswith("get one: name it in a config") for line in lines(rows(home.models(), large)))
    snapshot(machine, "o/n", A, age=9)
    snapshot(machine, "o/n", B, branch="main")
    snapshot(machine, "o/bert", C, model_type="bert")
    quantised(model(machine / ".lmstudio" / "models" / "p" / "\x1b[2J", quantization={"bits": 4, "group_size": 64}))
    found = rows(home.models(), small)
    assert {row.fits for row in found if row.peak_bytes} == {False}
    shown = lines(found)
    assert shown[0].split() == ["model", "where", "family", "parameters", "disk", "weights", "chat", "trains", "a", "LoRA", "run"]
    assert "\x1b" not in "".join(shown) and any("4 bits / 64" in line for line in shown) and "✕ too large" in shown[1]
    assert any(line.startswith("– o/bert: is a 'bert' model") for line in shown)
    short = CliRunner().invoke(app, ["models"]).stdout
    assert "o/n " in short and "2 more (older snapshots, or not to be trained here): --all" in short
    names = [row["name"] for row in json.loads(CliRunner().invoke(app, ["models", "--all", "--json"]).stdout)]
    assert {"demo", "o/n", f"o/n@{A}", "o/bert"} < set(names) and len(names) == 5
