"""Every kind of export of a real run, made and checked by real workers; and what is refused, with nothing left behind."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import yaml
from gguf import GGMLQuantizationType, GGUFReader, quants
from mlx_lm.utils import load
from typer.testing import CliRunner

from engine.api import Engine, Run
from engine.cli.app import app
from engine.errors import InputError
from engine.runs import record
from engine.runs.record import RunRecord
from engine.takehome.export import PROVENANCE, default_out, export
from engine.takehome.generate import folded
from engine.takehome.kinds import Exported, Job
from engine.worker.trees import flat
from tests.support import warm
from tests.support.live import DEADLINE_SECONDS, await_condition, small_config

TOKENS = mx.array([[72, 101, 108, 108, 111, 32, 49, 50, 43, 51, 52, 61]])


@pytest.fixture(scope="module")
def taken(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Six exports of the last checkpoint: two workers for all of them."""
    out = tmp_path_factory.mktemp("taken")
    jobs = {
        "adapter": Job("adapter", out / "adapter"),
        "fused": Job("fused", out / "deeper" / "fused"),
        "four": Job("fused", out / "four", bits=4, group_size=32),
        "studio": Job("lmstudio", out / "models" / "droid-tune" / "taken"),
        "f16": Job("gguf", out / "f16"),
        "q8": Job("gguf", out / "q8", bits=8),
    }
    with warm.workers():
        made = asyncio.run(export(trained.record, list(jobs.values()), "last"))
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    return dict(zip(jobs, made, strict=True))


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    return np.array(load(str(folder), adapter_path=None if adapter is None else str(adapter))[0](TOKENS)[0])


def test_the_adapter_is_the_runs_own_to_the_byte(trained: Run, taken: dict[str, Exported]) -> None:
    made = taken["adapter"]
    last = trained.record.checkpoints_dir / "step-000002"
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (made.out / name).read_bytes() == (last / name).read_bytes()
    assert (made.step, made.difference.largest, made.difference.kl, made.reload) == (2, 0.0, 0.0, None)
    assert made.difference.tokens == 96
    assert f"--adapter-path {made.out}" in made.command
    assert made.files == ("README.md", "adapter_config.json", "adapters.safetensors", PROVENANCE)


def test_the_fused_model_answers_as_base_and_adapter_do(trained: Run, taken: dict[str, Exported]) -> None:
    """Seen from here, by mlx_lm alone: within float32's rounding of base with adapter, and not the base."""
    base = trained.record.folder.parent.parent / "base"
    tuned, own = logits(base, taken["adapter"].out), logits(taken["fused"].out)
    assert np.abs(own - tuned).max() < 1e-4
    assert np.abs(own - logits(base)).max() > 1e-2
    assert taken["fused"].difference.largest < 1e-4
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (taken["fused"].out / name).read_bytes() == (base / name).read_bytes()
    assert np.array_equal(logits(taken["studio"].out), own)
    assert taken["studio"].out.parts[-3:] == ("models", "droid-tune", "taken")


def test_quantising_is_measured_and_what_is_written_is_what_was_meant(taken: dict[str, Exported]) -> None:
    """The cost is against the run, and is no reason to refuse; the files hold the quantised model to the bit."""
    made = taken["four"]
    assert made.quantization == {"bits": 4, "group_size": 32, "mode": "affine"}
    assert made.reload is not None and made.reload.largest == 0.0
    assert made.difference.largest > 0.1 and made.difference.kl > 1e-3
    assert json.loads((made.out / "config.json").read_text())["quantization"]["bits"] == 4


@pytest.mark.parametrize(("name", "kind", "largest"), [("f16", "F16", 0.1), ("q8", "Q8_0", 3.0)])
def test_gguf_holds_the_fused_model(taken: dict[str, Exported], name: str, kind: str, largest: float) -> None:
    """Tensor by tensor through the gguf package: matrices equal the fused model's, rounded as the type rounds; q and k rows of
    each head stand in pairs (row 2 i + j of the file is row j * half + i of the head); norms are exact."""
    file = next(taken[name].out.glob("*.gguf"))
    assert file.name == f"taken-{kind}.gguf"
    reader = GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = {key: np.array(value) for key, value in flat(load(str(taken["fused"].out))[0].parameters()).items()}
    assert len(tensors) == len(weights)

    def numbers(key: str) -> np.ndarray:
        return quants.dequantize(tensors[key].data, tensors[key].tensor_type)

    down, own = weights["model.layers.1.mlp.down_proj.weight"], GGMLQuantizationType[kind]
    assert tensors["blk.1.ffn_down.weight"].tensor_type == own
    assert np.array_equal(numbers("blk.1.ffn_down.weight"), quants.dequantize(quants.quantize(down, own), own))
    assert np.array_equal(numbers("blk.0.attn_norm.weight"), weights["model.layers.0.input_layernorm.weight"])
    config = json.loads((taken["fused"].out / "config.json").read_text())
    heads = config["num_attention_heads"]
    query = quants.dequantize(quants.quantize(weights["model.layers.0.self_attn.q_proj.weight"], own), own)
    half = query.shape[0] // heads // 2
    of_head = numbers("blk.0.attn_q.weight").reshape(heads, 2 * half, -1)[1]
    for i, j in ((0, 0), (0, 1), (3, 1)):
        assert np.array_equal(of_head[2 * i + j], query[2 * half + j * half + i])
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["llama.rope.freq_base"] == config["rope_theta"] and fields["llama.attention.head_count"] == heads
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["tokenizer.ggml.merges"][:2] == ["t h", "th e"]
    assert fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.eos_token_id"]] == "<|end|>"
    assert "<|assistant|>" in fields["tokenizer.chat_template"]
    assert 0 < taken[name].difference.largest < largest  # through engine/gguf/ and mlx_lm, against the run's own policy


def test_the_card_says_what_the_run_did(trained: Run, taken: dict[str, Exported]) -> None:
    """Figures are those of the journal and of the config, the digests those of the files."""
    text, state = (taken["adapter"].out / "README.md").read_text(), folded(trained.record)
    assert state.result is not None
    data = Path(yaml.safe_load(trained.record.config_file.read_text())["data"]["train"])
    wanted = [
        "Base model: base\n",
        "arXiv 2402.03300",
        f"Data: `{data.name}`, sha256 `{hashlib.sha256(data.read_bytes()).hexdigest()}`",
        "Checkpoint: last, after step 2; the run did 2 of 2 steps (finished)",
        "Seed: 0",
        f"mlx {state.machine['versions']['mlx']}, mlx-lm {state.machine['versions']['mlx-lm']}",
        taken["adapter"].command,
        "see the base model",
        "largest logit difference 0, mean KL 0 nats",
    ]
    assert [line for line in wanted if line not in text] == []
    last = state.held_out["reward"].values[-1]
    assert f"base {state.result['base']:.4g}, tuned {last:.4g}; difference" in text
    for step, value in zip(state.series["reward"].steps, state.series["reward"].values, strict=True):
        assert f"| {step} | {value:.4g} |" in text
    config = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert config["data"]["train"] == data.name and config["adapter"]["rank"] == 16
    assert str(Path.home()) not in text.replace(taken["adapter"].command, "")
    told = json.loads((taken["adapter"].out / PROVENANCE).read_text())
    assert told["difference"]["largest"] == 0.0 and told["run"] == "taken" and told["held_out"]["n"] == 8


WRAPPER = """
import os, resource, sys
from pathlib import Path
if sys.argv[1] == "full-disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
elif sys.argv[2] == "verify":  # the weights change between writing and reading
    import json, numpy
    from safetensors.numpy import load_file, save_file
    line = sys.stdin.readline()
    path = Path(json.loads(line)["jobs"][0]["folder"]) / "adapters.safetensors"
    arrays = load_file(path)
    save_file({name: value * 1.5 for name, value in arrays.items()}, path)
    read, write = os.pipe()
    os.write(write, line.encode()) if len(line) < 60_000 else sys.exit("too long for a pipe")
    os.close(write)
    os.dup2(read, 0)
os.execv(sys.executable, [sys.executable, "-P", "-m", "engine.worker", sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("how", "what"), [("tampered", "what was written is not the run's policy: largest logit"), ("full-disk", "cannot be written")]
)
def test_what_is_not_the_policy_leaves_nothing_and_spares_what_was_there(
    trained: Run, tmp_path: Path, how: str, what: str
) -> None:
    out = tmp_path / "new" / "out"
    out.mkdir(parents=True)
    (out / PROVENANCE).write_text("{}")
    job = Job("adapter" if how == "tampered" else "fused", out, force=True)
    with pytest.raises(InputError, match=what):
        asyncio.run(export(trained.record, [job], "last", program=(sys.executable, "-P", "-c", WRAPPER, how)))
    assert list(out.parent.iterdir()) == [out] and [path.name for path in out.iterdir()] == [PROVENANCE]


def test_the_command_replaces_an_earlier_export(trained: Run, tmp_path: Path) -> None:
    """As typed, of the best checkpoint, while a worker holds the run's lock; nothing in the run's folder is touched. What a
    killed export left beside it is removed."""
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.0123abcd.part").mkdir()
    (tmp_path / "out" / PROVENANCE).write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in trained.record.folder.rglob("*")}
    command = [sys.executable, "-P", "-m", "tui", "export", "tak", "--out", "out", "--force", "--json"]
    home = trained.record.folder.parent.parent
    environment = {**os.environ, "DROID_TUNE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    with trained.record.lock_file.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["checkpoint"] == "best" and told["difference"]["largest"] == 0
    assert [note for note in told["notes"] if ".out.0123abcd.part" in note] and "0123" not in (
        tmp_path / "out/README.md"
    ).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == told["files"]
    assert {path: path.stat().st_mtime_ns for path in trained.record.folder.rglob("*")} == before


def test_a_signal_leaves_nothing_behind(trained: Run, tmp_path: Path) -> None:
    """`kill` while the worker writes: its folder aside is gone, the worker too, and the earlier export is as it was."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PROVENANCE).write_text("{}")
    command = [sys.executable, "-P", "-m", "tui", "export", "tak", "--to", "fused", "--out", "out", "--force"]
    home = trained.record.folder.parent.parent
    environment = {**os.environ, "DROID_TUNE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as done:
        await_condition(lambda: len(list(tmp_path.glob(".out.*.part"))) == 2, "the folder aside and that of the probe")
        done.terminate()
        _, said = done.communicate(timeout=DEADLINE_SECONDS)
    assert (done.returncode, said.strip()) == (128 + signal.SIGTERM, "left; nothing is kept of this export")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PROVENANCE]


# What is refused, before any worker is started.


@pytest.fixture
def fresh(tmp_path: Path) -> RunRecord:
    """A run that has not begun."""
    return record.create(small_config("grpo", run__name="fresh"), tmp_path / "home")


def refused(work: Any) -> InputError:
    with pytest.raises(InputError) as raised:
        asyncio.run(work)
    return raised.value


def test_runs_and_checkpoints_that_are_not_there(trained: Run, fresh: RunRecord, tmp_path: Path) -> None:
    home = trained.record.folder.parent.parent
    assert "no run 'takne'" in str(refused(Engine(home).export("takne", out=tmp_path / "o")))
    jobs = [Job("adapter", tmp_path / "out")]
    assert "has no adapter yet" in refused(export(fresh, jobs)).what
    assert "has no checkpoint" in refused(export(fresh, jobs, "last")).what
    gone = refused(export(trained.record, jobs, "7"))
    assert gone.what == "the run has no checkpoint after step 7" and gone.remedy.startswith("kept are those after 0, 1, 2;")
    assert "is no checkpoint" in refused(export(trained.record, jobs, "newest")).what
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("warm_workers")
def test_targets_that_are_taken(trained: Run, tmp_path: Path) -> None:
    """An --out with something in it is refused; --force takes none but an earlier export."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("work of years")
    (tmp_path / "file").write_text("x")
    assert refused(export(trained.record, [Job("adapter", tmp_path / "own")])).what == "is there already"
    for name in ("own", "file"):
        error = refused(export(trained.record, [Job("adapter", tmp_path / name, force=True)]))
        assert error.what.startswith("is no earlier export")
    assert (tmp_path / "own" / "thesis.txt").read_text() == "work of years"
    twice = [Job("adapter", tmp_path / "a"), Job("fused", tmp_path / "a")]
    assert refused(export(trained.record, twice)).what == "two exports would be one folder"

    def meanwhile(name: str, done: int, total: int) -> None:
        if name == "bringing it to the disk":
            (tmp_path / "late").mkdir()
            (tmp_path / "late" / "thesis.txt").write_text("work of a minute")

    error = refused(export(trained.record, [Job("adapter", tmp_path / "late")], on_phase=meanwhile))
    assert error.what == "is there already" and (tmp_path / "late" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"kind": "onnx"}, "--to"),
        ({"kind": "fused", "bits": 5}, "--bits"),
        ({"kind": "fused", "bits": 4, "group_size": 48}, "--group-size"),
        ({"kind": "adapter", "bits": 4}, "--to adapter"),
        ({"kind": "adapter", "dequantize": True}, "--to adapter"),
        ({"kind": "gguf", "bits": 4}, "--bits"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        Job(out=tmp_path, **settings).check()
    assert raised.value.where == where and raised.value.remedy


def test_one_export_is_of_one_kind() -> None:
    """--to twice is an error, and not the last of them."""
    error = CliRunner().invoke(app, ["export", "any", "--to", "adapter", "--to", "fused"]).exception
    assert isinstance(error, InputError) and error.where == "--to" and "adapter and fused" in error.what and error.remedy


def test_lmstudio_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of today before that of old; none is made up."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="LM Studio has no folder") as raised:
        default_out("lmstudio", "r", tmp_path)
    assert "--out" in raised.value.remedy
    (tmp_path / ".cache" / "lm-studio").mkdir(parents=True)
    assert default_out("lmstudio", "r", tmp_path) == tmp_path / ".cache/lm-studio/models/droid-tune/r"
    (tmp_path / ".lmstudio").mkdir()
    assert default_out("lmstudio", "r", tmp_path) == tmp_path / ".lmstudio/models/droid-tune/r"
    assert default_out("fused", "r", tmp_path) == tmp_path / "r-fused"
