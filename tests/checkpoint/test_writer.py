"""What is written must be read by the safetensors library, be the same every time, and never be half there."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bot.checkpoint.reader import Checkpoint, TensorFile
from bot.checkpoint.writer import Part, part_of, write_checkpoint, write_tensors
from bot.errors import EnvironmentProblem, QuantizationError
from bot.records import TensorInfo

LAYER = {
    "model.layers.0.up.qweight": torch.randint(-(2**31), 2**31 - 1, (64, 8), dtype=torch.int32),
    "model.layers.0.up.scales": torch.rand(2, 64).half(),
    "model.layers.0.norm.weight": torch.randn(63),
    "model.layers.0.bias": torch.randn(3).half(),
    "model.layers.0.none": torch.empty(0),
    "model.layers.0.one": torch.tensor(2.0),
}


@pytest.fixture
def layer(tmp_path: Path) -> TensorFile:
    write_tensors(tmp_path / "layer.safetensors", LAYER, metadata={"layer": "0"})
    return TensorFile(tmp_path / "layer.safetensors")


def test_a_layer_file_is_aligned_and_read_by_the_library(layer: TensorFile) -> None:
    for name, tensor in load_file(layer.path).items():
        assert torch.equal(tensor, LAYER[name])
    assert layer.metadata == {"layer": "0"}
    for name, span in layer._header.spans.items():
        assert span.start % LAYER[name].element_size() == 0


def test_mode_is_0644_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_tensors(tmp_path / "x.safetensors", LAYER, metadata={})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_what_fits_one_shard_is_one_file(layer: TensorFile, tmp_path: Path) -> None:
    names = write_checkpoint(tmp_path, [part_of(layer, name) for name in layer.tensors])
    assert names == ("model.safetensors",)
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in LAYER.items())


def test_shards_hold_at_most_that_many_bytes(layer: TensorFile, tmp_path: Path) -> None:
    names = write_checkpoint(tmp_path, [part_of(layer, name) for name in layer.tensors], shard_bytes=600)

    *shards, index = names
    assert index == "model.safetensors.index.json"
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    written = json.loads((tmp_path / index).read_text())
    assert written["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in LAYER.values())
    for shard in shards:
        held = load_file(tmp_path / shard)
        assert {written["weight_map"][name] for name in held} == {shard}
        sizes = [tensor.numel() * tensor.element_size() for tensor in held.values()]
        assert sum(sizes) <= 600 or len(sizes) == 1
    checkpoint = Checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in LAYER.items())


def test_same_tensors_give_the_same_bytes(layer: TensorFile, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        names = write_checkpoint(folder, [part_of(layer, name) for name in layer.tensors], shard_bytes=600)
        written.append([(name, (folder / name).read_bytes()) for name in names])
    assert written[0] == written[1]


def test_floats_are_converted_while_they_are_copied(layer: TensorFile, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [part_of(layer, name, dtype="BF16") for name in layer.tensors])
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in LAYER.items():
        expected = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert torch.equal(checkpoint.read(name), expected)


@pytest.mark.parametrize(("value", "problem"), [(70000.0, "7e.04, which F16"), (float("nan"), "not finite")])
def test_a_value_that_does_not_fit_names_its_tensor(value: float, problem: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "l.safetensors", {"model.norm.weight": torch.tensor([1.0, value])}, metadata={})
    part = part_of(TensorFile(tmp_path / "l.safetensors"), "model.norm.weight", dtype="F16")
    with pytest.raises(QuantizationError, match=f"model.norm.weight .*{problem}"):
        write_checkpoint(tmp_path, [part])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_a_problem_of_the_environment(layer: TensorFile, tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors: .*No space left") as caught:
        write_checkpoint(tmp_path, [part_of(layer, name) for name in layer.tensors])
    assert caught.value.exit_code == 8
    assert [path.name for path in tmp_path.iterdir()] == ["layer.safetensors"]


def test_bytes_that_went_missing_are_noticed(tmp_path: Path) -> None:
    part = Part(info=TensorInfo(name="a", dtype="U8", shape=(4,)), content=lambda: iter([b"123"]))
    with pytest.raises(QuantizationError, match="3 bytes, not 4"):
        write_checkpoint(tmp_path, [part])
    assert not list(tmp_path.iterdir())


def test_never_more_than_a_chunk_is_held(tmp_path: Path) -> None:
    write_tensors(tmp_path / "l.safetensors", {"w": torch.zeros(1 << 23)}, metadata={})
    for dtype in ("F32", "F16"):
        part = part_of(TensorFile(tmp_path / "l.safetensors"), "w", dtype=dtype)
        sizes = [len(chunk) for chunk in part.content()]
        assert sum(sizes) == part.size_bytes
        assert max(sizes) <= 1 << 24
