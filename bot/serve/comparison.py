"""Does an engine read the artifact as our own evaluation did? Pure, and no torch.

The bounds come from tests/assets/qwen3-tiny in transformers 5.23.0 with gptqmodel 7.6.0, on a CPU, where our
evaluation uses float32. Of 2,044 predicted tokens:

                                           mean    highest   highest margin where the most likely token differs
    as published, in float16               0.0081  0.055     0.023 nats
    loaded in bfloat16                     0.0169  0.090     0.080 nats
    the scales of one linear doubled       0.448   2.9       2.8 nats

vLLM 0.32.0 for CPU differs by 0.0016 nats there, at most 0.0098, and in ties of 0.004 nats.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from math import isfinite
from typing import Final, TypeVar

from bot.errors import QualityGateError
from bot.records import Engine, EngineAnswer, Reference, Scores, Served
from bot.text import one_line

Value = TypeVar("Value")

# bfloat16 is eight times coarser than float16: in larger models, logits of 16 to 32 are steps of 0.125 apart.
MAX_MEAN_NATS: Final = {"float16": 0.05, "bfloat16": 0.10}
# Two such steps: of tokens that are closer, either may come out as the most likely one.
TIE_NATS: Final = 0.25
MIN_AGREEMENT: Final = 0.99

_MAX_NAME: Final = 200  # characters
_TOOLS: Final = ("gptqmodel", "torch", "transformers", "vllm")


def compare(engine: Engine, reference: Reference, answer: EngineAnswer, *, artifact_dtype: str) -> Served:
    """Raises QualityGateError when it does not answer what was asked, or is further off than the bounds."""
    if problem := _shape_problem(reference, answer) or _value_problem(answer):
        raise refused(engine, f"its answer is none: {problem}")
    ours, theirs = _flat(reference.log_probs), _flat(row.log_probs for row in answer.scores)
    differences = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
    served = Served(
        engine=engine.name,
        version=engine.version,
        kernel=one_line(answer.kernel, _MAX_NAME) or "unnamed",
        device=one_line(answer.device, _MAX_NAME),
        tokens=len(differences),
        mean_difference=sum(differences) / len(differences),
        max_difference=max(differences),
        agreement=_agreement(reference, answer),
        new_tokens=sum(map(len, answer.generated)),
        tokens_per_s=answer.tokens_per_s,
        versions={tool: one_line(answer.versions[tool], _MAX_NAME) for tool in _TOOLS if tool in answer.versions},
    )
    reasons = [*beyond(served, artifact_dtype=artifact_dtype), *_not_greedy(answer)]
    if reasons:
        raise refused(engine, "; ".join(reasons))
    return served


def beyond(served: Served, *, artifact_dtype: str) -> list[str]:
    """Why these figures miss the bounds; empty if they do not. NaN misses."""
    most = MAX_MEAN_NATS.get(artifact_dtype, min(MAX_MEAN_NATS.values()))
    reasons = []
    if not all(map(isfinite, (served.max_difference, served.tokens_per_s))):
        reasons.append("its figures are not finite")
    if not served.mean_difference <= most:
        reasons.append(
            f"log-probabilities of {served.tokens:,} tokens differ from our evaluation's by "
            f"{served.mean_difference:.4g} nats on average, at most {served.max_difference:.4g}; "
            f"allowed is {most:g} on average"
        )
    if not served.agreement >= MIN_AGREEMENT:
        reasons.append(
            f"it finds another token most likely than our evaluation at {100 * (1 - served.agreement):.3g} % of "
            f"the positions that are no tie; allowed is {100 * (1 - MIN_AGREEMENT):.3g} %"
        )
    return reasons


def refused(engine: Engine, reason: str) -> QualityGateError:
    hint = "Nothing is published. Load the files with this engine by hand, or take the engine out of `serve`."
    return QualityGateError(f"served with {engine}: {reason}", hint=hint)


def _shape_problem(reference: Reference, answer: EngineAnswer) -> str:
    if len(answer.scores) != len(reference.blocks):
        return f"scores of {len(answer.scores)} blocks, not {len(reference.blocks)}"
    if not len(answer.generated) == len(answer.generated_scores) == len(reference.prompts):
        return f"text after {len(answer.generated)} prompts, not {len(reference.prompts)}"
    if not all(answer.generated):
        return "it generated no token"
    sequences = [
        *zip(reference.blocks, answer.scores, strict=True),
        *zip(
            ((*prompt, *new) for prompt, new in zip(reference.prompts, answer.generated, strict=True)),
            answer.generated_scores,
            strict=True,
        ),
    ]
    for tokens, scores in sequences:
        for values in (scores.log_probs, scores.likeliest, scores.likeliest_log_probs):
            if len(values) != len(tokens) - 1:
                return f"{len(values)} values for {len(tokens)} tokens"
    return ""


def _value_problem(answer: EngineAnswer) -> str:
    rows = (*answer.scores, *answer.generated_scores)
    values = [*_flat(row.log_probs for row in rows), *_flat(row.likeliest_log_probs for row in rows)]
    odd = next((value for value in (*values, answer.tokens_per_s) if not isfinite(value)), None)
    return "" if odd is None else f"{odd} is not a finite number"


def _agreement(reference: Reference, answer: EngineAnswer) -> float:
    ours, margins = _flat(reference.likeliest), _flat(reference.margins)
    theirs = _flat(row.likeliest for row in answer.scores)
    clear = [one == other for one, other, margin in zip(ours, theirs, margins, strict=True) if margin > TIE_NATS]
    return sum(clear) / len(clear) if clear else 1.0


def _not_greedy(answer: EngineAnswer) -> list[str]:
    """Token by token, with its cache, it must write what it finds most likely when it reads all in one pass."""
    for number, (new, scores) in enumerate(zip(answer.generated, answer.generated_scores, strict=True), start=1):
        steps = enumerate(_gaps(scores)[-len(new) :], start=1)
        if off := next(((step, gap) for step, gap in steps if gap > TIE_NATS), None):
            return [
                f"token {off[0]} that it wrote after prompt {number} is {off[1]:.3g} nats less likely than "
                "another, when it reads both in one pass"
            ]
    return []


def _gaps(scores: Scores) -> list[float]:
    pairs = zip(scores.likeliest_log_probs, scores.log_probs, strict=True)
    return [likeliest - written for likeliest, written in pairs]


def _flat(rows: Iterable[Iterable[Value]]) -> list[Value]:
    return list(chain.from_iterable(rows))
