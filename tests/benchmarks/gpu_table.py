"""What the steps of `make gpu-check` come to: minutes for whole models, and one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bot.records import Calibration, Evaluation
from bot.watch.sizing import estimate
from tests.support.factories import details, entry, layer_tensors
from tests.support.watch import QWEN3_4B, QWEN3_30B_A3B, chosen, moe_tensors

Figures = dict[str, Any]

QWEN3_8B = QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
QWEN3_32B = QWEN3_8B | {
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
}
LLAMA_70B = QWEN3_32B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "vocab_size": 128_256,
}
# By the step whose layers are like theirs.
MODELS = {
    "4B": (QWEN3_4B, "dense"),
    "8B": (QWEN3_8B, "dense"),
    "32B": (QWEN3_32B, "dense"),
    "70B": (LLAMA_70B, "dense"),
    "30B-A3B": (QWEN3_30B_A3B, "mixture"),
}
CALIBRATION = Calibration(samples=128, seq_len=512)
WITHIN = 0.15  # of the memory that the plan says


def projected(steps: Mapping[str, Figures]) -> dict[str, Figures]:
    """Minutes to quantize whole models, from seconds for each layer and what sizing.py counts for both.

    by_operations: time grows as floating-point operations do; by_channels: as input channels do, for each of which
    the rounding starts some kernels. Hashing, and writing the artifact, are in neither. plan: what the plan says,
    for the smallest class of card.
    """
    found = {}
    for name, (config, step) in MODELS.items():
        measured = steps.get(step, {})
        if "seconds_per_layer" in measured:
            needs, channels = _counted(config)
            minutes = measured["seconds_per_layer"] * measured["layers"] / 60
            found[name] = {
                "by_operations": minutes * needs["operations"] / measured["plan_operations"],
                "by_channels": minutes * channels / measured["channels"],
                "plan": needs["duration_s"] / 60,
            }
    return found


def _counted(config: dict[str, Any]) -> tuple[dict[str, float], int]:
    """Of quantizing alone: the plan's operations and seconds; and the input channels of all linears."""
    tensors = moe_tensors(config) if "num_experts" in config else layer_tensors(config)
    packed = chosen(tensors, config)
    asked = entry(calibration=CALIBRATION, evaluation=Evaluation(tokens=0))
    needs = estimate(details(config=config, tensors=tensors), packed, asked, download_bytes=0)
    counted = {"operations": needs.float_operations, "duration_s": needs.duration_s}
    return counted, sum(linear.shape[1] for linear in packed.packed)


def table(found: Figures) -> str:
    """All that was measured, as a table for people."""
    steps = found["steps"]
    rows = [("step", "seconds", "")]
    rows += [(name, f"{each['step_s']:.0f}", "; ".join(_said(name, each, steps))) for name, each in steps.items()]
    for name, minutes in found["projected"].items():
        said = (
            f"{minutes['by_operations']:.1f} min by operations, {minutes['by_channels']:.1f} by channels; "
            f"{minutes['plan']:.1f} in the plan"
        )
        rows.append((f"{name} would take", "", said))
    heading = ["TINY SHAPES: these figures say nothing about a GPU"] if found["tiny"] else []
    return "\n".join([*heading, *_lines(rows)])


def _lines(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, seconds, said in rows:
        yield f"{name:<{widths[0]}}  {seconds:>{widths[1]}}  {said}".rstrip()


def _said(name: str, step: Figures, steps: Mapping[str, Figures]) -> Iterator[str]:
    if "error" in step:
        yield f"FAILED: {step['error']}"
    elif "result" in step:
        yield step["result"]
    elif "bfloat16_flops" in step:
        yield step.get("gpu", "CPU")
        yield f"{step['bfloat16_flops'] / 1e12:.3g} TFLOP/s bfloat16, {step['float32_flops'] / 1e12:.3g} float32"
        yield f"{step['kernel_s'] * 1e6:.1f} µs for a small kernel"
    elif "bytes" in step:
        yield f"{step['bytes'] / 1e9:.2f} GB"
    else:
        yield from _of_method(name, step, steps)


def _of_method(name: str, step: Figures, steps: Mapping[str, Figures]) -> Iterator[str]:
    yield f"{step['seconds_per_layer']:.2f} s a layer, {step['seconds']:.1f} s in all"
    if "operations_per_s" in step and "bfloat16_flops" in steps.get("rates", {}):
        yield f"{step['operations_per_s'] / steps['rates']['bfloat16_flops']:.1%} of the matrix rate"
    yield f"KL {step['kl']:.4g}, top-1 {step['top1']:.1%}"
    if "vram_bytes" in step:
        yield f"{step['vram_bytes'] / 1e9:.2f} GB on the card"
    if "vram_of_plan" in step:
        outside = abs(step["vram_of_plan"] - 1) > WITHIN
        yield f"{step['vram_of_plan']:.2f} of the plan's{', MORE THAN 15 % OFF' if outside else ''}"
    ours = steps.get(name.removesuffix("-autoawq"), {})
    if ours is not step and "seconds" in ours:
        yield f"ours {step['seconds'] / ours['seconds']:.1f} times as fast"
        yield f"{ours['kl'] / step['kl']:.3g} of its KL"
