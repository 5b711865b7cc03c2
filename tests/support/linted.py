"""Releases whose card, provenance and weights agree, published on a local Hub without quantizing anything.

The weights have the headers of a real artifact over zeros. Everything else comes from the functions that publish.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from bot.card.model_card import render_card
from bot.card.provenance import make_provenance, with_file
from bot.checkpoint.config import artifact_config
from bot.checkpoint.constants import SAFETENSORS_NAMES, ArtifactDtype
from bot.checkpoint.header import ITEM_BITS
from bot.checkpoint.inventory import bits_per_weight, bits_per_weight_file, packed_tensors
from bot.checkpoint.kv_cache import kv_cache
from bot.files import describe_file
from bot.hub.publish import Artifact
from bot.hub.session import Hub
from bot.hub.targets import read_target
from bot.localhub import LocalHub
from bot.records import ERROR_BY_LAYER, ExpertTokens, Job, PublishedFile, Recipe, Report, TensorInfo, to_json
from bot.watch.sizing import legal_tensor_parallel
from tests.support import factories
from tests.support.release import Release
from tests.support.repos import SOURCE, as_bot, source_files, upstream_of

METADATA = "license: apache-2.0\nlanguage: [en, de]\ntags: [chat]\npipeline_tag: text-generation\n"
README = f"---\n{METADATA}---\nA tiny model.\n"


def weights(tensors: tuple[TensorInfo, ...]) -> bytes:
    """A safetensors file of zeros."""
    header, end = {}, 0
    for tensor in tensors:
        size = prod(tensor.shape) * ITEM_BITS[tensor.dtype] // 8
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of model: its config.json and the headers of its source's weights.

    left_out: endings of the linears that are not quantized. unused: tensors of both that the model does not read.
    """

    config: dict[str, Any] = field(default_factory=lambda: factories.CONFIG)
    tensors: tuple[TensorInfo, ...] = field(default_factory=factories.layer_tensors)
    dtype: ArtifactDtype = "float16"
    recipe: Recipe = field(default_factory=Recipe)
    left_out: tuple[str, ...] = ()
    experts: tuple[ExpertTokens, ...] = ()
    unused: tuple[TensorInfo, ...] = ()

    @property
    def source(self) -> tuple[TensorInfo, ...]:
        return (*self.tensors, *self.unused)

    @property
    def linears(self) -> tuple[TensorInfo, ...]:
        """What is quantized, [out, in] each, without `.weight`."""
        return tuple(
            replace(tensor, name=tensor.name.removesuffix(".weight"))
            for tensor in self.tensors
            if ".layers." in tensor.name and len(tensor.shape) == 2 and not self._is_left_out(tensor)
        )

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(tensor.name.removesuffix(".weight") for tensor in self.tensors if self._is_left_out(tensor))

    @property
    def artifact(self) -> tuple[TensorInfo, ...]:
        """The artifact's tensors."""
        names = {linear.name for linear in self.linears}
        found: list[TensorInfo] = []
        for tensor in self.tensors:
            name = tensor.name.removesuffix(".weight")
            is_linear = name in names
            kept = replace(tensor, dtype=SAFETENSORS_NAMES[self.dtype])
            found += packed_tensors(name, tensor.shape, self.recipe.group_size) if is_linear else [kept]
        return (*found, *self.unused)

    def _is_left_out(self, tensor: TensorInfo) -> bool:
        return bool(self.left_out) and tensor.name.removesuffix(".weight").endswith(self.left_out)


def seed_source(hub: LocalHub, shape: Shape | None = None, **changed: bytes | str) -> None:
    """changed: files of the source, with `__` for a dot."""
    shape = shape or Shape()
    files: dict[str, bytes | str] = {
        "README__md": README,
        "config__json": json.dumps(shape.config),
        "model__safetensors": weights(shape.source),
    }
    hub.seed(SOURCE, source_files(**(files | changed)))


def job_of(hub: LocalHub, shape: Shape | None = None, **entry: Any) -> Job:
    """For what is at the source now, as the plan makes it."""
    shape = shape or Shape()
    asked = factories.entry(**{"recipe": shape.recipe} | entry)
    source = upstream_of(hub, asked)
    assert source.problem is None, source.problem
    there = read_target(as_bot(hub), asked).provenance
    return factories.job(
        asked,
        source,
        replaces=there.tag if there else None,
        earlier=there.releases if there else (),
        tensor_parallel=legal_tensor_parallel(shape.config, shape.linears, asked.recipe),
        kv_cache=kv_cache(shape.config, shape.source),
    )


def make_release(
    hub: LocalHub, folder: Path, shape: Shape | None = None, *, caller: Hub | None = None, **entry: Any
) -> Release:
    """Ready to be published. The source is put there first if need be."""
    shape = shape or Shape()
    if not hub.store.exists(SOURCE):
        seed_source(hub, shape)
    job = job_of(hub, shape, **entry)
    root = folder / job.job_id
    files = [*_quantized(hub, root / "quantized", shape), _written(root / "card", ERROR_BY_LAYER, b"\x89PNG\r\n")]
    quantized = factories.quantized(
        recipe=shape.recipe,
        artifact_dtype=shape.dtype,
        modules_to_not_convert=shape.modules,
        experts=shape.experts,
    )
    made = make_provenance(job, quantized, _report(shape), tool="awq-bot 0.1.0", files=tuple(files))
    text = render_card(job, made, chat=(root / "quantized/chat_template.jinja").is_file())
    made = with_file(made, _written(root / "card", "README.md", text.encode()))
    proof = _written(root / "card", "provenance.json", to_json(made).encode())
    artifact = Artifact(
        folders=(root / "quantized", root / "card"), files=(*made.files, proof), summary=f"AWQ {job.tag}"
    )
    return Release(hub, job, artifact, caller or as_bot(hub))


def _report(shape: Shape) -> Report:
    source, artifact = ({tensor.name: tensor for tensor in each} for each in (shape.source, shape.artifact))
    return factories.report(
        size_source_bytes=len(weights(shape.source)),
        size_quantized_bytes=len(weights(shape.artifact)),
        bits_per_weight=bits_per_weight(artifact),
        bits_per_weight_file=bits_per_weight_file(source, artifact, ()),
        experts=shape.experts,
        pictures=(ERROR_BY_LAYER,),
        sources=(
            factories.source_figures("lab/texts@01234567 (test)", kl_mean_rounding=0.0456),
            factories.source_figures("texts/more.txt", kl_mean=0.02),
        ),
    )


def _quantized(hub: LocalHub, folder: Path, shape: Shape) -> list[PublishedFile]:
    source = hub.files(SOURCE)
    config = artifact_config(
        source["config.json"],
        recipe=shape.recipe,
        modules_to_not_convert=shape.modules,
        artifact_dtype=shape.dtype,
        trust_remote_code=False,
    )
    carried = {path: content for path, content in source.items() if path not in ("README.md", ".gitattributes")}
    made = carried | {"config.json": config, "model.safetensors": weights(shape.artifact)}
    return [_written(folder, path, content) for path, content in made.items()]


def _written(folder: Path, path: str, content: bytes) -> PublishedFile:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return describe_file(folder, path)


def edit(hub: LocalHub, repo_id: str, path: str, content: bytes) -> None:
    """As a person does in the Hub's web editor: a commit on main."""
    hub.seed(repo_id, {path: content})
