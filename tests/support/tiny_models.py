"""Tiny random models of each family, with outlier channels, and an independent reader of AWQ folders.

python -m tests.support.tiny_models --check            build and run every type, some minutes
python -m tests.support.tiny_models --check TYPE...    only these types
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from bot.records import CalibrationSet
from tests.support.tiny_configs import NOT_TRIED, VISION_LANGUAGE, VOCABULARY, merged, tiny_settings

GQA = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = SIZES | GQA
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}
MOE = LLAMA | {"moe_intermediate_size": 128, "first_k_dense_replace": 0}
MLA = {"q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64}

# One configuration for each type that both AutoAWQ and transformers know.
CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 256, "n_layer": 2, "n_head": 4},
    "cohere": LLAMA,
    "deepseek_v2": MOE | MLA | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "deepseek_v3": MOE | MLA | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "falcon": {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "alibi": False,
    },
    "gemma": LLAMA | {"head_dim": 64},
    "gemma2": LLAMA | {"head_dim": 64, "sliding_window": 32},
    "gpt_bigcode": GPT2 | {"n_inner": 512},
    "gpt_neox": SIZES | {"num_attention_heads": 4},
    "gptj": GPT2 | {"n_inner": 512, "rotary_dim": 32},
    "llama": LLAMA,
    "minicpm3": LLAMA | MLA,
    "mistral": LLAMA | {"head_dim": 64, "sliding_window": 32},
    "mixtral": LLAMA | {"num_local_experts": 4},
    "mpt": {
        "vocab_size": VOCABULARY,
        "d_model": 256,
        "n_layers": 2,
        "n_heads": 4,
        "max_seq_len": 256,
        "expansion_ratio": 2,
    },
    "opt": SIZES | {"num_attention_heads": 4, "ffn_dim": 512, "word_embed_proj_dim": 256},
    "phi3": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 64, "tie_word_embeddings": True},
    "qwen3_moe": LLAMA
    | {"head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
    "stablelm": LLAMA,
    "starcoder2": LLAMA,
}

# Settings that change how a type's layers are put together; what the tables of AutoAWQ assume may then be wrong.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("falcon", {"new_decoder_architecture": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("opt", {"activation_function": "gelu"}),
    ("opt", {"do_layer_norm_before": False}),
    ("phi3", {"num_key_value_heads": 4}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
    ("stablelm", {"qk_layernorm": True}),
    ("stablelm", {"use_parallel_residual": True}),
    ("starcoder2", {"use_bias": False}),
)


ALL_TYPES = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) | frozenset(VISION_LANGUAGE)


def build(model_type: str, folder: Path, *, dtype: torch.dtype = torch.float16, **changes: Any) -> Path:
    """Save a random model of this type into folder, as a repo holds it."""
    torch.manual_seed(0)
    settings = CONFIGS[model_type] if model_type in CONFIGS else tiny_settings(model_type)
    config = transformers.AutoConfig.for_model(model_type, **merged(settings, changes))
    auto = transformers.AutoModelForCausalLM
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        auto = transformers.AutoModelForImageTextToText
    with _uninitialized_as_nan():
        model = auto.from_config(config)
    _initialize_rest(model)
    _make_outliers(model)
    for parameter in model.parameters():  # not the buffers, which may be complex
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> nn.Module:
    """The float32 model of the class that config.json names."""
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model: nn.Module = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32)
    return model


def random_blocks(samples: int, seq_len: int, *, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (samples, seq_len), generator=torch.Generator().manual_seed(seed))


def calibration_set(blocks: Tensor) -> CalibrationSet:
    samples, seq_len = blocks.shape
    return CalibrationSet(
        samples=samples, seq_len=seq_len, seed=0, sha256="0" * 64, sources=(), distinct_token_share=1.0
    )


@torch.no_grad()
def logits_of(folder: Path, tokens: Tensor, *, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """float32 logits of the model in folder, or of other weights under the same names in its place."""
    with tempfile.TemporaryDirectory() as other:
        if weights is not None:
            shutil.copy(folder / "config.json", other)
            contiguous = {name: value.contiguous() for name, value in weights.items()}
            save_file(contiguous, Path(other) / "model.safetensors", metadata={"format": "pt"})
        model = load(folder if weights is None else Path(other))
    logits: Tensor = model.eval()(tokens).logits
    return logits


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weight files, as the safetensors library reads them."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def packed_linears(folder: Path) -> set[str]:
    return {name.removesuffix(".qweight") for name in tensors_of(folder) if name.endswith(".qweight")}


def dequantized(folder: Path) -> dict[str, Tensor]:
    """Every tensor of an AWQ folder, the packed ones as float32 weights: from the layout's description only."""
    group_size = json.loads((folder / "config.json").read_text())["quantization_config"]["group_size"]
    tensors = tensors_of(folder)
    for stem in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        q = _columns(tensors.pop(f"{stem}.qweight"))
        zeros = _columns(tensors.pop(f"{stem}.qzeros")).repeat_interleave(group_size, dim=0)
        scales = tensors.pop(f"{stem}.scales").float().repeat_interleave(group_size, dim=0)
        tensors[f"{stem}.weight"] = ((q - zeros) * scales).t()
    return tensors


def rounded(weight: Tensor, group_size: int) -> Tensor:
    """Plain rounding of weight [out, in] with exact scales, written down independently."""
    groups = weight.float().view(len(weight), -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 15
    zero = (-low / scale).round().clamp(0, 15)
    return (((groups / scale).round() + zero).clamp(0, 15) - zero).mul(scale).view(weight.shape)


def _columns(packed: Tensor) -> Tensor:
    """int32 [rows, out/8] -> the integers [rows, out]: nibble i is column [0, 2, 4, 6, 1, 3, 5, 7][i]."""
    columns = torch.empty(packed.shape[0], packed.shape[1], 8)
    for i, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        columns[:, :, column] = ((packed >> (4 * i)) & 15).float()
    return columns.reshape(packed.shape[0], -1)


@torch.no_grad()
def _make_outliers(model: nn.Module) -> None:
    """Norms with channels of very different size, as trained models have them; a wrong scaling then shows."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):
            # Gemma's norms multiply by 1 + weight.
            offset = 1 if parameter.abs().max() == 0 else 0
            parameter.copy_(torch.exp(torch.randn_like(parameter)) - offset)
        elif parameter.dim() == 1:
            parameter.add_(0.02 * torch.randn_like(parameter))


@contextmanager
def _uninitialized_as_nan() -> Iterator[None]:
    """torch.empty fills with NaN, so that parameters that no rule of transformers initializes can be found."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@torch.no_grad()
def _initialize_rest(model: nn.Module) -> None:
    """Random numbers where transformers leaves none, such as routers that begin at zero."""
    for parameter in model.parameters():
        if parameter.isnan().any():
            parameter.normal_(0, 0.02)
        elif parameter.dim() > 1 and parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.add_(0.02 * torch.randn_like(parameter))


def check(model_type: str, folder: Path) -> str:
    """Build a model of this type, read it back and run it. Its size, and whether it reads later tokens."""
    model = load(build(model_type, folder)).eval()
    tokens = random_blocks(2, 64)
    changed = tokens.clone()
    changed[:, 32] = (changed[:, 32] + 1) % VOCABULARY
    with torch.no_grad():
        logits: Tensor = model(tokens).logits
        moved = (model(changed).logits - logits).abs().amax(dim=(0, 2))
    if not logits.isfinite().all():
        raise ValueError("a logit is not finite")
    if not moved[32:].any():
        raise ValueError("the logits do not depend on the tokens")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size_bytes = sum(file.stat().st_size for file in folder.iterdir())
    looks_ahead = moved[:32].max() > 1e-5 * moved.max()
    return f"{parameters:,} parameters, {size_bytes / 1e6:.1f} MB{', not causal' if looks_ahead else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", metavar="TYPE", nargs="*", required=True)
    types = parser.parse_args().check
    if len(types) == 1:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print(check(types[0], Path(folder)))
        return
    for model_type in types or sorted(ALL_TYPES):
        start = time.monotonic()
        outcome = f"not tried, {NOT_TRIED[model_type]}" if model_type in NOT_TRIED else _checked(model_type)
        print(f"{model_type}: {outcome}, {time.monotonic() - start:.1f} s", flush=True)


def _checked(model_type: str) -> str:
    """In a separate process, so that a type may crash."""
    command = [sys.executable, "-m", "tests.support.tiny_models", "--check", model_type]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return f"ok, {done.stdout.strip().splitlines()[-1]}"
    return f"FAILED, {(done.stderr.strip().splitlines() or ['it crashed'])[-1]}"


if __name__ == "__main__":
    main()
