"""Tries a tiny model of every type, and writes down what works in two files, which are committed:

bot/watch/support_table.json: for planning without torch; see bot/watch/layers.py
bot/watch/architectures.md:   for people

    make architectures                                          all types, some minutes
    python -m tests.support.architectures --only qwen3 gemma3   these types, as JSON lines on stdout

To be run on purpose when a version or the quantizer changes. Results are kept in build/canaries, so a run that was
cut short goes on from there; --again starts over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bot.records import Recipe, canonical_json, from_json
from bot.watch.layers import TABLE, ModelType, Variant
from tests.support.canary import Outcome, canary
from tests.support.tiny_configs import NOT_TRIED, VISION_LANGUAGE
from tests.support.tiny_models import ALL_TYPES, VARIANTS

PAGE = TABLE.with_name("architectures.md")
RESULTS = Path(__file__).parents[2] / "build" / "canaries"
WORKS = "yes"
TOGETHER = 12  # types that one process tries, so that it is worth importing torch


def try_types(names: Sequence[str], *, processes: int, again: bool) -> dict[str, Outcome]:
    """The outcomes by name, which is a type's, or a type's and its settings as JSON."""
    if again:
        shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    waiting = [name for name in names if not _result_path(name).exists()]
    parts = [waiting[start : start + TOGETHER] for start in range(0, len(waiting), TOGETHER)]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(_try_part, parts))
    return {name: from_json(Outcome, _result_path(name).read_bytes()) for name in names}


def _try_part(names: list[str]) -> None:
    """In a separate process, so that a type may crash; those after it are then tried in another one."""
    while names:
        command = [sys.executable, "-m", "tests.support.architectures", "--only", *names]
        done = subprocess.run(
            command, cwd=RESULTS.parents[1], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
        lines = done.stdout.splitlines()
        for name, line in zip(names, lines, strict=False):
            _result_path(name).write_bytes(line)
        if len(lines) < len(names):
            crashed = Outcome(type=ModelType(reason=f"it crashed with code {done.returncode}"))
            _result_path(names[len(lines)]).write_bytes(canonical_json(crashed))
        for name in names[: len(lines) + 1]:
            reason = from_json(Outcome, _result_path(name).read_bytes()).type.reason
            print(f"{name}: {reason or 'ok'}", file=sys.stderr, flush=True)
        names = names[len(lines) + 1 :]


def _result_path(name: str) -> Path:
    return RESULTS / (name.translate(str.maketrans(' {}":,', "______")) + ".json")


def _print_outcomes(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        model_type, _, settings = name.partition(" ")
        with tempfile.TemporaryDirectory() as folder:
            outcome = canary(model_type, Path(folder), **json.loads(settings or "{}"))
        sys.stdout.write(canonical_json(outcome).decode() + "\n")
        sys.stdout.flush()


def table(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Each type without the fields that have their default values."""
    types = {}
    for name in sorted(name for name in ALL_TYPES if name in outcomes or name in NOT_TRIED):
        found = outcomes[name].type if name in outcomes else ModelType(reason=f"not tried: {NOT_TRIED[name]}")
        variants = [
            Variant(when=when, reason=reason)
            for other, when in VARIANTS
            if other == name and (reason := outcomes[_variant_name(other, when)].type.reason)
        ]
        types[name] = _without_defaults(replace(found, variants=tuple(variants)))
    return {transformers.__version__: types}


def _one_line_each(types: Mapping[str, Any]) -> str:
    """The table as JSON, a type to a line, so that a change can be read."""
    ((version, named),) = types.items()
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(item)}" for name, item in named.items())
    return f"{{{json.dumps(version)}: {{\n{lines}\n}}}}\n"


def _without_defaults(item: ModelType) -> dict[str, Any]:
    default = ModelType()
    named: dict[str, Any] = json.loads(canonical_json(item))
    return {
        field.name: named[field.name]
        for field in fields(ModelType)
        if getattr(item, field.name) != getattr(default, field.name)
    }


def _variant_name(model_type: str, when: Mapping[str, Any]) -> str:
    return f"{model_type} {json.dumps(when)}"


def page(outcomes: Mapping[str, Outcome]) -> str:
    """architectures.md."""
    text = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    images = sorted(VISION_LANGUAGE)
    errors = [outcome.error for outcome in outcomes.values() if outcome.error]
    worst = max((outcome.worst for outcome in outcomes.values()), default=0.0)
    lines = [
        "# Model types",
        "",
        f"A tiny random model of each type that transformers {transformers.__version__} knows was quantized, "
        "written, read back and compared with its source. `make architectures` writes this page.",
        "",
        "quantized: the share of the weights in the decoder layers. scaled: linears whose input channels are "
        "scaled as in AWQ; the others are only rounded. error: of a linear's outputs on the calibration tokens, "
        "divided by that of plain rounding, in the median and for the worst linear; "
        f"{median(errors or [0.0]):.2f} in the median over types, never above {worst:.2f}. lost: how far the "
        "logits on other tokens are from the source's, divided by the same of plain rounding; random models "
        "cannot rank methods.",
        "",
    ]
    for title, names in (("Causal language models", text), ("Vision-language models", images)):
        works = sum(_verdict(name, outcomes) == WORKS for name in names)
        lines += [
            f"## {title}: {works} of {len(names)} types",
            "",
            "| `model_type` | layers | quantized | scaled | not scaled | experts | error | lost | verdict |",
            "|---|---|---:|---|---|---|---|---:|---|",
            *(_row(name, outcomes) for name in names),
            "",
        ]
    return "\n".join(lines)


def _row(name: str, outcomes: Mapping[str, Outcome]) -> str:
    outcome = outcomes.get(name, Outcome(type=ModelType()))
    found = outcome.type
    experts = "" if not outcome.experts else "stored together" if found.fused else "stored one by one"
    cells = (
        f"`{name}`",
        f"`{found.layers}`" if found.layers else "",
        f"{outcome.share:.0%}" if outcome.share else "",
        ", ".join(outcome.scaled),
        ", ".join(outcome.unscaled),
        experts,
        f"{outcome.error:.2f}, {outcome.worst:.2f}" if outcome.error else "",
        f"{outcome.lost:.2f}" if outcome.lost else "",
        _verdict(name, outcomes).replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


def _verdict(name: str, outcomes: Mapping[str, Outcome]) -> str:
    if name not in outcomes:
        return f"not tried: {NOT_TRIED.get(name, 'left out of this run')}"
    outcome = outcomes[name]
    if outcome.type.reason is None and 1 - outcome.share > Recipe().max_unquantized_share:
        return "too much of it cannot be packed, unless the recipe allows it"
    return outcome.type.reason or WORKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("types", nargs="*", help="write down these alone; all types without any")
    parser.add_argument("--only", metavar="TYPE", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    if arguments.only:
        _print_outcomes(arguments.only)
        return
    types = arguments.types or sorted(ALL_TYPES)
    names = [
        *(name for name in types if name not in NOT_TRIED),
        *(_variant_name(*variant) for variant in VARIANTS if variant[0] in types),
    ]
    outcomes = try_types(names, processes=arguments.processes, again=arguments.again)
    TABLE.write_text(_one_line_each(table(outcomes)))
    PAGE.write_text(page(outcomes))


if __name__ == "__main__":
    main()
