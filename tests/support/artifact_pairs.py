"""Tiny models with random weights, and artifacts of them that are packed here, independently of the bot."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.tiny_models import dequantized, tensors_of

GROUP_SIZE = 32
VOCABULARY = 160
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    # Wide enough that the model has opinions, and rounding changes them.
    "initializer_range": 0.3,
    "max_position_embeddings": 128,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": SMALL | {"tie_word_embeddings": True},
    "llama": SMALL | {"tie_word_embeddings": False},
    "qwen2": {key: value for key, value in SMALL.items() if key != "head_dim"} | {"tie_word_embeddings": True},
}
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Pair:
    """source and quantized: as evaluate() gets them. restored: the artifact as an ordinary model folder."""

    source: Path
    quantized: Path
    restored: Path


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def make_pair(model_type: str, folder: Path) -> Pair:
    """A model of MODELS with random weights, and its artifact."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **MODELS[model_type])
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder / "source")
    return quantized_pair(folder / "source", folder)


def quantized_pair(source: Path, folder: Path) -> Pair:
    """The artifact of any float16 model folder, by plain rounding."""
    pair = Pair(source, folder / "quantized", folder / "restored")
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True, "version": "gemm"}
    for path in (pair.quantized, pair.restored):
        path.mkdir()
        shutil.copy(source / "config.json", path)
    change_config(pair.quantized, lambda config: config.update(quantization_config=settings))
    save_file(_quantized(tensors_of(source)), pair.quantized / "model.safetensors", metadata={"format": "pt"})
    restored = {name: tensor.contiguous() for name, tensor in dequantized(pair.quantized).items()}
    save_file(restored, pair.restored / "model.safetensors", metadata={"format": "pt"})
    return pair


def _quantized(tensors: Tensors) -> Tensors:
    packed = {name: tensor for name, tensor in tensors.items() if not name.endswith("proj.weight")}
    for name in tensors.keys() - packed.keys():
        q, scales, zeros = _round(tensors[name].float().numpy())
        linear = name.removesuffix(".weight")
        packed[f"{linear}.qweight"] = torch.from_numpy(_pack(q.T))
        packed[f"{linear}.qzeros"] = torch.from_numpy(_pack(zeros.T))
        packed[f"{linear}.scales"] = torch.from_numpy(scales.T.copy())
    return packed


def _round(weight: Any) -> tuple[Any, Any, Any]:
    """Plain rounding: integers [out, in], float16 scales and integer zeros [out, in/g]."""
    groups = weight.reshape(len(weight), -1, GROUP_SIZE)
    low, high = groups.min(axis=2), groups.max(axis=2)
    scales = ((high - low) / 15).astype(np.float16)
    zeros = np.clip(np.round(-low / scales), 0, 15).astype(np.int64)
    q = np.clip(np.round(groups / scales[..., None]) + zeros[..., None], 0, 15)
    return q.reshape(weight.shape).astype(np.int64), scales, zeros


def _pack(integers: Any) -> Any:
    """[rows, out] -> int32 [rows, out/8], by the letter of the layout: nibble i holds column 8c + ORDER[i]."""
    packed = np.zeros((integers.shape[0], integers.shape[1] // 8), dtype=np.int64)
    for nibble, column in enumerate(ORDER):
        packed |= integers[:, column::8] << (4 * nibble)
    return packed.astype(np.uint32).view(np.int32)
