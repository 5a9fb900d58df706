"""SmolLM2-135M-Instruct straight from the .gguf file that its wheel carries, against the folder that the other tests use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tokenizers import Tokenizer

from engine.blas import blas_environment
from engine.gguf.folder import mlx_folder
from tests.gguf.test_tokenizer import nasty_texts
from tests.support.five import all_five
from tests.test_real_model import CACHE, smollm2  # noqa: F401 - a fixture

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]

COMPARE = """
import sys

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import load

(ours, _), (theirs, tokenizer) = load(sys.argv[1]), load(sys.argv[2])
own = dict(tree_flatten(ours.parameters()))
unequal = []
for name, value in tree_flatten(theirs.parameters()):
    base = name.removesuffix(".weight")
    found = own[name]
    if f"{base}.scales" in own:
        scales, biases = own[f"{base}.scales"], own[f"{base}.biases"]
        found = mx.dequantize(found, scales, biases, 32, found.shape[-1] // scales.shape[-1])
    if not mx.array_equal(found.astype(mx.float32), value).item():
        unequal.append(name)
ours.set_dtype(mx.float32)
tokens = mx.array([tokenizer.encode("The capital of France is")])
gap, size = mx.abs(ours(tokens) - theirs(tokens)).max().item(), mx.abs(theirs(tokens)).max().item()
print(len(unequal), gap / size)
"""


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    from tests.support.real_model import cached_gguf

    return cached_gguf(CACHE)


@pytest.fixture(scope="module")
def three_layers(gguf_file: Path) -> Path:
    """The file with the first three of its thirty layers and all else as it is: what the commands do is the same for each."""
    path = CACHE / "SmolLM2-3-layers.Q4_1.gguf"
    if not path.exists():
        reader, part = GGUFReader(gguf_file), path.with_suffix(".part")
        writer = GGUFWriter(part, "llama")
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture":  # the writer's own
                continue
            value = 3 if name == "llama.block_count" else field.contents()
            is_list = field.types[0] == GGUFValueType.ARRAY
            writer.add_key_value(name, value, field.types[0], field.types[-1] if is_list else None)
        kept = [each for each in reader.tensors if not each.name.startswith("blk.") or int(each.name.split(".")[1]) < 3]
        for each in kept:
            writer.add_tensor_info(each.name, each.data.shape, each.data.dtype, each.data.nbytes, each.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in kept:
            writer.write_tensor_data(each.data)
        writer.close()
        part.rename(path)
    return path


def test_ids_weights_and_logits_are_those_of_the_folder(smollm2: Path, gguf_file: Path, tmp_path: Path) -> None:  # noqa: F811
    """The folder's weights were dequantised in float16: so dequantised, ours are equal to the bit. In float32 ours are exact, so
    that logits differ by the folder's own rounding: 2^-11 of a weight, 0.2% of the largest logit."""
    folder = mlx_folder(gguf_file, tmp_path / "cache")
    own, theirs = (Tokenizer.from_file(str(place / "tokenizer.json")) for place in (folder, smollm2))
    texts = nasty_texts(200)
    assert [own.encode(text).ids for text in texts] == [theirs.encode(text).ids for text in texts]
    told, other = (json.loads((place / "tokenizer_config.json").read_text()) for place in (folder, smollm2))
    assert all(told[key] == other[key] for key in ("chat_template", "bos_token", "eos_token", "pad_token", "unk_token"))
    command = [sys.executable, "-c", COMPARE, str(folder), str(smollm2)]
    environment = {**os.environ, **blas_environment(os.environ)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    unequal, gap = done.stdout.split()
    assert int(unequal) == 0
    assert float(gap) < 4e-3


@pytest.mark.slow
def test_validate_estimate_train_export_and_chat_straight_from_the_file(three_layers: Path, tmp_path: Path) -> None:
    """28.3 million embeddings of 8 bits and 10.6 million weights of 4, with a float32 scale and bias for every 32: 2 bits more of
    each make 35.4 + 8.0 MB."""
    estimated, _, made = all_five(three_layers, tmp_path)
    assert 43.3e6 < estimated["weights_bytes"] < 43.5e6
    [folder] = (tmp_path / "home" / "models").glob("SmolLM2-3-layers.Q4_1-*")
    assert (folder / "model.safetensors").is_file()
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["model"] == str(folder) and made["kind"] == "adapter"
