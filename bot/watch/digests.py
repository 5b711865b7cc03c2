"""What counts as the same: the files that matter, their digests, and the names that follow from them.

Published repos carry these digests. To change how one is made is to quantize every watched model again.
"""

from __future__ import annotations

from itertools import chain, count

from bot.checkpoint.repo_files import CONFIG, SINGLE_WEIGHTS, WEIGHT_INDEX, is_code, is_companion, is_vocabulary
from bot.records import Digests, HubFile, Upstream, WatchEntry, sha256_of


def source_files(entry: WatchEntry, upstream: Upstream, weight_files: tuple[str, ...]) -> tuple[HubFile, ...]:
    """The files whose change is a release. weight_files: as `model.safetensors` or its index names them."""
    # Where both are there, loaders take the single file, and the index with its shards means nothing.
    single = upstream.file(SINGLE_WEIGHTS) is not None
    named = {CONFIG, SINGLE_WEIGHTS} if single else {CONFIG, WEIGHT_INDEX, *weight_files}
    with_code = entry.trust_remote_code
    return tuple(
        file
        for file in sorted(upstream.files, key=lambda file: file.path)
        if file.path in named or is_vocabulary(file.path) or (with_code and is_code(file.path))
    )


def refresh_files(upstream: Upstream) -> tuple[HubFile, ...]:
    return tuple(file for file in sorted(upstream.files, key=lambda file: file.path) if is_companion(file.path))


def files_digest(files: tuple[HubFile, ...]) -> str:
    return sha256_of(sorted((file.path, file.content_hash) for file in files))


def refresh_digest(upstream: Upstream) -> str:
    """Over the companions and what the repo's metadata says of licence and gating."""
    pairs: list[tuple[str, str | None]] = [(file.path, file.content_hash) for file in refresh_files(upstream)]
    metadata = {
        "license": upstream.license,
        "license_name": upstream.license_name,
        "license_link": upstream.license_link,
        "gated": upstream.gated,
    }
    return sha256_of([sorted(pairs), metadata])


def recipe_digest(entry: WatchEntry, *, quantizer: int | None = None) -> str:
    """Over what the watchlist asks for. quantizer: only where it asked for a newer one than was used."""
    return sha256_of({"recipe": entry.recipe, "calibration": entry.calibration, "quantizer": quantizer})


def tag_name(upstream: Upstream, digests: Digests, *, taken: tuple[str, ...] = ()) -> str:
    """A name that the target does not have yet: what is asked for may change and change back."""
    name = f"upstream-{upstream.sha[:8]}-{digests.content[:8]}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(item for item in names if item not in taken)


def job_id(entry: WatchEntry, upstream: Upstream, digests: Digests) -> str:
    return f"{entry.target.replace('/', '--')}-{upstream.sha[:8]}-{digests.content[:8]}"
