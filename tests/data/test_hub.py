"""Data sets of the hub, from a server on this machine: which files are which split, once, offline, broken off, refused."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import constants

from engine import config as configs
from engine.data import formats, hub_layout, rows, sources
from engine.data.validate import validate
from engine.data_names import HubId, hub_id
from engine.errors import InputError
from tests.support.data_files import data_bytes
from tests.support.hub import TOKEN, Hub, Repo, use


def lines(*prompts: str) -> bytes:
    return "".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in prompts).encode()


def prompts(path: Path) -> list[str]:
    return [row.fields["prompt"] for row in rows.read_rows(path) if isinstance(row, rows.Row)]


def repositories() -> dict[str, Repo]:
    shards = {f"data/train-{i:05d}-of-00003.jsonl": lines(f"{i}a", f"{i}b") for i in range(3)}
    return {
        "o/rows": Repo(
            {
                **shards,
                "data/validation-00000-of-00001.jsonl": lines("v"),
                "data/test.jsonl": lines("t"),
                "README.md": b"# Rows\n",
            },
            branches={"v1": {"train.jsonl": lines("old")}},
        ),
        "o/configs": Repo({f"{name}/train-00000-of-00001.jsonl": lines(name) for name in ("main", "extra")}),
        "o/long": Repo({"train.jsonl": lines(*("x" * 500 for _ in range(1000)))}),
        "o/gated": Repo({"train.jsonl": lines("g")}, gated=True),
        "o/private": Repo({"train.jsonl": lines("p")}, private=True),
        "o/huge": Repo({"train.jsonl": lines("h")}, listed={"train.jsonl": 10**15}),
        "o/other": Repo({"train.jsonl": lines("l")}, listed={"train.jsonl": 7}),
        "o/script": Repo({"script.py": b"print()", "README.md": b""}),
        "o/model": Repo({"config.json": b"{}"}, kind="model"),
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(repositories()) as server:
        use(server, tmp_path / "home", monkeypatch)
        yield server


def config(train: str, valid: str | None = None, method: str = "grpo") -> configs.RunConfig:
    text = {"model": "demo", "method": method, "data": {"train": train, "valid": valid}, "rewards": [{"name": "answer"}]}
    return configs.parse(json.dumps(text), base=Path.cwd()).config


def test_a_split_is_fetched_once_and_then_used_without_a_network(hub: Hub) -> None:
    told: list[tuple[int, int]] = []
    path = sources.local("o/rows", on_progress=lambda done, total: told.append((done, total)))
    assert prompts(path) == ["0a", "0b", "1a", "1b", "2a", "2b"] and path.name == "train-*-of-00003.jsonl"
    assert sorted(hub.fetched()) == ["README.md", *(f"data/train-{i:05d}-of-00003.jsonl" for i in range(3))]
    size = sum(len(lines(f"{i}a", f"{i}b")) for i in range(3))
    assert told[0] == (0, size) and told[-1] == (size, size) and told == sorted(told)
    told.clear()
    hub.requests.clear()
    assert sources.local("o/rows", on_progress=lambda *both: told.append(both)) == path
    assert hub.fetched() == [] and told == [], "only the commit was asked for"
    hub.close()
    began = time.monotonic()
    assert sources.local("o/rows") == path and prompts(path)[0] == "0a"
    with pytest.raises(InputError, match=r"not on this machine as a whole, and http.* does not answer"):
        sources.local("o/rows#test")
    with pytest.raises(InputError, match="does not answer") as caught:
        sources.local("o/never")
    assert caught.value.where == "o/never" and "without a network" in caught.value.remedy
    assert time.monotonic() - began < 10, "huggingface_hub tries for 24 s to fetch a file whose list came from the cache"


def test_offline_by_the_users_wish(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sources.local("o/rows#test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert sources.local("o/rows#test") == path
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        sources.local("o/rows")
    assert hub.requests == []


def test_what_another_program_has_fetched_is_used_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps no list of files: what is in the cache is all that is known, and a missing shard is seen by the others' names."""
    from huggingface_hub import hf_hub_download

    for i in range(2):
        hf_hub_download("o/rows", f"data/train-{i:05d}-of-00003.jsonl", repo_type="dataset", endpoint=hub.url)
    hf_hub_download("o/rows", "data/test.jsonl", repo_type="dataset", endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prompts(sources.local("o/rows", "test")) == ["t"]
    with pytest.raises(InputError, match=r"missing: train-00002-of-00003\.jsonl"):
        sources.local("o/rows")


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub) -> None:
    """512 KB in pieces of 64 KB, broken off after 300 KB: 4 whole pieces are there, and the rest is asked for from there on."""
    content = hub.repos["o/long"].files["train.jsonl"]
    hub.repos["o/long"].cut = {"train.jsonl": 300_000}
    told: list[int] = []
    path = sources.local("o/long", on_progress=lambda done, total: told.append(done))
    assert path.read_bytes() == content and told == sorted(told) and told[-1] == len(content)
    ranges = [each.range for each in hub.requests if each.method == "GET" and each.path.endswith("train.jsonl")]
    assert ranges == [None, f"bytes={4 << 16}-"]


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(hub: Hub) -> None:
    path = sources.local("o/long")
    path.resolve().write_bytes(b"{}\n")
    assert sources.local("o/long").read_bytes() == hub.repos["o/long"].files["train.jsonl"]


REFUSED = {
    "o/gated": ("is gated", "/datasets/o/gated, then `hf auth login` (or set HF_TOKEN)"),
    "o/private": ("no such data set, or a private one", "hf auth login"),
    "o/nothing": ("is no file or folder here", "check the name"),
    "o/model": ("no such data set", "check the name"),
    "o/rows@v9": ("has no revision 'v9'", "/datasets/o/rows/tree/main"),
    "o/rows:en": ("has no configuration 'en'", "write o/rows alone"),
    "o/rows#dev2": ("has no split 'dev2', but test, train, validation", "o/rows#test"),
    "o/configs": ("has several configurations: extra, main", "o/configs:extra"),
    "o/configs:en": ("has no configuration 'en'", "it has: extra, main"),
    "o/huge": ("1000000.00 GB are to be fetched, and the disk of", "HF_HOME"),
    "o/other": ("train.jsonl came with 31 bytes, and 7 are listed", "HF_ENDPOINT"),
    "o/script": ("made by a loading script, script.py", "o/script@refs/convert/parquet"),
    "o/n--n..n": ("no data set has such a name", "owner/name"),
}


def test_what_cannot_be_had_is_one_error_with_a_remedy(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for source, (what, remedy) in REFUSED.items():
        with pytest.raises(InputError) as caught:
            sources.local(source)
        assert what in caught.value.what and remedy in caught.value.remedy, source
        assert caught.value.where.startswith(source.split("@")[0].split("#")[0].split(":")[0])
    assert not list((tmp_path / "home").rglob("*.incomplete")) and hub.fetched().count("train.jsonl") == 1, "o/other's alone"
    use(hub, tmp_path / "home", monkeypatch, token=TOKEN)
    assert prompts(sources.local("o/gated")) == ["g"] and prompts(sources.local("o/private")) == ["p"]
    use(hub, tmp_path / "home", monkeypatch, token="hf_another")
    assert prompts(sources.local("o/gated")) == ["g"], "what is here is used"


def test_what_a_config_names(hub: Hub) -> None:
    """A validation split is held out, never a test split; rows of a split; another revision; a file by its path."""
    data = formats.load_training_data(config("o/rows"))
    assert len(data.train) == 6 and [example.messages[0].content for example in data.held_out] == ["v"]
    data = formats.load_training_data(config("o/rows#train[:50%]", "o/rows#train[-1:]"))
    assert [e.messages[0].content for e in (*data.train, *data.held_out)] == ["0a", "0b", "1a", "2b"]
    assert prompts(sources.local("o/rows@v1")) == ["old"]
    assert (
        prompts(sources.local("o/configs:main"))
        == ["main"]
        == prompts(sources.local("o/configs#main/train-00000-of-00001.jsonl"))
    )
    hub.repos["o/rows"].files.pop("data/validation-00000-of-00001.jsonl")
    data = formats.load_training_data(config("o/rows"))
    assert (len(data.files), len(data.train), len(data.held_out)) == (1, 5, 1), "the test split is nobody's to hold out"
    assert validate(Path("o/rows"), "grpo").rows == 6
    with pytest.raises(InputError, match="has no valid split"):
        sources.training_files(config("o/rows", "o/rows").data)


def test_a_run_names_the_commit_and_reads_it_for_ever(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = hub.repos["o/rows"].at("main") or ("", {})
    pinned = sources.pinned(config("o/rows#train[:2]"))
    assert (pinned.data.train, pinned.data.valid) == (f"o/rows@{first}#train[:2]", f"o/rows@{first}#validation")
    hub.repos["o/rows"].files["data/train-00000-of-00003.jsonl"] = lines("new")
    assert prompts(sources.local("o/rows"))[0] == "new"
    again = configs.parse(configs.dump(pinned), base=Path("/")).config
    assert again.data == pinned.data and sources.pinned(again) == again
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    data = formats.load_training_data(again)
    assert [example.messages[0].content for example in data.train] == ["0a", "0b"]
    local = config(str(sources.local(again.data.train)))
    assert sources.pinned(local) is local


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra `hub` is not installed")
def test_parquet(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow it is asked for before anything is fetched."""
    table = data_bytes("parquet", [{"prompt": "a", "answer": "1"}])
    hub.repos["o/parquet"] = Repo({f"default/train/{i:04d}.parquet": table for i in range(2)})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)  # an import fails
        with pytest.raises(InputError, match="needs pyarrow") as caught:
            sources.local("o/parquet")
    assert "droid-tune[hub]" in caught.value.remedy
    assert hub.requests and hub.fetched() == []
    path = sources.local("o/parquet")
    assert prompts(path) == ["a", "a"] and path.name == "000*.parquet"


CARD = """---
license: mit
configs:
- config_name: small
  data_files:
  - {split: train, path: small/part-*.jsonl}
  - {split: dev, path: [small/dev.jsonl]}
- config_name: large
  default: true
  data_files: large/**.csv
---
# A data set
"""
# paths, card, id -> the id in full and the path; None: no such split; a text: words of the error
LAYOUTS: list[tuple[list[str], str, str, str, tuple[str, str] | str | None]] = [
    (["rows.jsonl"], "", "o/n", "train", ("o/n#rows", "rows.jsonl")),  # a single file is train
    (["rows.jsonl"], "", "o/n", "valid", None),
    (["train.json", "val.json"], "", "o/n", "valid", ("o/n#val", "val.json")),
    (["training.csv", "dev.csv", "test.csv"], "", "o/n", "train", ("o/n#training", "training.csv")),
    (["my-train.csv", "my-dev.csv"], "", "o/n", "train", ("o/n#my-train", "my-train.csv")),
    (["data/train.csv", "data/dev-00000-of-00001.csv"], "", "o/n", "valid", ("o/n#dev", "data/dev-00000-of-00001.csv")),
    (["data/train_sft-0-of-1.csv", "data/train_gen-0-of-1.csv"], "", "o/n", "train", "train_gen, train_sft"),
    (["train_0.jsonl", "train_1.jsonl"], "", "o/n", "train", "could be train: train_0, train_1"),
    (["train.csv", "train.jsonl"], "", "o/n", "train", "several files could be the split 'train': train.csv, train.jsonl"),
    (["a.jsonl", "b.jsonl"], "", "o/n", "train", "has no split 'train', but a, b"),
    (["a.jsonl", "b.jsonl"], "", "o/n#b", "train", ("o/n#b", "b.jsonl")),
    (["test.jsonl"], "", "o/n", "train", "has no split 'train', but test"),
    (["test.jsonl"], "", "o/n", "valid", None),
    (["train-0-of-2.csv"], "", "o/n", "train", "missing: train-1-of-2.csv"),
    (["en/train-0-of-1.csv", "fr/train-0-of-1.csv"], "", "o/n:fr", "train", ("o/n:fr#train", "fr/train-0-of-1.csv")),
    (["train.csv", "old/train.csv"], "", "o/n", "train", ("o/n#train", "train.csv")),  # the top is the default
    (["default/train/0.csv", "default/train/1.csv"], "", "o/n", "train", ("o/n:default#train", "default/train/*.csv")),
    (["train/0.csv", "train/x.json"], "", "o/n", "train", "several files could be"),
    (["x.c4.0-of-2.json.gz", "x.c4.1-of-2.json.gz"], "", "o/n", "train", ("o/n#x.c4", "x.c4.*-of-2.json.gz")),
    (["train.jsonl", ".hidden/train.jsonl", "dataset_infos.json", "plot.png"], "", "o/n", "train", ("o/n#train", "train.jsonl")),
    (["read.py", "raw.txt"], "", "o/n", "train", "loading script, read.py"),
    (["raw.txt"], "", "o/n", "train", "no file with rows"),
    (["small/part-1.jsonl", "small/part-2.jsonl", "large/a.csv"], CARD, "o/n", "train", ("o/n:large#train", "large/a.csv")),
    (
        ["small/part-1.jsonl", "small/part-2.jsonl", "small/dev.jsonl", "large/a.csv"],
        CARD,
        "o/n:small",
        "train",
        ("o/n:small#train", "small/part-*.jsonl"),
    ),
    (["small/part-1.jsonl", "small/dev.jsonl"], CARD, "o/n", "valid", ("o/n:small#dev", "small/dev.jsonl")),
    (["train.jsonl"], "---\nconfigs: [\n---\n", "o/n", "train", ("o/n#train", "train.jsonl")),  # a card that is no YAML
    (
        ["a/train.jsonl", "b/train.jsonl"],
        "---\nconfigs:\n- {config_name: z, data_dir: b}\n---\n",
        "o/n",
        "train",
        ("o/n:z#train", "b/train.jsonl"),
    ),
]


@pytest.mark.parametrize(("paths", "card", "text", "kind", "wanted"), LAYOUTS)
def test_which_files_are_which_split(
    paths: list[str], card: str, text: str, kind: str, wanted: tuple[str, str] | str | None
) -> None:
    named = hub_id(text)
    assert isinstance(named, HubId)
    if isinstance(wanted, str):
        with pytest.raises(InputError) as caught:
            hub_layout.choose(paths, card, named, kind)
        assert wanted in caught.value.what and caught.value.remedy
    else:
        found = hub_layout.choose(paths, card, named, kind)
        assert (found and (str(found[0]), found[1])) == wanted
