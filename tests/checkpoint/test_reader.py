"""Reading by offset, against the safetensors library; and damaged or malicious files."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bot.checkpoint.header import parse_header
from bot.checkpoint.reader import Checkpoint
from bot.errors import UpstreamError

TENSORS = {
    "model.embed.weight": torch.randn(7, 5).bfloat16(),
    "model.layers.0.norm.weight": torch.randn(5).half(),
    "model.layers.0.up.weight": torch.randn(3, 5),
    "model.layers.1.up.weight": torch.randn(3, 5, dtype=torch.float64),
    "model.layers.10.ids": torch.arange(6).reshape(2, 3),
    "model.mask": torch.tensor([True, False]),
    "model.scalar": torch.tensor(3.5),
    "model.empty": torch.empty(0, 4),
}


def sharded(folder: Path) -> Path:
    names = sorted(TENSORS)
    halves = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, part in halves.items():
        save_file({name: TENSORS[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def single(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def forged(entries: dict[str, Any], data: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, *, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("layout", [single, sharded])
def test_every_dtype_reads_back_equal(layout: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(layout(tmp_path))
    assert set(checkpoint.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)


def test_chunks_are_the_tensors_bytes(tmp_path: Path) -> None:
    chunks = list(Checkpoint(single(tmp_path)).chunks("model.layers.1.up.weight", chunk_bytes=16))
    assert max(map(len, chunks)) == 16
    assert b"".join(chunks) == TENSORS["model.layers.1.up.weight"].numpy().tobytes()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a safetensors file"),
        (b"\x10\0\0", "not a safetensors file"),
        (forged({}, length=1 << 62), "the header claims"),
        (forged({"a": entry(0, 4)}, b"1234")[:-1], "ends at byte"),
        (forged({"a": entry(0, 4)}, b"12345"), "belong to none"),
        (forged({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"), "overlaps"),
        (forged({"a": entry(0, 2), "b": entry(4, 6)}, b"123456"), "leaves a gap"),
        (forged({"a": entry(0, 4, shape=[5])}, b"1234"), "does not fill"),
        (forged({"a": entry(0, 4, dtype="F32", shape=[-1, -1])}, b"1234"), "invalid shape"),
        (forged({"a": entry(4, 0, shape=[0])}, b"1234"), "does not fill"),
        (forged({"a": entry(0, 4, dtype="F31")}, b"1234"), "unknown dtype"),
        (forged({"a": {"dtype": "U8", "shape": [4]}}, b"1234"), "incomplete"),
        (forged({"a": {"dtype": "U8", "shape": 4, "data_offsets": [0, 4]}}, b"1234"), "invalid shape"),
        (forged({"a": [1]}), "incomplete"),
        (forged({"a": entry(0, 1, shape=[True])}, b"1"), "invalid shape"),
        (forged({"__metadata__": {"a": 1}}), "__metadata__"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 14) + b'{"a":1,"a":1} ', "twice"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "not JSON"),
    ],
)
def test_hostile_files_are_refused_by_name(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UpstreamError, match="model.safetensors: .*" + problem) as caught:
        Checkpoint(tmp_path)
    assert caught.value.exit_code == 3


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=200), size=st.integers(0, 300))
def test_any_bytes_as_header_are_read_or_refused(text: bytes, size: int) -> None:
    try:
        parse_header(text, file_bytes=size, where="x")
    except UpstreamError:
        return


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "x/../a.safetensors", "..\\a", "", "."])
def test_an_index_that_points_outside_is_refused(shard: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UpstreamError, match="outside the folder"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"a": NaN}'])
def test_an_index_that_is_no_index_is_refused(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UpstreamError, match=r"index\.json"):
        Checkpoint(tmp_path)


def test_files_and_tensors_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="neither"):
        Checkpoint(tmp_path)
    sharded(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(UpstreamError, match=r"b\.safetensors: tensor 'model\."):
        Checkpoint(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UpstreamError, match=r"b\.safetensors: missing"):
        Checkpoint(tmp_path)


def test_a_file_cut_while_it_is_read_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(single(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UpstreamError, match="ended"):
        list(map(checkpoint.read, checkpoint.tensors))
