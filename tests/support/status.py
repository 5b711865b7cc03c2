"""Reports of any size, as the status page shows them; the same number gives the same report."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from bot.records import ModelState, ModelStatus, PublishedRelease, StatusReport

MADE = "2026-11-29T20:50:00Z"
_NAMES = ("Qwen3-4B", "Qwen3-30B-A3B-Instruct-2507", "Llama-3.3-70B-Instruct", "gemma-3-27b-it", "SmolLM2-135M")
_LABS = ("Qwen", "meta-llama", "google", "mistralai", "HuggingFaceTB")
_WHY = {
    ModelState.PUBLISHED: "up to date",
    ModelState.PLANNED: "upstream changed: model-00001-of-00004.safetensors, tokenizer.json and 3 more",
    ModelState.WAITING: "failed twice",
    ModelState.REFUSED: "gated: our token has no access",
    ModelState.HELD: "on hold: waiting for the fixed tokenizer",
    ModelState.PROPOSED: "Qwen3ForCausalLM, 8.2B parameters, created 2026-11-20, 1,204 downloads, apache-2.0",
}


def release(number: int = 0, **fields: Any) -> PublishedRelease:
    """The higher its number, the newer it is."""
    standard: dict[str, Any] = {
        "tag": f"upstream-{number:08x}-{number * 7 + 1:08x}",
        "commit": f"{number:040x}",
        "date": f"{datetime(2026, 1, 5, 8, tzinfo=UTC) + timedelta(days=17 * number):%Y-%m-%dT%H:%M:%SZ}",
        "kind": "release",
        "source_sha": f"{number:08x}" + "0" * 32,
        "kl_mean": 0.0123,
        "top1_agreement": 0.9345,
        "perplexity_source": 16.0,
        "perplexity_quantized": 16.4,
        "bits_per_weight": 4.156,
        "size_bytes": 2_500_000_000,
        "size_source_bytes": 8_000_000_000,
        "bits": 4,
        "group_size": 128,
        "method": "awq+gptq",
        "tool": "awq-bot 0.1.0",
    }
    return PublishedRelease(**standard | fields)


def model(**fields: Any) -> ModelStatus:
    standard: dict[str, Any] = {
        "source": "lab/Tiny",
        "target": "quantized/Tiny-awq",
        "state": ModelState.PUBLISHED,
        "reason": "up to date",
        "releases": (release(),),
    }
    return ModelStatus(**standard | fields)


def report(*models: ModelStatus, **fields: Any) -> StatusReport:
    standard: dict[str, Any] = {"tool": "awq-bot 0.1.0", "made": MADE, "endpoint": "https://huggingface.co"}
    return StatusReport(models=models, **standard | fields)


def many(count: int) -> StatusReport:
    """So many models in all states, some of them with several releases."""
    draw = random.Random(count)
    return report(*(_model(number, draw) for number in range(count)))


def _model(number: int, draw: random.Random) -> ModelStatus:
    states = list(ModelState)
    state = states[number] if number < 3 else draw.choices(states, weights=(60, 8, 8, 10, 6, 8))[0]
    lab, name = _LABS[number % len(_LABS)], f"{_NAMES[number % len(_NAMES)]}{f'-v{number}' if number >= 5 else ''}"
    new = state in (ModelState.REFUSED, ModelState.PROPOSED) or (state is ModelState.PLANNED and number % 2)
    count = 0 if new else draw.randint(2, 9)
    first = draw.randint(0, 8)
    releases = tuple(
        release(
            first + place,
            kl_mean=0.01 + 0.02 * draw.random(),
            top1_agreement=0.9 + 0.05 * draw.random(),
            size_bytes=draw.randint(10**8, 40 * 10**9),
            bits_per_weight=4.1 + 0.3 * draw.random(),
            kind="refresh" if place and draw.random() < 0.2 else "release",
        )
        for place in reversed(range(count))
    )
    return model(
        source=f"{lab}/{name}",
        target=f"quantized/{name}-awq",
        state=state,
        reason=_WHY[state],
        hint="Request access on the Hub with the account of HF_TOKEN." if state is ModelState.REFUSED else "",
        next_attempt="2026-11-30T02:50:00Z" if state is ModelState.WAITING else None,
        issue=number if state is ModelState.WAITING else None,
        issue_url=f"https://github.com/someone/awq-bot/issues/{number}" if state is ModelState.WAITING else "",
        releases=releases,
    )
