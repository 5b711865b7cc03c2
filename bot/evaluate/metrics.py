"""Perplexity, KL divergence and top-1 agreement, source against artifact as read back from disk.

Plain rounding of the source is measured beside the artifact, for comparison.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from bot.checkpoint.constants import LOGITS_AT_ONCE, tool_versions
from bot.checkpoint.device import enough_memory
from bot.checkpoint.inventory import bits_per_weight, bits_per_weight_file
from bot.checkpoint.skeleton import Skeleton, unused_tensors
from bot.errors import QuantizationError
from bot.evaluate.models import (
    LARGER_MACHINE,
    FinalStates,
    open_models,
    round_linears,
    run_layers,
    size_bytes,
)
from bot.records import EvaluationText, Progress, Report, SourceFigures

_MAX_BLOCKS_AT_A_TIME: Final = 8
_POSITIONS: Final = 16  # equal parts of a block


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFigures:
    """One number per predicted token, [predictions], on the CPU. kl and nll in nats, float32; agrees: bool.

    kl_rounding: of plain rounding, where that was measured.
    """

    kl: Tensor
    nll_source: Tensor
    nll_quantized: Tensor
    agrees: Tensor
    kl_rounding: Tensor | None = None


def evaluate(
    source: Path,
    quantized: Path,
    *,
    tokens: Tensor,
    text_label: str,
    texts: Sequence[EvaluationText] = (),
    trust_remote_code: bool,
    progress: Progress,
    device: str | None = None,
    on_artifact: Callable[[FinalStates], None] | None = None,
) -> Report:
    """Compare the artifact with its source on tokens that calibration did not use: int64 [blocks, seq_len].

    texts: whose blocks these are, if the figures of each are wanted too. on_artifact: called once its layers have
    run on all tokens.

    Plain rounding is measured on the same tokens, in the artifact's format. One layer of one model is in memory at
    a time, in float32 on a CPU, and the states of two models. device: None for CUDA where it is available. Raises
    QuantizationError when the artifact's tensors do not match the source's, or logits are not finite;
    UpstreamError or UnsupportedModelError when the source cannot be loaded, EnvironmentProblem when the
    device is full.
    """
    started = time.monotonic()
    models = open_models(source, quantized, trust_remote_code=trust_remote_code, device=device)
    source_weights, artifact = models.source_weights, models.artifact_weights
    uncounted = unused_tensors(models.source.origins, source_weights.tensors)
    rounding = partial(round_linears, skeleton=models.source, artifact=artifact.tensors)
    with enough_memory(models.device, source, to="measure", hint=LARGER_MACHINE):
        figures = compare(
            models.source,
            models.artifact,
            tokens,
            rounding=rounding,
            device=models.device,
            progress=progress,
            on_artifact=on_artifact,
        )
    return Report(
        perplexity_source=perplexity(figures.nll_source),
        perplexity_quantized=perplexity(figures.nll_quantized),
        kl_mean=float(figures.kl.double().mean()),
        kl_p99=percentile(figures.kl, 0.99),
        top1_agreement=float(figures.agrees.double().mean()),
        bits_per_weight=bits_per_weight(artifact.tensors),
        bits_per_weight_file=bits_per_weight_file(source_weights.tensors, artifact.tensors, uncounted),
        size_source_bytes=size_bytes(source_weights),
        size_quantized_bytes=size_bytes(artifact),
        tokens=tokens.numel(),
        predictions=figures.kl.numel(),
        sources=tuple(_figures_of(figures, texts, tokens)),
        kl_mean_rounding=_mean(figures.kl_rounding),
        seq_len=tokens.shape[1],
        text_label=text_label,
        text_sha256=_sha256(tokens),
        versions=tool_versions(),
        duration_s=time.monotonic() - started,
    )


def _figures_of(figures: TokenFigures, texts: Sequence[EvaluationText], tokens: Tensor) -> Iterator[SourceFigures]:
    """Of each text."""
    blocks, predictions = 0, tokens.shape[1] - 1
    for text in texts:
        rows = tokens[blocks : blocks + text.blocks]
        part = slice(blocks * predictions, (blocks + text.blocks) * predictions)
        blocks += text.blocks
        yield SourceFigures(
            label=text.label,
            predictions=text.blocks * predictions,
            perplexity_source=perplexity(figures.nll_source[part]),
            perplexity_quantized=perplexity(figures.nll_quantized[part]),
            kl_mean=float(figures.kl[part].double().mean()),
            top1_agreement=float(figures.agrees[part].double().mean()),
            documents_left_out=text.documents_left_out,
            kl_mean_rounding=None if figures.kl_rounding is None else _mean(figures.kl_rounding[part]),
            kl_by_position=_by_position(figures.kl[part].view(text.blocks, predictions)),
            sha256=_sha256(rows),
        )


def _by_position(values: Tensor) -> tuple[float, ...]:
    """Means over equal parts of the positions; values: [blocks, predictions]."""
    parts = values.double().mean(dim=0).tensor_split(min(_POSITIONS, values.shape[1]))
    return tuple(float(part.mean()) for part in parts)


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else float(values.double().mean())


def _sha256(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()


@torch.no_grad()
def compare(
    source: Skeleton,
    artifact: Skeleton,
    tokens: Tensor,
    *,
    device: torch.device,
    progress: Progress,
    rounding: Callable[[nn.Module, int], None] | None = None,
    on_artifact: Callable[[FinalStates], None] | None = None,
) -> TokenFigures:
    """Run the models on the same blocks. Logits are computed a few blocks at a time, and not kept.

    rounding: makes of a layer of the source that of plain rounding, which is compared too. on_artifact: see
    evaluate.
    """
    batches = _batches(tokens, source.model.config.get_text_config().vocab_size)
    others = 1 if rounding is None else 2
    total = (1 + others) * len(source.layers) + others * len(batches)
    steps = count(1)

    def step() -> None:
        progress("evaluate", next(steps), total, "steps")

    run = partial(run_layers, tokens=tokens, device=device, step=step)
    reference = run(source)
    states = run(artifact)
    if on_artifact is not None:
        on_artifact(states)
    figures = _figures_by_token(reference, states, "artifact", batches, step)
    del states
    if rounding is None:
        return figures
    # After the artifact, so that no states of a third model are held: the source's logits are computed again.
    try:
        rounded = _figures_by_token(reference, run(source, change=rounding), "plain rounding", batches, step)
    except QuantizationError:
        # Without scaling, a weight may be too large for the format. That is no fault of the artifact.
        progress("evaluate", total, total, "steps")
        return figures
    return replace(figures, kl_rounding=rounded.kl)


def _figures_by_token(
    source: FinalStates, other: FinalStates, what: str, batches: Sequence[slice], step: Callable[[], None]
) -> TokenFigures:
    """what: the other model is."""
    parts: list[TokenFigures] = []
    for batch in batches:
        source_logits, logits = _logits(source, batch, "source model"), _logits(other, batch, what)
        parts += [
            token_figures(source_logits[row, :-1], logits[row, :-1], block[1:].to(source.device))
            for row, block in enumerate(source.tokens[batch])
        ]
        step()
    return TokenFigures(
        kl=torch.cat([part.kl for part in parts]),
        nll_source=torch.cat([part.nll_source for part in parts]),
        nll_quantized=torch.cat([part.nll_quantized for part in parts]),
        agrees=torch.cat([part.agrees for part in parts]),
    )


def token_figures(source_logits: Tensor, quantized_logits: Tensor, targets: Tensor) -> TokenFigures:
    """logits: any float dtype, [predictions, vocab]; targets: int64 [predictions], the next tokens."""
    log_p = source_logits.float().log_softmax(dim=-1)
    log_q = quantized_logits.float().log_softmax(dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    chosen = targets.unsqueeze(-1)
    return TokenFigures(
        # A KL divergence is never negative; its float32 sum may be, by about 1e-7.
        kl=kl.clamp_min(0).cpu(),
        nll_source=-log_p.gather(-1, chosen).squeeze(-1).cpu(),
        nll_quantized=-log_q.gather(-1, chosen).squeeze(-1).cpu(),
        agrees=(log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).cpu(),
    )


def perplexity(nll: Tensor) -> float:
    """exp of the mean negative log-likelihood in nats; infinite where that overflows."""
    return float(nll.double().mean().exp())


def percentile(values: Tensor, share: float) -> float:
    """Interpolated linearly between neighbours, as numpy.quantile does; share: 0 to 1."""
    ordered = values.double().sort().values
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def _batches(tokens: Tensor, vocabulary: int) -> tuple[slice, ...]:
    blocks = min(max(LOGITS_AT_ONCE // (tokens.shape[1] * vocabulary), 1), _MAX_BLOCKS_AT_A_TIME)
    return tuple(slice(start, start + blocks) for start in range(0, len(tokens), blocks))


def _logits(model: FinalStates, batch: slice, what: str) -> Tensor:
    logits = model.logits(batch)
    if not bool(torch.isfinite(logits).all()):
        raise QuantizationError(
            f"{what}: logits are not finite in blocks {batch.start} to {batch.start + len(logits) - 1}",
            hint="Weights or activations leave the range of the dtype; or more than the last layer is read.",
        )
    return logits
