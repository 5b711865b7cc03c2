"""A model with random weights that takes a second to quantize, for tests that do not ask how well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save

from bot.localhub import LocalHub
from bot.localhub.store import Content
from tests.support import factories
from tests.support.sandbox import ASSETS, Sandbox

SOURCE, TARGET = "lab/small", "quantized/small-awq"
WEIGHTS = "model.safetensors"
CARD = "---\nlicense: mit\n---\nA small model.\n"
CONFIG: dict[str, Any] = factories.CONFIG | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "torch_dtype": "float16",
    "max_position_embeddings": 4096,
}
# Nobody knows what random weights lose, so the gate takes whatever it is.
WATCHLIST = """\
publish_to: quantized
defaults:
  calibration: {samples: 16, seq_len: 64, sources: [{builtin: stdlib}]}
  gate: {max_kl: 100, min_top1: 0, max_perplexity_ratio: 100}
models:
  - lab/small
"""
_WORDS = Path(factories.__file__).read_text().split()


def small_model(**changed: Content) -> dict[str, Content]:
    """A repo; a changed path is written with `__` for `.`."""
    carried = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    standard: dict[str, Content] = {
        "README.md": CARD,
        "config.json": json.dumps(CONFIG),
        WEIGHTS: save(small_weights(CONFIG)),
    }
    carried_files: dict[str, Content] = {name: ASSETS / "qwen3-tiny" / name for name in carried}
    return standard | carried_files | {path.replace("__", "."): content for path, content in changed.items()}


def small_weights(config: dict[str, Any] = CONFIG) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        info.name: (np.ones(info.shape) if len(info.shape) == 1 else random.normal(0, 0.05, info.shape)).astype(
            "f2"
        )
        for info in factories.layer_tensors(config)
    }


def build_small_sandbox(root: Path) -> Sandbox:
    """Its Hub is not started yet."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "watchlist.yaml").write_text(WATCHLIST)
    sandbox = Sandbox(LocalHub(root / "hub"), root)
    sandbox.hub.seed(SOURCE, small_model())
    return sandbox


def prepare_once(root: Path, build: Callable[[Path], Sandbox] = build_small_sandbox) -> Sandbox:
    """A sandbox whose job is done but for publishing. Its Hub is at rest. Made for the first who asks."""
    done = root / "done"
    if done.exists():
        return Sandbox(LocalHub(root / "sandbox" / "hub"), root / "sandbox")
    sandbox = build(root / "sandbox")
    with sandbox.hub:
        result = sandbox.call("run", "--dry-run")
    assert result.returncode == 0, result.stderr
    done.touch()
    return sandbox


def sentence(number: int) -> str:
    """Forty words, the same for the same number."""
    return " ".join(Random(number).choices(_WORDS, k=40))


def conversations() -> bytes:
    """jsonl of forty short conversations."""
    rows = [
        {"messages": [{"role": "user", "content": sentence(n)}, {"role": "assistant", "content": sentence(-n)}]}
        for n in range(1000, 1040)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
