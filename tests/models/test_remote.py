"""Models of the hub, from a server on this machine: described by their headers, refused before they are fetched, fetched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from engine import config as configs
from engine import home, share
from engine.api import Engine
from engine.data.template import ChatTokenizer
from engine.errors import InputError
from engine.estimate import estimate
from engine.model_files import read_headers
from engine.model_names import model_id, plain
from engine.models import families, sources
from engine.preflight import preflight
from tests.support.hub import TOKEN, Hub, Repo, use
from tests.support.hub_models import WEIGHTS, demo_files, demo_repo, header_bytes, sharded_repo
from tests.support.live import small_config

INDEX = "model.safetensors.index.json"
SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json"}


def repositories() -> dict[str, Repo]:
    return {
        "o/tiny": demo_repo(),
        "o/shards": sharded_repo(),
        "o/gated": replace(demo_repo(), gated=True),
        "o/private": replace(demo_repo(), private=True),
        "o/pickled": demo_repo(without=(WEIGHTS,), pytorch_model_bin=b"\x80\x04"),
        "o/gguf": Repo({"README.md": b"", "m-Q8_0.gguf": b"GGUF"}, kind="model"),
        "o/adapter": demo_repo(without=(WEIGHTS,), adapter_safetensors=b"12345678"),
        "o/newer": demo_repo(changes={"model_type": "llama9"}),
        "o/own": demo_repo(changes={"model_type": "mine", "auto_map": {"AutoModel": "modeling_demo.Mine"}}),
        "o/file": demo_repo(changes={"model_file": "modeling_demo.py"}),
        "o/untyped": demo_repo(changes={"model_type": None}),
        "o/words": demo_repo(without=("tokenizer.json",)),
        "o/empty": Repo({"README.md": b""}, kind="model"),
        "o/rows": Repo({"train.jsonl": b"{}"}),
        "o/damaged": demo_repo(model_safetensors=b"\xff" * 400),
        "o/short": demo_repo(model_safetensors=b"\x00\x01"),
        "o/lacking": demo_repo(
            model_safetensors_index_json=json.dumps({"weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}}).encode()
        ),
        "o/outside": demo_repo(model_safetensors_index_json=json.dumps({"weight_map": {"a": "../../x"}}).encode()),
        "o/huge": replace(demo_repo(), listed={WEIGHTS: 10**15}),
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Hub(repositories()) as server:
        use(server, tmp_path / "hf", monkeypatch)
        yield server


def run_of(model: str) -> configs.RunConfig:
    return small_config("grpo", model=model, data={"train": "datasets/arithmetic.jsonl"})


def partial(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hf").rglob("*.incomplete"))


def test_the_estimate_needs_the_header_of_the_weights_alone(hub: Hub, tmp_path: Path) -> None:
    """Two ranges of the weights: the 8 bytes that tell the header's length, and the header; then the rest of a small model."""
    weights = hub.repos["o/tiny"].files[WEIGHTS]
    length = header_bytes(weights)
    found, here = estimate(run_of("o/tiny")), estimate(run_of("demo"))
    assert found == replace(here, fetch_bytes=len(weights)) and here.fetch_bytes == 0
    assert hub.ranges(WEIGHTS) == ["bytes=0-7", f"bytes=8-{length - 1}"]
    assert hub.sent[WEIGHTS] == length and set(hub.sent) == {*SMALL, WEIGHTS}, "no code, no readme, nothing of a subfolder"
    folder = sources.model_folder("o/tiny")
    assert folder.parent == home.models() / ".described" and not list(folder.glob("*.safetensors"))
    assert ChatTokenizer(folder).source == ChatTokenizer(share.demo_model()).source
    hub.requests.clear()
    assert estimate(run_of("o/tiny")) == found
    assert hub.fetched() == [] and hub.requests != [], "its commit is asked for, nothing else"
    fixed = sources.fixed("o/tiny")
    hub.requests.clear()
    assert sources.model_folder(fixed) == folder and hub.requests == []
    assert plain(fixed) == "o/tiny" and fixed == f"o/tiny@{folder.name.rpartition('-')[2]}"
    hub.close()
    assert sources.model_folder("o/tiny") == folder, "the cache knows what main was"
    with pytest.raises(InputError, match=r"neither a folder nor a model on this machine as a whole, and http.* does not answer"):
        sources.with_weights(folder)
    assert partial(tmp_path) == []


def test_shards_are_one_model(hub: Hub) -> None:
    files = {name: content for name, content in hub.repos["o/shards"].files.items() if name.endswith(".safetensors")}
    described = read_headers(sources.model_folder("o/shards"))
    assert {name: hub.sent[name] for name in files} == {name: header_bytes(content) for name, content in files.items()}
    own = read_headers(share.demo_model())
    assert sorted(described, key=lambda h: h.name) == sorted(own, key=lambda h: h.name) and len(own) == 20
    folder = sources.with_weights(sources.model_folder("o/shards"))
    assert sorted(read_headers(folder), key=lambda h: h.name) == sorted(own, key=lambda h: h.name)
    (folder / "model-00002-of-00002.safetensors").unlink()
    described_again = sources.model_folder("o/shards")
    assert described_again != folder, "a snapshot without one of its shards is none"
    hub.sent.clear()
    assert sources.with_weights(described_again) == folder
    assert sources.model_folder("o/shards") == folder and hub.sent == {}, "the blob was there still: it needs its name alone"


REFUSED = {
    "o/gated": ("is gated", "/o/gated, then `hf auth login`"),
    "o/private": ("has no such model, or a private one", "hf auth login"),
    "o/nothing": ("is no file or folder here", "check the name"),
    "o/rows": ("no such model", "check the name"),
    "o/tiny@v9": ("has no revision 'v9'", "/o/tiny/tree/main"),
    "o/pickled": ("pickled only (pytorch.model.bin)", "mlx-community"),
    "o/gguf": ("as .gguf files only", "hf download o/gguf m-Q8_0.gguf"),
    "o/adapter": ("has no model*.safetensors, which mlx_lm loads, but adapter.safetensors", "mlx-community"),
    "o/newer": ("is a 'llama9' model, a family that the installed mlx_lm does not have", "(llama"),
    "o/own": ("does not have; its own code (auto_map) is never run", "update mlx-lm"),
    "o/file": ("brings its own code (model_file)", "update mlx-lm"),
    "o/untyped": ("has no model_type", "mlx_lm"),
    "o/words": ("has no tokenizer.json", "mlx-community"),
    "o/empty": ("has no model*.safetensors", "mlx-community"),
    "o/damaged": ("damaged: its header claims", "again"),
    "o/short": ("damaged: its header claims", "again"),
    "o/lacking": ("names model-2.safetensors, which is not there", "fetch"),
    "o/outside": ("names '../../x', which is no file of this folder", "again"),
    "o/huge": ("1000000.00 GB are to be fetched, and the disk of", "HF_HOME"),
    "o/n--n..n": ("no model has such a name", "owner/name"),
    "o/tiny@a@b": ("config.json", "mlx_lm"),
}


def test_what_cannot_be_trained_is_refused_before_it_is_fetched(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for model, (what, remedy) in REFUSED.items():
        with pytest.raises(InputError) as caught:
            sources.check_fetch(sources.model_folder(sources.model_path(model, tmp_path)))
        assert what in caught.value.what and remedy in caught.value.remedy, (model, caught.value)
    most = max(header_bytes(content) for name, content in demo_files().items() if name == WEIGHTS)
    assert hub.sent["pytorch.model.bin"] == hub.sent["m-Q8_0.gguf"] == 0 and hub.sent[WEIGHTS] <= 3 * most + 8
    assert partial(tmp_path) == [] and [path.name[:7] for path in home.models().glob(".described/*")] == ["o--huge"]
    use(hub, tmp_path / "hf", monkeypatch, token=TOKEN)
    assert sources.with_weights(sources.model_folder("o/gated")) == sources.model_folder("o/gated")
    assert sources.model_folder("o/private").is_dir()


def test_it_is_fetched_once_told_as_it_goes_and_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """400 KB in pieces of 64 KB, broken off after 300 KB: 4 whole pieces are there, and the rest is asked for from there on."""
    repo, told = hub.repos["o/tiny"], []
    described = sources.model_folder("o/tiny")
    repo.cut = {WEIGHTS: 300_000}
    hub.asked.clear()
    folder = sources.with_weights(described, lambda *both: told.append(both))
    assert (folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS] and not (folder / "modeling_demo.py").exists()
    assert hub.asked == [(WEIGHTS, None), (WEIGHTS, f"bytes={4 << 16}-")]
    total = sum(len(repo.files[name]) for name in (*SMALL, WEIGHTS))
    small = total - len(repo.files[WEIGHTS])
    assert told[0] == (small, total) and told[-1] == (total, total) and told == sorted(told)
    hub.close()
    assert sources.model_folder("o/tiny") == sources.with_weights(folder) == folder
    assert sources.fixed("o/tiny") == f"o/tiny@{folder.name}" and partial(tmp_path) == []


def test_what_came_before_a_stop_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    """The server stands still after 200,000 bytes: 3 pieces of 64 KB are there. Two others at once share one download."""
    described = sources.model_folder("o/tiny")
    hub.repos["o/tiny"].held = {WEIGHTS: 200_000}

    def stop(done: int, total: int) -> None:
        if partial(tmp_path) and partial(tmp_path)[0].stat().st_size == 3 << 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources.with_weights(described, stop)
    hub.released.set()  # the thread that waits for the rest gets it, and sees that it has been told to stop
    hub.asked.clear()
    folder = sources.with_weights(described)
    assert (folder / WEIGHTS).read_bytes() == hub.repos["o/tiny"].files[WEIGHTS]
    assert hub.asked == [(WEIGHTS, f"bytes={3 << 16}-")]


def test_a_network_that_was_there_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    """A connection that is reset, which huggingface_hub gives up at; the weights and a small file."""
    repo = hub.repos["o/tiny"]
    described = sources.model_folder("o/tiny")
    repo.reset = {WEIGHTS: 300_000}
    hub.asked.clear()
    assert (sources.with_weights(described) / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    assert [name for name, _ in hub.asked] == [WEIGHTS, WEIGHTS]


def test_other_bytes_than_listed_are_deleted(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repos["o/tiny"]
    described = sources.model_folder("o/tiny")
    true = repo.files[WEIGHTS]
    repo.served = {WEIGHTS: true[:-1] + bytes([true[-1] ^ 1])}
    with pytest.raises(
        InputError, match=r"o/tiny: model.safetensors came with the SHA-256 \w{12}…, and \w{12}… is listed"
    ) as caught:
        sources.with_weights(described)
    assert "HF_ENDPOINT" in caught.value.remedy and partial(tmp_path) == []
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.is_file() and path.stat().st_size == len(true)]
    repo.served = {}
    assert (sources.with_weights(described) / WEIGHTS).read_bytes() == true


def test_a_run_keeps_the_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = preflight(run_of("o/tiny"))
    assert model_id(config.model) is not None and config.model.startswith("o/tiny@") and hub.sent[WEIGHTS] < 10_000
    repo = hub.repos["o/tiny"]
    repo.branches["before"] = dict(repo.files)  # a hub keeps every commit
    repo.files["config.json"] += b"\n"
    assert preflight(run_of("o/tiny"))[0].model != config.model == preflight(config)[0].model
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert estimate(config).fetch_bytes > 0, "described, and asked of nobody"
    for unwanted in (config, run_of("o/shards")):
        with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
            preflight(unwanted)


def test_no_run_is_made_of_a_model_whose_weights_nobody_gives(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Described, and the hub is gone: one error, no run. Once it is whole no hub is needed, nor by a description from before."""
    config, _ = preflight(run_of("o/tiny"))
    assert ("HEAD", WEIGHTS) in [(each.method, each.path.rpartition("/")[2]) for each in hub.requests]
    url, described = hub.url, sources.model_folder(config.model)
    hub.close()
    with pytest.raises(InputError, match=f"{url} does not answer") as caught:
        asyncio.run(Engine(tmp_path / "home").start(config))
    assert caught.value.where == config.model and "connect" in caught.value.remedy
    assert not (tmp_path / "home" / "runs").exists()
    with Hub({"o/tiny": demo_repo()}) as again, pytest.MonkeyPatch.context() as patch:
        use(again, tmp_path / "hf", patch)
        sources.with_weights(described)
    sources.check_fetch(described)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sources.check_fetch(described)
    assert preflight(config)[0].model == config.model


def test_families_are_those_of_the_installed_mlx_lm() -> None:
    assert {"llama", "qwen3", "gemma3_text", "solar_open"} <= families.names() and not {"base", "cache"} & families.names()
    assert families.module({"model_type": "mistral"}) == "llama" and families.module({"model_type": "cache"}) is None
    renamed = {"model_type": "bailing_hybrid", "architectures": ["BailingMoeV3ForCausalLM"]}
    assert families.module(renamed) == "bailing_moe_v3"
    assert families.refusal({"model_type": "qwen3", "auto_map": {}}, "") is None, "mlx_lm has it: nobody's code is needed"


def test_names() -> None:
    """A path that exists is that path; what ends with .gguf is a file; what has two slashes, or none, is no name."""
    for text in ("o/n", "o/n@main", "o/n@refs/pr/3", "Qwen/Qwen2.5-0.5B-Instruct", "o/n@" + "0" * 40):
        assert str(model_id(text)) == text and sources.model_path(text, Path("/nowhere")) == text
    for text in ("demo", "o", "o/n/m", "./n", "../n", "~/n", "/o/n", "o/m.gguf", "o/n@", "o/n@-x"):
        assert model_id(text) is None
    assert sources.model_path("models/demo", Path("/nowhere")) == str(share.demo_model())
    assert plain("o/n@v1") == "o/n@v1" and plain("o/n@" + "a" * 40) == "o/n" and plain("/a/b@" + "a" * 40) == "/a/b@" + "a" * 40
