"""Quantizes a tiny model of each family and writes bot/watch/support_table.json: what works, or why not.

    python -m tests.support.canary              all types, each in a separate process (some minutes)
    python -m tests.support.canary --only qwen3 one type, as JSON on stdout

To be run on purpose when a version changes; the table is committed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bot.checkpoint.constants import tool_versions
from bot.errors import BotError
from bot.quantize.artifact import quantize
from bot.records import Progress, QuantizedModel, Recipe, no_progress
from tests.support import tiny_models
from tests.support.stock_awq import AWQ_CAUSAL_LM_MODEL_MAP, TRANSFORMERS_AUTO_MAPPING_DICT

TABLE = Path(__file__).parents[2] / "bot" / "watch" / "support_table.json"
GROUP_SIZE = 128
# A correct artifact loses less than plain rounding; one with a wrong scaling loses a multiple of it.
TOLERATED = 1.1


def quantize_into(
    folder: Path,
    source: Path,
    *,
    blocks: Tensor,
    recipe: Recipe = Recipe(group_size=GROUP_SIZE),  # noqa: B008 - it is frozen
    progress: Progress = no_progress,
) -> QuantizedModel:
    """Quantize source into folder / "out"."""
    return quantize(
        source,
        folder / "out",
        layers=folder / "layers",
        recipe=recipe,
        blocks=blocks,
        calibration=tiny_models.calibration_set(blocks),
        trust_remote_code=False,
        progress=progress,
    )


def canary(model_type: str, folder: Path, **settings: Any) -> str | None:
    """Quantize a tiny model of this type in folder. None when the artifact is right, else the reason why not."""
    source = tiny_models.build(model_type, folder / "source", **settings)
    try:
        quantize_into(folder, source, blocks=tiny_models.random_blocks(8, 64))
    except BotError as error:
        return error.message.replace(f"{source}: ", "").removeprefix("layer 0: ")
    lost, lost_by_rounding = losses(source, folder / "out")
    if not lost <= TOLERATED * lost_by_rounding:
        return f"the artifact loses {lost / lost_by_rounding:.1f} times what plain rounding loses"
    return None


def losses(source: Path, out: Path) -> tuple[float, float]:
    """How far the logits of the artifact, and of plain rounding of the same linears, are from the source's."""
    tokens = tiny_models.random_blocks(4, 64, seed=1)
    expected = tiny_models.logits_of(source, tokens)
    packed = tiny_models.packed_linears(out)
    plain = {
        name: tiny_models.rounded(value, GROUP_SIZE) if name.removesuffix(".weight") in packed else value
        for name, value in tiny_models.tensors_of(source).items()
    }
    lost = tiny_models.logits_of(source, tokens, weights=tiny_models.dequantized(out)) - expected
    lost_by_rounding = tiny_models.logits_of(source, tokens, weights=plain) - expected
    return float(lost.norm()), float(lost_by_rounding.norm())


def reason_without_trying(model_type: str) -> str | None:
    """Why a type that AutoAWQ knows cannot even be tried, from the two libraries' own tables."""
    if TRANSFORMERS_AUTO_MAPPING_DICT[model_type] != "AutoModelForCausalLM":
        return "it is not a causal language model of text alone"
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"transformers {transformers.__version__} has no causal language model of this type"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", metavar="TYPE", choices=sorted(tiny_models.CONFIGS))
    parser.add_argument("--with", dest="settings", metavar="JSON", type=json.loads, default={})
    arguments = parser.parse_args()
    if arguments.only:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(canary(arguments.only, Path(folder), **arguments.settings)))
        return
    types = {name: reason_without_trying(name) or _tried(name, {}) for name in sorted(AWQ_CAUSAL_LM_MODEL_MAP)}
    variants = [
        {"model_type": name, "when": when, "reason": reason}
        for name, when in tiny_models.VARIANTS
        if types[name] is None and (reason := _tried(name, when))
    ]
    versions = {name: version for name, version in tool_versions().items() if name in {"autoawq", "transformers"}}
    unknown = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(types))
    table = {"versions": versions, "types": types, "variants": variants, "unknown_to_autoawq": unknown}
    TABLE.write_text(json.dumps(table, indent=2) + "\n")


def _tried(model_type: str, settings: dict[str, object]) -> str | None:
    """In a separate process, so that a type may crash and leaves nothing behind for the next."""
    command = [sys.executable, "-m", "tests.support.canary", "--only", model_type, "--with", json.dumps(settings)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    reason: str | None = (done.stderr.strip().splitlines() or ["it crashed"])[-1]
    if done.returncode == 0:
        reason = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{model_type} {settings or ''}: {reason or 'ok'}", file=sys.stderr)
    return reason


if __name__ == "__main__":
    main()
