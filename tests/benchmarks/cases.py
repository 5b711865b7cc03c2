"""What is quantized: the two trained models, and random ones of other shapes, each with its calibration tokens."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import save_file

from bot.calibration.blocks import build_calibration_set
from bot.records import Calibration

ASSETS = Path(__file__).parents[1] / "assets"
TRAINED = ("qwen3-tiny", "llama-tiny")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """name: a model of tests/assets, or what a random one is called.

    experts: of a mixture in each layer, `intermediate` wide, of which a token passes through experts_per_token.
    """

    name: str
    samples: int
    seq_len: int
    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    dtype: Literal["float16", "bfloat16"] = "float16"
    experts: int = 0
    experts_per_token: int = 0

    @property
    def trained(self) -> bool:
        return self.name in TRAINED

    @property
    def tokenizer(self) -> str:
        """Whose it has; a random model's is that of a trained one."""
        return self.name if self.trained else TRAINED[0]


ASSET_CASES = tuple(Case(name=name, samples=128, seq_len=512) for name in TRAINED)
WIDE = Case(name="wide", samples=16, seq_len=512, hidden=1024, intermediate=3072, layers=2)
DEEP = tuple(Case(name=f"deep-{layers}", samples=1, seq_len=128, layers=layers) for layers in (8, 32, 128))
GPU = Case(name="gpu", samples=128, seq_len=512, hidden=4096, intermediate=12288, layers=4, dtype="bfloat16")
GPU_MIXTURE = Case(
    name="gpu-mixture",
    samples=128,
    seq_len=512,
    hidden=2048,
    intermediate=768,
    layers=2,
    dtype="bfloat16",
    experts=64,
    experts_per_token=8,
)
TINY = Case(name="tiny", samples=2, seq_len=64, hidden=128, intermediate=128, layers=1)
TINY_MIXTURE = replace(TINY, name="tiny-mixture", experts=4, experts_per_token=2)


def model_folder(case: Case, work: Path, *, device: str = "cpu") -> Path:
    """Where the case's model lies; a random one is made first, on this device."""
    if case.trained:
        return ASSETS / case.name
    folder = work / case.name
    if not folder.exists():
        torch.manual_seed(0)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(_config(case), dtype=getattr(torch, case.dtype))
        model.cpu().save_pretrained(folder)
        for path in (ASSETS / case.tokenizer).glob("*token*"):
            shutil.copy(path, folder)
    return folder


def _config(case: Case) -> Any:
    sizes = {
        "vocab_size": 2048,
        "hidden_size": case.hidden,
        "intermediate_size": case.intermediate,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.hidden // 64,
        "num_key_value_heads": case.hidden // 128,
        "head_dim": 64,
        "max_position_embeddings": 1024,
    }
    if not case.experts:
        return transformers.Qwen3Config(**sizes)
    return transformers.Qwen3MoeConfig(
        **sizes,
        moe_intermediate_size=case.intermediate,
        num_experts=case.experts,
        num_experts_per_tok=case.experts_per_token,
    )


def write_tokens(case: Case, source: Path, path: Path, *, seed: int) -> str:
    """The calibration blocks, int64 [samples, seq_len], in a file of their own; their sha256."""
    # Fewer blocks than a calibration may have are the first of so many.
    asked = Calibration(samples=max(case.samples, 16), seq_len=case.seq_len, seed=seed)
    blocks, _ = build_calibration_set(asked, tokenizer_folder=source, folder=Path(), trust_remote_code=False)
    blocks = blocks[: case.samples].contiguous()
    save_file({"blocks": blocks}, path)
    return hashlib.sha256(blocks.numpy().tobytes()).hexdigest()
