"""Releases whose card, provenance and weights agree, published on a local Hub without quantizing anything.

The weights have the headers of a real artifact over zeros. Everything else comes from the functions that publish.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from bot.card.model_card import render_card
from bot.card.provenance import make_provenance, with_file
from bot.checkpoint.config import artifact_config
from bot.checkpoint.header import ITEM_BITS
from bot.checkpoint.inventory import bits_per_weight, bits_per_weight_file, packed_tensors
from bot.checkpoint.kv_cache import kv_cache
from bot.files import describe_file
from bot.hub.publish import Artifact
from bot.hub.session import Hub
from bot.hub.targets import read_target
from bot.localhub import LocalHub
from bot.records import ERROR_BY_LAYER, Job, PublishedFile, TensorInfo, to_json
from bot.watch.sizing import legal_tensor_parallel
from tests.support import factories
from tests.support.release import Release
from tests.support.repos import SOURCE, as_bot, source_files, upstream_of

METADATA = "license: apache-2.0\nlanguage: [en, de]\ntags: [chat]\npipeline_tag: text-generation\n"
README = f"---\n{METADATA}---\nA tiny model.\n"
GROUP_SIZE = 128


def weights(tensors: tuple[TensorInfo, ...]) -> bytes:
    """A safetensors file of zeros."""
    header, end = {}, 0
    for tensor in tensors:
        size = prod(tensor.shape) * ITEM_BITS[tensor.dtype] // 8
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def packed(source: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    """The artifact's tensors: every linear of a layer is quantized, the rest is float16."""
    found: list[TensorInfo] = []
    for tensor in source:
        name = tensor.name.removesuffix(".weight")
        is_linear = ".layers." in name and len(tensor.shape) == 2
        found += packed_tensors(name, tensor.shape, GROUP_SIZE) if is_linear else [replace(tensor, dtype="F16")]
    return tuple(found)


def seed_source(hub: LocalHub, **changed: bytes | str) -> None:
    """changed: files of the source, with `__` for a dot."""
    source: dict[str, bytes | str] = {
        "README__md": README,
        "model__safetensors": weights(factories.layer_tensors()),
    }
    hub.seed(SOURCE, source_files(**(source | changed)))


def job_of(hub: LocalHub, **entry: Any) -> Job:
    """For what is at the source now, as the plan makes it."""
    asked = factories.entry(**entry)
    source = upstream_of(hub, asked)
    assert source.problem is None, source.problem
    there = read_target(as_bot(hub), asked).provenance
    linears = [
        replace(tensor, name=tensor.name.removesuffix(".weight"))
        for tensor in factories.layer_tensors()
        if ".layers." in tensor.name and len(tensor.shape) == 2
    ]
    return factories.job(
        asked,
        source,
        replaces=there.tag if there else None,
        earlier=there.releases if there else (),
        tensor_parallel=legal_tensor_parallel(factories.CONFIG, linears, asked.recipe),
        kv_cache=kv_cache(factories.CONFIG, factories.layer_tensors()),
    )


def make_release(hub: LocalHub, folder: Path, *, caller: Hub | None = None, **entry: Any) -> Release:
    """Ready to be published. The source is put there first if need be."""
    if not hub.store.exists(SOURCE):
        seed_source(hub)
    job = job_of(hub, **entry)
    root = folder / job.job_id
    files = [*_quantized(hub, root / "quantized"), _written(root / "card", ERROR_BY_LAYER, b"\x89PNG\r\n")]
    artifact = packed(factories.layer_tensors())
    inventories = [{tensor.name: tensor for tensor in each} for each in (factories.layer_tensors(), artifact)]
    report = factories.report(
        size_source_bytes=len(weights(factories.layer_tensors())),
        size_quantized_bytes=len(weights(artifact)),
        bits_per_weight=bits_per_weight(inventories[1]),
        bits_per_weight_file=bits_per_weight_file(inventories[0], inventories[1], ()),
        pictures=(ERROR_BY_LAYER,),
        sources=(
            factories.source_figures("lab/texts@01234567 (test)", kl_mean_rounding=0.0456),
            factories.source_figures("texts/more.txt", kl_mean=0.02),
        ),
    )
    quantized = factories.quantized(calibration=factories.calibration_set())
    made = make_provenance(job, quantized, report, tool="awq-bot 0.1.0", files=tuple(files))
    text = render_card(job, made, chat=(root / "quantized/chat_template.jinja").is_file())
    made = with_file(made, _written(root / "card", "README.md", text.encode()))
    proof = _written(root / "card", "provenance.json", to_json(made).encode())
    return Release(
        hub,
        job,
        Artifact(
            folders=(root / "quantized", root / "card"), files=(*made.files, proof), summary=f"AWQ {job.tag}"
        ),
        caller or as_bot(hub),
    )


def _quantized(hub: LocalHub, folder: Path) -> list[PublishedFile]:
    source = hub.files(SOURCE)
    config = artifact_config(
        source["config.json"],
        recipe=factories.entry().recipe,
        modules_to_not_convert=(),
        artifact_dtype="float16",
        trust_remote_code=False,
    )
    carried = {path: content for path, content in source.items() if path not in ("README.md", ".gitattributes")}
    made = carried | {"config.json": config, "model.safetensors": weights(packed(factories.layer_tensors()))}
    return [_written(folder, path, content) for path, content in made.items()]


def _written(folder: Path, path: str, content: bytes) -> PublishedFile:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return describe_file(folder, path)


def edit(hub: LocalHub, repo_id: str, path: str, content: bytes) -> None:
    """As a person does in the Hub's web editor: a commit on main."""
    hub.seed(repo_id, {path: content})
