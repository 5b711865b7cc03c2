"""AutoAWQ 0.2.9 with only its CPU bug fixed: its loading, its search, its packing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bot.checkpoint.config import artifact_config
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.repo_files import carry_small_files
from bot.records import Recipe

with warnings.catch_warnings(record=True):  # a DeprecationWarning on import
    from awq import AutoAWQForCausalLM
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.quantize.quantizer import AwqQuantizer

SETTINGS = {"zero_point": True, "w_bit": 4, "version": "GEMM"}


class FixedAwqQuantizer(AwqQuantizer):  # type: ignore[misc]  # awq has no types
    """Its backup of the weights, {k: v.cpu()}, is not a copy on a CPU. Here it is; nothing else differs."""

    def _compute_best_scale(self, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *args: Any) -> Any:
        state_dict = module2inspect.state_dict
        module2inspect.state_dict = lambda: {key: value.clone() for key, value in state_dict().items()}
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *args)
        finally:
            del module2inspect.state_dict


def load_with_autoawq(source: Path, dtype: torch.dtype) -> Any:
    # float16, its default, is about ten times slower than float32 on a CPU.
    return AutoAWQForCausalLM.from_pretrained(
        str(source), torch_dtype=dtype, trust_remote_code=False, safetensors=True, device_map="cpu"
    )


def quantize_with_autoawq(model: Any, blocks: Tensor, *, group_size: int) -> None:
    model.quantize(
        None,
        quant_config=SETTINGS | {"q_group_size": group_size},
        calib_data=blocks.tolist(),
        max_calib_samples=len(blocks),
        max_calib_seq_len=blocks.shape[1],
        quantizer_cls=FixedAwqQuantizer,
    )


def write_artifact(made: Mapping[str, Tensor], source: Path, folder: Path, *, group_size: int) -> None:
    """made: a model's state, written under the source's names in float16, as our own artifacts are."""
    folder.mkdir(parents=True)
    names = [name for wanted in Checkpoint(source).tensors for name in _stored_as(wanted, made)]
    tensors = {
        name: (made[name].half() if made[name].is_floating_point() else made[name]).cpu().contiguous().clone()
        for name in names
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    carry_small_files(source, folder, trust_remote_code=False)
    config = (source / "config.json").read_bytes()
    (folder / "config.json").write_bytes(
        artifact_config(
            config,
            recipe=Recipe(group_size=group_size),
            modules_to_not_convert=(),
            artifact_dtype="float16",
            trust_remote_code=False,
        )
    )


def pack_with_autoawq(linear: torch.nn.Linear, scales: Tensor, zeros: Tensor) -> Any:
    """scales float16 and zeros [out, in/128] of a linear whose weights lie on those levels."""
    return WQLinear_GEMM.from_linear(
        linear, 4, 128, False, scales=scales.t().contiguous(), zeros=zeros.t().contiguous()
    )


def _stored_as(name: str, made: Mapping[str, Tensor]) -> list[str]:
    if name in made:
        return [name]
    stem = name.removesuffix(".weight")
    return [f"{stem}.{part}" for part in ("qweight", "qzeros", "scales")]
