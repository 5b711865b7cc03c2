"""Reading by offset, against the safetensors library; and damaged or malicious files."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from bot.checkpoint import header, weight_files
from bot.checkpoint.header import ITEM_BITS, parse_header, size_bytes
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint, TensorFile
from bot.checkpoint.weight_files import shard_names
from bot.errors import UnsupportedModelError, UpstreamError

TENSORS = {
    "model.embed.weight": torch.randn(7, 5).bfloat16(),
    "model.layers.0.norm.weight": torch.randn(5).half(),
    "model.layers.0.up.weight": torch.randn(3, 5),
    "model.layers.1.up.weight": torch.randn(3, 5, dtype=torch.float64),
    "model.layers.10.ids": torch.arange(6).reshape(2, 3),
    "model.mask": torch.tensor([True, False]),
    "model.scalar": torch.tensor(3.5),
    "model.empty": torch.empty(0, 4),
    "model.waves": torch.view_as_complex(torch.randn(3, 2)),
    "model.small": torch.randn(4).to(torch.float8_e4m3fnuz),
}


def sharded(folder: Path, files: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> Path:
    names = sorted(TENSORS)
    halves = dict(zip(files, (names[:4], names[4:]), strict=True))
    for file, part in halves.items():
        (folder / file).parent.mkdir(exist_ok=True)
        save_file({name: TENSORS[name] for name in part}, folder / file)
    write_index(folder, {name: file for file, part in halves.items() for name in part})
    return folder


def in_folders(folder: Path) -> Path:
    return sharded(folder, ("a/x.safetensors", "b/x.safetensors"))


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def single(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def forged(entries: dict[str, Any], data: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, *, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("layout", [single, sharded, in_folders])
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
        (struct.pack("<Q", 24) + '{"a": {}}'.encode("utf-16") + b"    ", "not JSON"),
        (forged({"a": entry(0, 4) | {"dtype": ["U8"]}}, b"1234"), "unknown dtype"),
        (forged({"a": entry(0, 4, dtype="x" * 10**6)}, b"1234"), "unknown dtype"),
        (forged({"a": entry(0, 1, dtype="F4", shape=[3])}, b"1"), "does not fill"),
        (forged({"a": entry(0, 0, shape=[0] * 65)}), "invalid shape"),
        (forged({"a": entry(0, 0, shape=[0, 10**4000])}), "invalid shape"),
        (struct.pack("<Q", 5000) + b"9" * 5000, "not JSON"),
        (struct.pack("<Q", 10**6) + b"[" * 10**6, "not JSON"),
        (forged({"a" * 10**6: entry(0, 0)}), "no name of a tensor"),
        (forged({"\ud800": entry(0, 0)}), "no name of a tensor"),
        (forged({"\x1b[31m\n::error": entry(0, 4)}, b"1"), "ends at byte"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "it is a git-lfs pointer"),
        (b"GGUF\x03\0\0\0" + b"\0" * 100, "it is a GGUF file"),
        (b"PK\x03\x04\0\0\x08\x08" + b"\0" * 100, "it is a zip archive"),
    ],
)
def test_hostile_files_are_refused_by_name(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UpstreamError, match="model.safetensors: .*" + problem) as caught:
        Checkpoint(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("dtype", ITEM_BITS)
def test_every_dtype_of_the_format_is_known_and_kept(dtype: str, tmp_path: Path) -> None:
    # Four items take this many bytes; safetensors' own loader agrees on those that torch has.
    data = bytes(range(ITEM_BITS[dtype] // 2))
    path = tmp_path / "model.safetensors"
    path.write_bytes(forged({"a": entry(0, len(data), dtype=dtype, shape=[4])}, data))
    file = TensorFile(path)
    assert size_bytes(file.tensors["a"]) == len(data)
    assert b"".join(file.chunks("a")) == data
    if dtype in TORCH_DTYPES:
        with safe_open(path, "pt") as opened:
            assert file.read("a").dtype == opened.get_tensor("a").dtype
    else:
        with pytest.raises(UnsupportedModelError, match=f"a is {dtype}, which torch cannot hold"):
            file.read("a")


def test_more_tensors_than_any_model_has_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(header, "MAX_FILE_TENSORS", 20_000)
    entries = {f"t{number}": entry(0, 0) for number in range(20_001)}
    text = json.dumps(entries).encode()
    with pytest.raises(UpstreamError, match=r"x: the header lists 20001 tensors, more than 20000 in one file"):
        parse_header(text, file_bytes=8 + len(text), where="x")
    # A name with an escape in it is not counted before JSON is parsed.
    escaped = text.replace(b"data_offsets", b"data_offset\\u0073")
    with pytest.raises(UpstreamError, match="lists 20001 tensors"):
        parse_header(escaped, file_bytes=8 + len(escaped), where="x")
    monkeypatch.setattr(weight_files, "MAX_TENSORS", len(TENSORS) - 1)
    with pytest.raises(UpstreamError, match=rf"b\.safetensors: .* {len(TENSORS)} tensors"):
        Checkpoint(sharded(tmp_path))


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=200), size=st.integers(0, 300))
def test_any_bytes_as_header_are_read_or_refused(text: bytes, size: int) -> None:
    try:
        parse_header(text, file_bytes=size, where="x")
    except UpstreamError:
        return


OUTSIDE = ["../a.safetensors", "/etc/a.safetensors", "x/../a.safetensors", "..\\a.safetensors", "", ".", 3]
HIDDEN = [".cache/a.safetensors", "a/.b/c.safetensors"]


@pytest.mark.parametrize("shard", [*OUTSIDE, *HIDDEN])
def test_an_index_that_points_outside_is_refused(shard: object, tmp_path: Path) -> None:
    write_index(tmp_path, {"a": shard})
    with pytest.raises(UpstreamError, match=r"index\.json: names .*, which is no file in this folder"):
        Checkpoint(tmp_path)


def test_an_index_of_other_files_or_of_too_many_is_refused() -> None:
    with pytest.raises(UpstreamError, match=r"x: names 'a\.bin', which is not a safetensors file"):
        shard_names({"weight_map": {"a": "a.bin"}}, where="x")
    many = {str(number): f"{number}.safetensors" for number in range(weight_files.MAX_SHARDS + 1)}
    with pytest.raises(UpstreamError, match="x: names 1001 files"):
        shard_names({"weight_map": many}, where="x")


def test_only_the_files_say_which_tensors_there_are(tmp_path: Path) -> None:
    sharded(tmp_path)
    # As transformers reads it: a tensor that is in no file is not there, one that is not listed is, and of two
    # that have one name the last counts.
    save_file({"model.scalar": torch.tensor(7.0)}, tmp_path / "c.safetensors")
    write_index(tmp_path, {"stale": "a.safetensors", "b": "b.safetensors", "model.scalar": "c.safetensors"})
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(TENSORS)
    assert checkpoint.read("model.scalar") == 7.0


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"a": NaN}'])
def test_an_index_that_is_no_index_is_refused(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UpstreamError, match=r"index\.json"):
        Checkpoint(tmp_path)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="neither"):
        Checkpoint(tmp_path)
    sharded(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UpstreamError, match=r"b\.safetensors: missing"):
        Checkpoint(tmp_path)


def test_a_file_cut_while_it_is_read_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(single(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UpstreamError, match="ended"):
        list(map(checkpoint.read, checkpoint.tensors))
