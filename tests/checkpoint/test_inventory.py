from typing import Any

import pytest

from bot.checkpoint.header import main_dtype
from bot.checkpoint.inventory import check_inventory
from bot.errors import QuantizationError
from bot.records import TensorInfo


def tensors(*rows: tuple[str, str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name=name, dtype=dtype, shape=shape) for name, dtype, shape in rows}


SOURCE = tensors(
    ("embed.weight", "BF16", (100, 128)),
    ("layers.0.up.weight", "BF16", (64, 128)),
    ("layers.0.up.bias", "BF16", (64,)),
    ("layers.0.router.weight", "BF16", (4, 128)),
    ("layers.0.router.bias", "F32", (4,)),
    ("layers.0.ids", "I64", (4,)),
)
ARTIFACT = tensors(
    ("embed.weight", "F16", (100, 128)),
    ("layers.0.up.qweight", "I32", (128, 8)),
    ("layers.0.up.qzeros", "I32", (1, 8)),
    ("layers.0.up.scales", "F16", (1, 64)),
    ("layers.0.up.bias", "F16", (64,)),
    ("layers.0.router.weight", "F16", (4, 128)),
    ("layers.0.router.bias", "F32", (4,)),
    ("layers.0.ids", "I64", (4,)),
)


def test_a_complete_artifact_passes() -> None:
    for quantized in (None, {"layers.0.up"}):
        check_inventory(SOURCE, ARTIFACT, artifact_dtype="F16", group_size=128, quantized=quantized)


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("embed.weight", None, "embed.weight is missing"),
        ("layers.0.up.qzeros", None, "layers.0.up.qzeros is missing"),
        ("layers.0.up.bias", None, "layers.0.up.bias is missing"),
        ("lm_head.weight", ("F16", (100, 128)), "lm_head.weight is extra"),
        ("layers.0.act.scales", ("F16", (64,)), "layers.0.act.scales is extra"),
        ("layers.0.up.weight", ("F16", (64, 128)), "layers.0.up.weight is extra"),
        ("embed.weight", ("BF16", (100, 128)), "embed.weight is BF16"),
        ("layers.0.router.bias", ("F16", (4,)), "router.bias is F16"),
        ("embed.weight", ("F16", (128, 100)), r"\[128, 100\] instead of F16 \[100, 128\]"),
        ("layers.0.up.scales", ("BF16", (1, 64)), "up.scales is BF16"),
        ("layers.0.up.qweight", ("I32", (64, 16)), "up.qweight is I32"),
    ],
)
def test_a_tensor_that_does_not_match_is_named(name: str, changed: tuple[str, Any] | None, problem: str) -> None:
    others = {key: info for key, info in ARTIFACT.items() if key != name}
    artifact = others | (tensors((name, *changed)) if changed else {})
    with pytest.raises(QuantizationError, match=problem):
        check_inventory(SOURCE, artifact, artifact_dtype="F16", group_size=128)


def test_the_linears_that_must_be_packed_are_packed_and_no_other() -> None:
    with pytest.raises(QuantizationError, match=r"layers\.0\.router is not quantized; layers\.0\.up is quantized"):
        check_inventory(SOURCE, ARTIFACT, artifact_dtype="F16", group_size=128, quantized={"layers.0.router"})


def test_a_long_list_is_cut() -> None:
    source = tensors(*[(f"t{i}", "F16", (1,)) for i in range(20)])
    with pytest.raises(QuantizationError, match="t7 is missing and 12 more"):
        check_inventory(source, {}, artifact_dtype="F16", group_size=128)


def test_source_has_the_dtype_of_most_values() -> None:
    assert main_dtype(tensors(("a", "BF16", (100, 10)), ("b", "F32", (900,)), ("c", "I64", (10**6,)))) == "BF16"
