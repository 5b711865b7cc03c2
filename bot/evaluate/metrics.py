"""Perplexity, KL divergence and top-1 agreement, source against artifact as read back from disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bot.checkpoint.constants import LOGITS_AT_ONCE, tool_versions
from bot.checkpoint.inventory import bits_per_weight, bits_per_weight_file, main_dtype
from bot.checkpoint.reader import TORCH_DTYPES, Checkpoint
from bot.checkpoint.skeleton import Skeleton, open_skeleton, unused_tensors
from bot.errors import QuantizationError
from bot.evaluate.models import (
    FinalStates,
    open_artifact,
    read_dequantized,
    readable_names,
    run_layers,
    size_bytes,
)
from bot.records import EvaluationText, Progress, Report, SourceFigures

_MAX_BLOCKS_AT_A_TIME: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFigures:
    """One number per predicted token, [predictions], on the CPU. kl and nll in nats, float32; agrees: bool."""

    kl: Tensor
    nll_source: Tensor
    nll_quantized: Tensor
    agrees: Tensor


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
) -> Report:
    """Compare the artifact with its source on tokens that calibration did not use: int64 [blocks, seq_len].

    texts: whose blocks these are, if the figures of each are wanted too.

    One layer of one model is in memory at a time, in float32 on a CPU. device: None for CUDA where it is
    available. Raises QuantizationError when the artifact's tensors do not match the source's, or logits are not
    finite; UpstreamError or UnsupportedModelError when the source cannot be loaded.
    """
    started = time.monotonic()
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source_weights = Checkpoint(source)
    # Half precision is slow on a CPU.
    dtype = torch.float32 if target.type == "cpu" else TORCH_DTYPES[main_dtype(source_weights.tensors)]
    skeleton = partial(
        open_skeleton,
        source,
        source_weights.tensors,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        # Also for the artifact: what the source ties is tied there.
        equal=source_weights.equal,
    )
    source_skeleton = skeleton(read=source_weights.read)
    artifact = open_artifact(quantized, source_skeleton, source_weights.tensors)
    artifact_skeleton = skeleton(read=partial(read_dequantized, artifact), stored=readable_names(artifact))
    uncounted = unused_tensors(source_skeleton.origins, source_weights.tensors)
    figures = compare(source_skeleton, artifact_skeleton, tokens, device=target, progress=progress)
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
        sources=tuple(_figures_of(figures, texts, predictions=tokens.shape[1] - 1)),
        text_label=text_label,
        text_sha256=hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest(),
        versions=tool_versions(),
        duration_s=time.monotonic() - started,
    )


def _figures_of(
    figures: TokenFigures, texts: Sequence[EvaluationText], *, predictions: int
) -> Iterator[SourceFigures]:
    """Of each text. predictions: in a block."""
    end = 0
    for text in texts:
        part = slice(end, end := end + text.blocks * predictions)
        yield SourceFigures(
            label=text.label,
            predictions=text.blocks * predictions,
            perplexity_source=perplexity(figures.nll_source[part]),
            perplexity_quantized=perplexity(figures.nll_quantized[part]),
            kl_mean=float(figures.kl[part].double().mean()),
            top1_agreement=float(figures.agrees[part].double().mean()),
            documents_left_out=text.documents_left_out,
        )


@torch.no_grad()
def compare(
    source: Skeleton, artifact: Skeleton, tokens: Tensor, *, device: torch.device, progress: Progress
) -> TokenFigures:
    """Run both models on the same blocks. Logits are computed a few blocks at a time, and not kept."""
    batches = _batches(tokens, source.model.config.get_text_config().vocab_size)
    total = 2 * len(source.layers) + len(batches)
    steps = count(1)

    def step() -> None:
        progress("evaluate", next(steps), total, "steps")

    finals = [run_layers(skeleton, tokens, device=device, step=step) for skeleton in (source, artifact)]
    parts: list[TokenFigures] = []
    for batch in batches:
        source_logits = _logits(finals[0], batch, "source model")
        artifact_logits = _logits(finals[1], batch, "artifact")
        parts += [
            token_figures(source_logits[row, :-1], artifact_logits[row, :-1], block[1:].to(device))
            for row, block in enumerate(tokens[batch])
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
