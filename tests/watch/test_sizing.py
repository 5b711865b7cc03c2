"""Sizes estimated from shapes, against figures computed on their own."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from bot.records import Calibration, Estimate, Evaluation, Recipe, TensorInfo
from bot.records.config import Method
from bot.watch.layers import Chosen, layers_from_headers
from bot.watch.sizing import (
    RUNNER_VRAM_GB,
    calibration_warnings,
    estimate,
    gpu_class,
    legal_tensor_parallel,
    output_bytes,
)
from tests.support.factories import CONFIG, details, entry, layer_tensors, needs
from tests.support.watch import QWEN3_4B, QWEN3_30B_A3B, chosen, moe_tensors


def packed(out: int, columns: int, group_size: int) -> int:
    """Bytes of one linear in the GEMM layout: qweight, qzeros (int32) and scales (float16)."""
    groups = columns // group_size
    shapes = {(columns, out // 8): 4, (groups, out // 8): 4, (groups, out): 2}
    return sum(math.prod(shape) * size for shape, size in shapes.items())


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name=name, dtype="BF16", shape=shape)


def test_qwen3_4b_comes_out_as_measured() -> None:
    tensors = layer_tensors(QWEN3_4B)
    size = output_bytes(tensors, chosen(tensors, QWEN3_4B).packed, Recipe())
    assert f"{size / 2**30:.2f} GiB" == "2.48 GiB"
    embeddings = 2 * 151_936 * 2560
    linears = size - embeddings
    assert f"{linears / 1e9:.3f} GB" == "1.888 GB"
    assert f"{embeddings / 1e9:.3f} GB" == "0.778 GB"


@pytest.mark.parametrize(
    ("method", "vram", "duration_s"),
    [
        # 7 x 0.202 GB of layer, 5 x 9,728^2 x 4 bytes, 4,096 tokens x 44,032 values and 65,536 tokens x 30,208
        # values x 2 bytes, 2 GiB
        # 60 s + 19 s forward + 151 s in float32 + 192 s to start kernels + 15.7 s to evaluate; in float32 a layer
        # takes 24 x 4.53e11 + 3 x tokens x 1.44e8 + 2.86e12
        ("awq+gptq", 9.773e9, 438),
        # 2 x 0.202 GB of layer, 65,536 tokens x 34,304 values x 2 bytes, 2 GiB; 60 s + 31 x 9.5 s + 15.7 s
        ("awq", 7.047e9, 371),
    ],
)
def test_what_qwen3_4b_takes_as_computed_by_hand(method: Method, vram: float, duration_s: float) -> None:
    tensors = layer_tensors(QWEN3_4B)
    found = estimate(
        details(config=QWEN3_4B, tensors=tensors),
        chosen(tensors, QWEN3_4B),
        entry(calibration=Calibration(), recipe=Recipe(method=method)),
        download_bytes=8_061_000_000,
    )
    assert f"{found.parameters / 1e9:.2f}" == "4.02"
    assert found.download_bytes == 8_061_000_000
    assert gpu_class(found) == 16
    assert found.vram_bytes == pytest.approx(vram, rel=0.005)
    assert found.duration_s == pytest.approx(duration_s, rel=0.005)
    # Two layers, twice the embeddings, the hidden states of 65,536 tokens twice, 2 GiB.
    assert found.ram_bytes == pytest.approx(4.778e9, rel=0.005)
    # 1.1 x (the source, twice the artifact of 2.666 GB, the hidden states four times)
    assert found.disk_bytes == pytest.approx(16.21e9, rel=0.005)
    assert (found.quantized_share, found.experts) == (1.0, 0)


def test_what_a_mixture_takes_as_computed_by_hand() -> None:
    tensors = moe_tensors(QWEN3_30B_A3B)
    found = estimate(
        details(config=QWEN3_30B_A3B, tensors=tensors),
        chosen(tensors, QWEN3_30B_A3B),
        entry(calibration=Calibration()),
        download_bytes=61_000_000_000,
    )
    assert f"{found.parameters / 1e9:.2f}" == "30.53"
    assert (found.experts, found.experts_per_token) == (128, 8)
    assert found.quantized_share == 1.0  # routers are not counted
    # 7 x (38 MB of attention and 9.4 MB of one expert), 3 x 1.20 GB of the others, 5 x 4,096^2 x 4 bytes, 4,096
    # tokens x 20,480 values and 65,536 x 20,480 x 2 bytes, 2 GiB.
    assert found.vram_bytes == pytest.approx(9.265e9, rel=0.005)
    # Two layers of 1.246 GB, twice 1.245 GB of embeddings, the hidden states of 65,536 tokens three times, 2 GiB.
    assert found.ram_bytes == pytest.approx(7.934e9, rel=0.005)
    # 29.91 billion weights at 4.156 bits, 0.635 billion at 16.
    assert found.output_bytes == pytest.approx(16.80e9, rel=0.005)
    # Half of what is left after 60 s is starting kernels: 20 for each of the linears' input channels, at 10 us.
    kernels_s = 20e-5 * 48 * (128 * (2 * 2048 + 768) + 3 * 2048 + 4096)
    assert 0.5 < kernels_s / (found.duration_s - 60) < 1


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (Calibration(), ()),
        (
            Calibration(samples=16, seq_len=64),
            ("seen 1,024 times; below 4,096", "128 experts sees about 64 tokens"),
        ),
        (Calibration(samples=16, seq_len=255), ("seen 4,080 times", "sees about 255 tokens; below 256")),
        (Calibration(samples=16, seq_len=256), ()),
    ],
)
def test_too_little_text_is_warned_about(calibration: Calibration, words: tuple[str, ...]) -> None:
    found = calibration_warnings(QWEN3_30B_A3B, chosen(moe_tensors(QWEN3_30B_A3B), QWEN3_30B_A3B), calibration)
    assert len(found) == len(words)
    assert all(word in warning for word, warning in zip(words, found, strict=True))


def test_depth_takes_disk_and_time_but_no_memory() -> None:
    shallow, deep = (
        estimate(
            details(config=config, tensors=layer_tensors(config)),
            chosen(layer_tensors(config), config),
            entry(),
            download_bytes=1_000_000,
        )
        for config in (QWEN3_4B | {"num_hidden_layers": count} for count in (4, 36))
    )
    assert (shallow.vram_bytes, shallow.ram_bytes) == (deep.vram_bytes, deep.ram_bytes)
    assert shallow.disk_bytes < deep.disk_bytes
    assert shallow.duration_s < deep.duration_s


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("out", "columns"), [(256, 768), (1024, 2560), (9728, 2560)])
def test_a_linear_takes_what_the_gemm_layout_takes(out: int, columns: int, group_size: int) -> None:
    tensors = (tensor("model.layers.0.mlp.up_proj.weight", out, columns), tensor("lm_head.weight", 100, 64))
    recipe = Recipe(group_size=group_size)
    assert output_bytes(tensors, tensors[:1], recipe) == packed(out, columns, group_size) + 2 * 100 * 64


@pytest.mark.parametrize("method", ["awq+gptq", "awq"])
def test_more_calibration_never_takes_less(method: Method) -> None:
    def needed(samples: int, seq_len: int) -> Estimate:
        asked = entry(
            calibration=Calibration(samples=samples, seq_len=seq_len),
            evaluation=Evaluation(tokens=4096),
            recipe=Recipe(method=method),
        )
        return estimate(details(), chosen(layer_tensors(), CONFIG), asked, download_bytes=1000)

    grown = [needed(16, 256), needed(17, 256), needed(128, 256), needed(128, 512), needed(4096, 32_768)]
    for less, more in pairwise(grown):
        assert (less.vram_bytes <= more.vram_bytes, less.output_bytes == more.output_bytes) == (True, True)
        for name in ("ram_bytes", "disk_bytes", "duration_s"):
            assert getattr(less, name) < getattr(more, name), name
    # AutoAWQ keeps all activations of a layer, the other search a part of them.
    assert (grown[0].vram_bytes < grown[-1].vram_bytes) == (method == "awq")


def test_more_evaluation_takes_more_time_for_three_models_and_memory_for_two() -> None:
    few, many = (
        estimate(
            details(),
            chosen(layer_tensors(), CONFIG),
            entry(calibration=Calibration(samples=16, seq_len=256), evaluation=Evaluation(tokens=tokens)),
            download_bytes=1000,
        )
        for tokens in (8192, 16_384)
    )
    assert many.ram_bytes - few.ram_bytes == 2 * 2 * 8192 * CONFIG["hidden_size"]
    assert many.float_operations - few.float_operations == 3 * 2 * 8192 * few.parameters
    assert many.disk_bytes == few.disk_bytes


@pytest.mark.parametrize(("vocabulary", "logits"), [(2048, 1 << 25), (262_144, 512 * 262_144)])
def test_logits_of_a_block_are_compared_together_however_large_the_vocabulary(
    vocabulary: int, logits: int
) -> None:
    config = CONFIG | {"vocab_size": vocabulary}
    tensors = layer_tensors(config)
    found = estimate(details(config=config, tensors=tensors), chosen(tensors, config), entry(), download_bytes=1)
    outside = 2 * (vocabulary * CONFIG["hidden_size"] + CONFIG["hidden_size"])
    assert found.vram_bytes == 2 * outside + 4 * 6 * logits + 2 * 2**30


@pytest.mark.parametrize(
    ("gigabytes", "fits"), [(1, 16), (16, 16), (16.1, 24), (40, 48), (80, 80), (141, 141), (141.1, None)]
)
def test_a_job_gets_the_smallest_class_of_card_that_fits(gigabytes: float, fits: int | None) -> None:
    assert gpu_class(needs(vram_bytes=int(gigabytes * 10**9))) == fits


# As nvidia-smi reports it of a T4, an L4, an L40S, an A100 and an H200.
CARD_MEBIBYTES = (15_360, 23_034, 46_068, 81_920, 143_771)


@pytest.mark.parametrize(("gigabytes", "mebibytes"), list(zip(RUNNER_VRAM_GB, CARD_MEBIBYTES, strict=True)))
def test_a_job_that_fills_its_class_fits_a_card_of_it(gigabytes: int, mebibytes: int) -> None:
    full = needs(vram_bytes=gigabytes * 10**9)
    assert gpu_class(full) == gigabytes
    assert full.vram_bytes < mebibytes * 2**20


@pytest.mark.parametrize("size", [-1, 0, "256", None, 2.5, 10**12, [1]])
def test_nonsense_in_a_config_does_not_stop_the_plan(size: object) -> None:
    odd = details(config=CONFIG | {"hidden_size": size, "intermediate_size": size})
    assert estimate(odd, chosen(layer_tensors(), CONFIG), entry(), download_bytes=1).vram_bytes > 0
    nothing = Chosen(layers=layers_from_headers(odd.config, ()), packed=(), share=0.0)
    without_tensors = estimate(replace(odd, tensors=()), nothing, entry(), download_bytes=1)
    assert (without_tensors.parameters, without_tensors.output_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("change", "group_size", "sizes"),
    [
        ({}, 128, (1, 2, 4)),  # 9728 / 8 = 1216 is no multiple of 128
        ({}, 64, (1, 2, 4, 8)),
        ({"intermediate_size": 8192}, 128, (1, 2, 4, 8, 16)),
        ({"intermediate_size": 8192, "num_attention_heads": 12}, 128, (1, 2, 4)),
        ({"intermediate_size": 8192, "num_key_value_heads": 1}, 128, (1, 2, 4, 8, 16)),
        ({"intermediate_size": 8192, "num_key_value_heads": 6}, 128, (1, 2)),
        ({"hidden_size": None}, 128, (1,)),
        ({"num_attention_heads": "32"}, 128, (1,)),
    ],
)
def test_tensor_parallel_sizes_split_heads_groups_and_int32s(
    change: dict[str, Any], group_size: int, sizes: tuple[int, ...]
) -> None:
    sound = {key: value for key, value in change.items() if isinstance(value, int)}
    found = chosen(layer_tensors(QWEN3_4B | sound), QWEN3_4B | sound, Recipe(group_size=group_size))
    assert legal_tensor_parallel(QWEN3_4B | change, found.packed, Recipe(group_size=group_size)) == sizes


@pytest.mark.parametrize(
    ("inner", "group_size", "sizes"),
    [
        (768, 128, (1, 2)),
        (768, 64, (1, 2, 4)),
        (768, 32, (1, 2, 4, 8)),
        (1024, 128, (1, 2, 4, 8)),
        (2048, 128, (1, 2, 4, 8, 16)),
    ],
)
def test_tensor_parallel_sizes_split_experts_too(inner: int, group_size: int, sizes: tuple[int, ...]) -> None:
    config = QWEN3_30B_A3B | {"moe_intermediate_size": inner, "num_hidden_layers": 1}
    recipe = Recipe(group_size=group_size)
    assert legal_tensor_parallel(config, chosen(moe_tensors(config), config, recipe).packed, recipe) == sizes
    # A multimodal model has the same settings one level down.
    nested = {"model_type": "a_vl_model", "text_config": config}
    assert legal_tensor_parallel(nested, chosen(moe_tensors(config), config, recipe).packed, recipe) == sizes
