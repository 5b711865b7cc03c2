"""Artifacts and their losses, kept by the hash of all that they depend on, so that nothing is made twice.

They are in $XDG_CACHE_HOME/awq-bot/bench: a run that was cut short goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from inspect import getsource
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bot.calibration.blocks import tokens_sha256
from bot.checkpoint import gemm
from bot.checkpoint.constants import tool_versions
from bot.checkpoint.inventory import bits_per_weight
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import Skeleton, open_skeleton
from bot.evaluate.metrics import perplexity, token_figures
from bot.evaluate.models import FinalStates, open_artifact, read_dequantized, readable_names, run_layers
from bot.files import cache_folder, file_sha256, locked, write_atomic
from bot.records import canonical_json, sha256_of
from tests.benchmarks.methods import ROUNDING, Method, code_of, make
from tests.benchmarks.run import Run
from tests.benchmarks.texts import Text

_CPU = torch.device("cpu")
# What decides a figure. The code that runs the models may change, as long as test_peers.py finds the same figures.
_DEFINITIONS = (token_figures, perplexity, gemm.dequantize)
_BLOCKS_AT_ONCE = 2  # whose logits are compared


@dataclass(frozen=True)
class Model:
    """A source to quantize. states: after its last layer, by the sha256 of the text; kept in memory."""

    name: str
    folder: Path
    group_size: int

    @cached_property
    def sha256(self) -> str:
        return sha256_of([file_sha256(path) for path in sorted(self.folder.glob("*.safetensors"))])

    @cached_property
    def weights(self) -> Checkpoint:
        return Checkpoint(self.folder)

    @cached_property
    def source(self) -> Skeleton:
        return self.skeleton(read=self.weights.read)

    @cached_property
    def states(self) -> dict[str, FinalStates]:
        return {}

    def skeleton(self, **reading: Any) -> Skeleton:
        return open_skeleton(
            self.folder,
            self.weights.tensors,
            dtype=torch.float32,
            trust_remote_code=False,
            equal=self.weights.equal,
            **reading,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """text: what the name of the calibration text is; blocks: int64 [samples, seq_len]."""

    model: Model
    text: str
    blocks: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """On one text, as a Report has it."""

    text: str
    kl: float
    top1: float
    perplexity: float
    perplexity_source: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """method: its name; calibration: the name of the text, of which rounding uses nothing."""

    model: str
    method: str
    calibration: str
    versions: dict[str, str]
    bits_per_weight: float
    run: Run
    losses: tuple[Loss, ...] = ()

    @property
    def kl(self) -> dict[str, float]:
        return {loss.text: loss.kl for loss in self.losses}


def is_kept(method: Method, calibrated: Calibrated) -> bool:
    return (place(method, calibrated) / "run.json").exists()


def quantized(method: Method, calibrated: Calibrated) -> Path:
    """The folder with `artifact` and `run.json`. Raises CannotRunError."""
    folder = place(method, calibrated)
    with locked(folder.with_suffix(".lock"), make_parents=True):
        if not is_kept(method, calibrated):
            _make(method, calibrated, folder)
    return folder


def _make(method: Method, calibrated: Calibrated, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens = folder / "tokens.safetensors"
    save_file({"blocks": calibrated.blocks}, tokens)
    model = calibrated.model
    run, versions = make(method, model.folder.absolute(), tokens, folder, group_size=model.group_size)
    write_atomic(folder / "run.json", canonical_json({"run": asdict(run), "versions": versions}))


def measured(method: Method, calibrated: Calibrated, texts: tuple[Text, ...]) -> Measured:
    """The artifact is made, if it is not kept, and read back from disk."""
    folder = quantized(method, calibrated)
    record = json.loads((folder / "run.json").read_text())
    return Measured(
        model=calibrated.model.name,
        method=method.name,
        calibration=calibrated.text,
        versions=record["versions"],
        bits_per_weight=bits_per_weight(Checkpoint(folder / "artifact").tensors),
        run=Run(**record["run"]),
        losses=tuple(_losses(calibrated.model, folder, texts)),
    )


def place(method: Method, calibrated: Calibrated) -> Path:
    """The folder of an artifact, whether it is there or not."""
    model = calibrated.model
    tokens = None if method == ROUNDING else tokens_sha256(calibrated.blocks)
    made_of = [model.sha256, tokens, model.group_size, code_of(method)]
    return cache_folder("bench") / f"{model.name}-{method.name}-{sha256_of(made_of)[:12]}"


def _losses(model: Model, folder: Path, texts: tuple[Text, ...]) -> Iterator[Loss]:
    for text in texts:
        made_of = [text.sha256, tool_versions(), [getsource(one) for one in _DEFINITIONS]]
        record = folder / f"loss-{text.name}-{sha256_of(made_of)[:12]}.json"
        if not record.exists():
            write_atomic(record, canonical_json(asdict(loss(model, folder / "artifact", text))))
        yield Loss(**json.loads(record.read_text()))


@torch.no_grad()
def loss(model: Model, artifact: Path, text: Text) -> Loss:
    """As bot.evaluate measures it, but the source runs once for all artifacts."""
    weights = open_artifact(artifact, model.source, model.weights.tensors)
    skeleton = model.skeleton(read=partial(read_dequantized, weights), stored=readable_names(weights))
    if text.sha256 not in model.states:
        model.states[text.sha256] = _run(model.source, text)
    finals = (model.states[text.sha256], _run(skeleton, text))
    parts = []
    for start in range(0, len(text.tokens), _BLOCKS_AT_ONCE):
        batch = slice(start, start + _BLOCKS_AT_ONCE)
        source, artifacts = (final.logits(batch)[:, :-1].flatten(0, 1) for final in finals)
        parts.append(token_figures(source, artifacts, text.tokens[batch, 1:].flatten()))
    kl, nll_source, nll, agrees = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("kl", "nll_source", "nll_quantized", "agrees")
    )
    return Loss(
        text=text.name,
        kl=float(kl.double().mean()),
        top1=float(agrees.double().mean()),
        perplexity=perplexity(nll),
        perplexity_source=perplexity(nll_source),
    )


def _run(skeleton: Skeleton, text: Text) -> FinalStates:
    return run_layers(skeleton, text.tokens, device=_CPU, step=lambda: None)
