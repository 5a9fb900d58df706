"""Headers of safetensors files and config.json: what a file may claim, and hundreds of hostile ones."""

from __future__ import annotations

import json
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from engine.config import model_folder
from engine.errors import InputError
from engine.expert_stacks import stacked
from engine.gguf.folder import mlx_folder
from engine.model_files import (
    PLANNED,
    TensorHeader,
    adapted_modules,
    linear_modules,
    read_headers,
    read_json,
    read_shape,
)
from tests.support.gguf_files import tiny_file

HOSTILE = 400
ODD = (
    -1,
    0,
    3,
    31,
    1 << 31,
    1 << 53,
    1 << 64,
    10**400,
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "F16",
    "U32",
    [],
    {},
    [[1]],
)


def safetensors(header: Any, data_bytes: int = 0, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data_bytes)


def entry(shape: Any = (2, 2), span: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


DAMAGED = {
    "nothing": (b"", "claims 0 bytes, the file has 0"),
    "a length of 2^64": (safetensors({}, length=(1 << 64) - 1), "claims 18446744073709551615 bytes"),
    "no JSON": (safetensors(b"{{"), "not JSON"),
    "half a character": (safetensors(b'{"\xff": 1}'), "not JSON"),
    "a list": (safetensors([1]), "not a JSON object"),
    "10,000 brackets": (safetensors(b"[" * 10_000), "not JSON"),
    "10,000 objects": (safetensors(b'{"a":' * 10_000), "not JSON"),
    "a number of 5,000 digits": (safetensors(b'{"a": ' + b"9" * 5000 + b"}"), "too large"),
    "a size of 2^70": (safetensors({"a": entry([1 << 70])}, 16), "too large"),
    "not a number": (safetensors({"a": entry([float("nan")])}, 16), "no sound dtype, shape"),
    "infinite": (safetensors({"a": entry(span=[0, float("inf")])}, 16), "no sound dtype, shape"),
    "a negative size": (safetensors({"a": entry([-2, -2])}, 16), "no sound dtype, shape"),
    "true as a size": (safetensors({"a": entry([True, 4])}, 16), "no sound dtype, shape"),
    "a name for a type": (safetensors({"a": entry(dtype=7)}, 16), "no sound dtype, shape"),
    "an unknown type": (safetensors({"a": entry(dtype="F99")}, 16), "unknown type 'F99'"),
    "three offsets": (safetensors({"a": entry(span=[0, 8, 16])}, 16), "no sound dtype, shape"),
    "backwards": (safetensors({"a": entry(span=[16, 0])}, 16), "outside the file"),
    "outside": (safetensors({"a": entry(span=[16, 32])}, 16), "outside the file"),
    "too few bytes": (safetensors({"a": entry(span=[0, 12])}, 16), "cannot have 12 bytes"),
    "sizes that multiply to 2^106": (safetensors({"a": entry([1 << 53, 1 << 53])}, 16), "cannot have 16 bytes"),
    "a hundred dimensions": (safetensors({"a": entry([1] * 100)}, 16), "100 dimensions"),
    "an overlap": (safetensors({"a": entry(), "b": entry([2], [8, 16])}, 16), "the tensors 'a' and 'b' overlap"),
    "one place for two": (safetensors({"b": entry(), "a": entry()}, 16), "'a' and 'b' overlap"),
    "one name for two": (
        safetensors(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", 16),
        "given twice",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_error_that_says_what(name: str, tmp_path: Path) -> None:
    content, said = DAMAGED[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_headers(tmp_path)
    assert caught.value.where == str(path) and caught.value.remedy


def test_empty_tensors_may_share_a_place_and_order_is_free(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "mlx"},
        "b": entry(span=[16, 32]),
        "a": entry(),
        "e": entry([0, 4], [16, 16]),
        "s": entry([], [32, 36]),
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, 36))
    assert {found.name: (found.elements, found.bytes) for found in read_headers(tmp_path)} == {
        "b": (4, 16),
        "a": (4, 16),
        "e": (0, 0),
        "s": (1, 4),
    }


def test_scales_without_a_shape_are_refused(tmp_path: Path) -> None:
    """A row's width is the number of its scales times the group: a single number has no rows."""
    header = {"a.weight": entry([2, 2], dtype="U32"), "a.scales": entry([], [16, 18], "F16")}
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, 18))
    with pytest.raises(InputError, match=r"a\.scales is a single number"):
        linear_modules(read_headers(tmp_path), {"quantization": {"group_size": 32, "bits": 4}}, "here")


def test_an_index_names_files_of_its_folder_and_all_of_them(tmp_path: Path) -> None:
    """A left-over index of other files altogether does no harm: mlx_lm does not read it."""
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(safetensors({"a": entry()}, 16))
    index = tmp_path / "model.safetensors.index.json"
    for places, said in (
        ({"a": "../../etc/model.safetensors"}, "no file of this folder"),
        ({"a": "/etc/passwd"}, "no file of this folder"),
        ({"a": ".."}, "no file of this folder"),
        ({"a": 7}, "no weight_map"),
        ([], "no weight_map"),
        ({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}, "names model-00002-of-00002"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(InputError, match=said):
            read_headers(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "pytorch-00001.safetensors"}}))
    assert [header.name for header in read_headers(tmp_path)] == ["a"]
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(safetensors({"b": entry()}, 16))
    index.write_text(json.dumps({"weight_map": {name: f"model-0000{n}-of-00002.safetensors" for n, name in enumerate("ab", 1)}}))
    assert [header.name for header in read_headers(tmp_path)] == ["a", "b"]


def test_config_json_is_an_object_of_sound_numbers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content, said in (
        ("[" * 10_000, "cannot be read"),
        ('{"hidden_size": 1' + "0" * 400 + "}", "too large"),
        ('{"hidden_size": ' + "9" * 5_000 + "}", "too large"),
        ("[]", "expected a JSON object"),
        ('{"a": \x00}', "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            read_json(path)
    path.write_text('{"limit": [0.0, Infinity], "vocab_size": 9007199254740992}')  # some families' configs hold Infinity
    assert read_json(path)["vocab_size"] == 1 << 53


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    """Opening a pipe would wait for its writer for ever."""
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="is not a file"):
        read_json(tmp_path / "config.json")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not a file"):
        read_headers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match="not a file"):
        read_headers(tmp_path)


def test_weights_that_are_still_to_come_stand_in_for_themselves(tmp_path: Path) -> None:
    (tmp_path / PLANNED).write_text(json.dumps({"a": entry(), "b": entry([1 << 20, 1 << 13], [16, 16 + (1 << 35)])}))
    assert [(found.name, found.bytes) for found in read_headers(tmp_path)] == [("a", 16), ("b", 1 << 35)]
    (tmp_path / PLANNED).write_text(json.dumps({"a": entry(span=[0, 17])}))
    with pytest.raises(InputError, match="cannot have 17 bytes"):
        read_headers(tmp_path)


def test_400_hostile_folders_are_read_or_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    """Header and config of the embedded model and of a quantised one, each time with some values or bytes changed; whatever can
    be read is also used as the estimate uses it."""
    folders = (model_folder("demo"), mlx_folder(tiny_file(tmp_path / "m.gguf", "Q4_0"), tmp_path / "cache"))
    sound = [((folder / "model.safetensors").read_bytes(), (folder / "config.json").read_bytes()) for folder in folders]
    draw = random.Random(0)
    refused, longest = 0, 0.0
    tracemalloc.start()
    for number in range(HOSTILE):
        whole, config = sound[number % 2]
        length = int.from_bytes(whole[:8], "little")
        header, text = whole[8 : 8 + length], config
        for _ in range(draw.choice((1, 2, 4))):
            changed = with_other_values if draw.random() < 0.6 else with_other_bytes
            header, text = (changed(header, draw), text) if draw.random() < 0.7 else (header, changed(text, draw))
        claimed = draw.choice((*[len(header)] * 12, 0, 7, length, 1 << 20, 1 << 40, (1 << 64) - 1))
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", claimed) + header + whole[8 + length :])
        (tmp_path / "config.json").write_bytes(text)
        start = time.process_time()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            found, described = read_headers(tmp_path), read_json(tmp_path / "config.json")
            read_shape(described)
            linear_modules(found, described, "here")
        except InputError as error:
            refused += 1
            assert error.remedy
        assert tracemalloc.get_traced_memory()[1] - before < 4 << 20
        longest = max(longest, time.process_time() - start)
    tracemalloc.stop()
    assert HOSTILE // 3 < refused < HOSTILE - 20 and longest < 1.0


def with_other_values(content: bytes, draw: random.Random) -> bytes:
    """JSON with one value, at any depth, replaced by an odd one."""
    try:
        whole = node = json.loads(content)
    except ValueError:
        return content
    while isinstance(node, dict | list) and node:
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.2:
            node[key] = draw.choice(ODD)
            break
        node = node[key]
    return json.dumps(whole).encode()


def with_other_bytes(content: bytes, draw: random.Random) -> bytes:
    """Brackets, quotes and bytes come and go."""
    place, span = draw.randrange(len(content) + 1), draw.randrange(1, 100)
    middle = draw.choice(
        (b"", content[place : place + span] * 2, draw.choice((b"{", b"}", b"[", b'"', b"9" * 5000)), draw.randbytes(2))
    )
    return content[:place] + middle + content[place + span :]


def test_experts_kept_one_by_one_are_one_stack_as_mlx_lm_loads_them() -> None:
    """Qwen's names and Mixtral's; a router and a lone expert of another shape stay as they are."""
    one_by_one = [TensorHeader(f"model.layers.0.mlp.experts.{e}.gate_proj.weight", "F32", (32, 64), 8192) for e in range(4)]
    mixtral = [TensorHeader(f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight", "BF16", (64, 32), 4096) for e in range(2)]
    router = TensorHeader("model.layers.0.mlp.gate.weight", "F32", (4, 64), 1024)
    odd = [TensorHeader(f"model.layers.2.mlp.experts.{e}.up_proj.weight", "F32", (8, 8 + e), 256 + 32 * e) for e in range(2)]
    made = stacked([router, *one_by_one, *mixtral, *odd])
    assert made == [
        router,
        TensorHeader("model.layers.0.mlp.switch_mlp.gate_proj.weight", "F32", (4, 32, 64), 4 * 8192),
        TensorHeader("model.layers.1.block_sparse_moe.switch_mlp.down_proj.weight", "BF16", (2, 64, 32), 2 * 4096),
        *odd,
    ]
    chosen = adapted_modules(linear_modules(made, {}, "x"), 3, kind="lora", last=-1, keys=["mlp.switch_mlp.gate_proj"])
    assert [(module.path, module.experts) for module in chosen] == [("model.layers.0.mlp.switch_mlp.gate_proj", 4)]
