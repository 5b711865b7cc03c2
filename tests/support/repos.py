"""Small source repos on a local Hub, jobs pinned to them, and artifacts to publish."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bot.hub.publish import Artifact
from bot.hub.session import Hub
from bot.hub.sources import read_sources
from bot.hub.targets import read_target
from bot.localhub import LocalHub, RequestRecord
from bot.records import Job, PublishedFile, Upstream, WatchEntry, to_json
from tests.support import factories

SOURCE, TARGET = "lab/Tiny", "quantized/Tiny-awq"
CARD = "---\nlicense: apache-2.0\nbase_model: lab/Tiny\n---\n# Tiny\n"


def safetensors(shapes: Mapping[str, list[int]], *, filler: int = 1) -> bytes:
    """A whole safetensors file of F16 tensors, written from the format's description."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes([filler]) * end


def source_files(**changed: bytes | str) -> dict[str, bytes | str]:
    """path -> content; a changed path is written with `__` for its dot."""
    standard: dict[str, bytes | str] = {
        "README.md": "---\nlicense: apache-2.0\nlanguage: [en, de]\ntags: [chat]\n---\nA tiny model.\n",
        "LICENSE": "Apache License",
        "config.json": json.dumps(factories.CONFIG),
        "generation_config.json": "{}",
        "model.safetensors": safetensors({"model.norm.weight": [256]}),
        "tokenizer.json": '{"version": "1.0"}',
        "tokenizer_config.json": "{}",
    }
    return standard | {path.replace("__", "."): content for path, content in changed.items()}


def as_bot(hub: LocalHub) -> Hub:
    """Reads and writes as `bot`, who is of the organisation `quantized`."""
    return Hub(hub.endpoint, hub.token("bot", role="read"), hub.token("bot"))


def upstream_of(hub: LocalHub, entry: WatchEntry) -> Upstream:
    return read_sources(as_bot(hub), [entry])[0]


def release_job(hub: LocalHub, *, seed: bool = True, **entry: Any) -> Job:
    """A job for what stands at the source now, which is put there first if need be."""
    asked = factories.entry(**entry)
    if seed and not hub.store.exists(asked.repo_id):
        few = ("config.json", "model.safetensors", "tokenizer_config.json")
        hub.seed(asked.repo_id, {path: source_files()[path] for path in few})
    source = upstream_of(hub, asked)
    assert source.problem is None, source.problem
    there = read_target(as_bot(hub), asked).provenance
    return factories.job(asked, source, replaces=there.tag if there else None)


def make_artifact(folder: Path, job: Job, files: Mapping[str, bytes] | None = None) -> Artifact:
    """`quantized/` and `card/` below folder; files: path -> content of what quantizing made."""
    made = {"config.json": b"{}", "model.safetensors": b"int4" * 5000, "tokenizer.json": b"{}"}
    contents = files if files is not None else made
    quantized = [_written(folder / "quantized", path, content) for path, content in contents.items()]
    described = [
        _written(folder / "card", "README.md", CARD.encode()),
        _written(folder / "card", "assets/error.png", b"\x89PNG\r\n" + job.tag.encode()),
    ]
    return seal(folder, job, [*quantized, *described])


def seal(folder: Path, job: Job, files: Iterable[PublishedFile]) -> Artifact:
    """Provenance over these files, beside them; some may be on the Hub alone."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    made = factories.provenance(job.entry, job.upstream, tag=job.tag, files=ordered)
    proof = _written(folder / "card", "provenance.json", to_json(made).encode())
    return Artifact(
        folders=(folder / "quantized", folder / "card"), files=(*ordered, proof), summary=f"AWQ {job.tag}"
    )


def described(path: str, content: bytes) -> PublishedFile:
    return PublishedFile(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _written(folder: Path, path: str, content: bytes) -> PublishedFile:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return described(path, content)


def all_requests(hub: LocalHub) -> tuple[RequestRecord, ...]:
    """In the order in which they were answered. An answer without a body is logged just after it was sent."""
    time.sleep(0.05)
    return hub.requests


def requests(hub: LocalHub, method: str, part: str) -> list[RequestRecord]:
    """Those whose path holds `part`."""
    return [item for item in all_requests(hub) if item.method == method and part in item.path]


def forget_requests(hub: LocalHub) -> None:
    all_requests(hub)
    hub.clear_requests()


def writes(hub: LocalHub) -> list[str]:
    """What changed something in a repo: creation, uploads, commits, settings, tags."""
    changing = ("/repos/create", "/commit/", "/settings", "/tag/", "/uploads/")
    return [
        f"{item.method} {item.path}"
        for item in all_requests(hub)
        if item.method in ("POST", "PUT", "DELETE") and any(part in item.path for part in changing)
    ]
