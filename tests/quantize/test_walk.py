"""An interrupted run loses one layer at most, and ends in the same bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bot.quantize.layerfile import hidden_path, layer_path, quantized_path
from bot.quantize.walk import TRACE_TOKENS, LayerRun
from tests.support import tiny_models
from tests.support.canary import losses, quantize_into

LAYERS = 4
Bytes = dict[str, bytes]


class KilledError(Exception):
    pass


def run(source: Path, folder: Path, *, kill_before: int = LAYERS, samples: int = 4) -> Bytes:
    """The shards, or KilledError before this layer."""

    def watch(what: str, done: int, total: int, unit: str) -> None:
        if (what, done) == ("quantizing", kill_before) and done < total:
            raise KilledError

    quantize_into(folder, source, blocks=tiny_models.random_blocks(samples, 32), progress=watch)
    assert not list((folder / "layers").glob("*.bin"))
    return {path.name: path.read_bytes() for path in (folder / "out").glob("*.safetensors")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen3", tmp_path_factory.mktemp("source"), num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    return run(source, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that all calibration tokens went through."""
    seen: list[int] = []
    through: Callable[..., object] = LayerRun.forward

    def counted(self: LayerRun, layer: torch.nn.Module) -> object:
        seen.append(self.index)
        return through(self, layer)

    monkeypatch.setattr(LayerRun, "forward", counted)
    return seen


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_killed_run_resumes(killed: int, source: Path, expected: Bytes, runs: list[int], tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(source, tmp_path, kill_before=killed)
    assert hidden_path(tmp_path / "layers", killed).is_file()
    runs.clear()
    assert run(source, tmp_path) == expected
    assert runs == list(range(killed, LAYERS))


@pytest.mark.parametrize("lost", [hidden_path, quantized_path])
def test_lost_activations_are_recomputed(
    lost: Callable[[Path, int], Path], source: Path, expected: Bytes, runs: list[int], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run(source, tmp_path, kill_before=2)
    lost(tmp_path / "layers", 2).unlink()
    kept = layer_path(tmp_path / "layers", 1).stat().st_mtime_ns
    runs.clear()
    assert run(source, tmp_path) == expected
    assert runs == [0, 1, 2, 3]
    assert layer_path(tmp_path / "layers", 1).stat().st_mtime_ns == kept


def test_only_damaged_layers_are_run_again(source: Path, expected: Bytes, runs: list[int], tmp_path: Path) -> None:
    run(source, tmp_path)
    runs.clear()
    assert run(source, tmp_path) == expected
    assert runs == []
    path = layer_path(tmp_path / "layers", 1)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert run(source, tmp_path) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_source_of_any_dtype_loses_less_than_by_plain_rounding(dtype: torch.dtype, tmp_path: Path) -> None:
    source = tiny_models.build("llama", tmp_path / "source", dtype=dtype)
    run(source, tmp_path, samples=64)
    tensors = tiny_models.tensors_of(tmp_path / "out")
    assert {str(value.dtype) for value in tensors.values()} == {"torch.int32", "torch.float16"}
    lost, lost_by_rounding = losses(source, tmp_path / "out")
    assert lost < lost_by_rounding


# CPM-Ant puts 32 states of its own before those of the tokens.
@pytest.mark.parametrize("model_type", ["qwen3_moe", "cpmant"])
def test_a_long_block_is_traced_on_its_first_tokens_with_the_same_result(model_type: str, tmp_path: Path) -> None:
    source = tiny_models.build(model_type, tmp_path / "source")
    scaled = []
    for seq_len in (TRACE_TOKENS, 2 * TRACE_TOKENS):
        made = quantize_into(tmp_path / str(seq_len), source, blocks=tiny_models.random_blocks(2, seq_len))
        scaled.append({module.module for module in made.modules if module.ratio is not None})
    assert scaled[0] == scaled[1] != set()
