"""Whether the artifact has every tensor of the source, as it is or packed, and no others; and bits per weight."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import prod

from bot.checkpoint.constants import FLOATS, PACKED_PARTS, PER_INT32
from bot.checkpoint.header import kept_float32, size_bytes
from bot.errors import QuantizationError
from bot.records import TensorInfo

Inventory = Mapping[str, TensorInfo]
_NAMED = 8  # names in one message


def check_inventory(
    source: Inventory,
    artifact: Inventory,
    *,
    artifact_dtype: str,
    group_size: int,
    quantized: Collection[str] | None = None,
    unused: Collection[str] = frozenset(),
) -> None:
    """Compare names, shapes and dtypes of two checkpoints.

    artifact_dtype: F16 or BF16, of the floats that are neither packed nor kept_float32. quantized: exactly the
    linears that must be packed, such as `model.layers.0.mlp.up_proj`; None: not checked. unused: tensors that the
    model does not read, which stay as they are. A tied lm_head is in the artifact exactly if it is in the source.
    Raises QuantizationError that lists the differences.
    """
    packed = {name.removesuffix(".qweight") for name in artifact if name.endswith(".qweight")}
    expected = dict(_expected(source, packed, artifact_dtype, group_size)) | {
        name: source[name] for name in unused
    }
    problems = [f"{name} is missing" for name in expected if name not in artifact]
    problems += [f"{name} is extra" for name in artifact if name not in expected]
    problems += [
        f"{name} is {_shown(artifact[name])} instead of {_shown(wanted)}"
        for name, wanted in expected.items()
        if name in artifact and artifact[name] != wanted
    ]
    if quantized is not None:
        problems += [f"{name} is not quantized" for name in sorted(set(quantized) - packed)]
        problems += [f"{name} is quantized" for name in sorted(packed - set(quantized))]
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise QuantizationError(
            f"the artifact does not match its source: {'; '.join(problems[:_NAMED])}{more}",
            hint="Nothing was published. Does the architecture differ from what its model_type says?",
        )


def quantized_linears(tensors: Inventory) -> tuple[str, ...]:
    """Names such as `model.layers.0.mlp.up_proj`, sorted."""
    return tuple(sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")))


def bits_per_weight(artifact: Inventory) -> float:
    """Bits of integers, scales and zeros together, per weight of the quantized linears; NaN if there are none."""
    linears = quantized_linears(artifact)
    bits = 8 * sum(size_bytes(artifact[f"{linear}.{part}"]) for linear in linears for part in PACKED_PARTS)
    # Each int32 of qweight holds eight weights.
    weights = sum(PER_INT32 * prod(artifact[f"{linear}.qweight"].shape) for linear in linears)
    return bits / weights if weights else float("nan")


def bits_per_weight_file(source: Inventory, artifact: Inventory, uncounted: Collection[str]) -> float:
    """All tensor bits of the artifact per parameter of the source.

    uncounted: the source's tensors that the model does not read, such as the second one of two that are tied.
    """
    parameters = sum(prod(info.shape) for name, info in source.items() if name not in uncounted)
    return 8 * sum(size_bytes(info) for info in artifact.values()) / parameters


def packed_tensors(linear: str, shape: tuple[int, ...], group_size: int) -> tuple[TensorInfo, ...]:
    """The tensors of a quantized linear; shape: of its weight, [out, in]."""
    out, columns = shape
    groups = columns // group_size
    return (
        TensorInfo(name=f"{linear}.qweight", dtype="I32", shape=(columns, out // PER_INT32)),
        TensorInfo(name=f"{linear}.qzeros", dtype="I32", shape=(groups, out // PER_INT32)),
        TensorInfo(name=f"{linear}.scales", dtype="F16", shape=(groups, out)),
    )


def _expected(
    source: Inventory, packed: Collection[str], artifact_dtype: str, group_size: int
) -> Iterator[tuple[str, TensorInfo]]:
    kept = kept_float32(source)
    for name, info in source.items():
        linear = name.removesuffix(".weight")
        if linear != name and linear in packed and len(info.shape) == 2:
            yield from ((tensor.name, tensor) for tensor in packed_tensors(linear, info.shape, group_size))
        else:
            dtype = artifact_dtype if info.dtype in FLOATS and name not in kept else info.dtype
            yield name, TensorInfo(name=name, dtype=dtype, shape=info.shape)


def _shown(info: TensorInfo) -> str:
    return f"{info.dtype} {list(info.shape)}"
