"""Which files upstream count for a release and for a refresh, the digests of both, and the names made of these.

Published repos carry the digests: a change to how one is computed quantizes every watched model again.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain, count

from bot.checkpoint.repo_files import (
    CONFIG,
    SINGLE_WEIGHTS,
    WEIGHT_INDEX,
    can_be_terms,
    is_code,
    is_small_file,
    is_vocabulary,
)
from bot.records import Digests, HubFile, Recipe, Upstream, WatchEntry, sha256_of


def source_files(entry: WatchEntry, upstream: Upstream, weight_files: tuple[str, ...]) -> tuple[HubFile, ...]:
    """The files whose change is a release. weight_files: as `model.safetensors` or its index names them."""
    # Where both exist, transformers loads the single file and ignores the index.
    single = upstream.file(SINGLE_WEIGHTS) is not None
    named = {CONFIG, SINGLE_WEIGHTS} if single else {CONFIG, WEIGHT_INDEX, *weight_files}
    with_code = entry.trust_remote_code
    return tuple(
        file
        for file in sorted(upstream.files, key=lambda file: file.path)
        if file.path in named or is_vocabulary(file.path) or (with_code and is_code(file.path))
    )


def refresh_files(upstream: Upstream) -> tuple[HubFile, ...]:
    """The files whose change is a refresh, among them the one that `license_link` names."""

    def is_listed(file: HubFile) -> bool:
        is_linked = file.path == upstream.license_file and can_be_terms(file.path, size_bytes=file.size_bytes)
        return is_linked or is_small_file(file.path, size_bytes=file.size_bytes)

    return tuple(sorted(filter(is_listed, upstream.files), key=lambda file: file.path))


def files_digest(files: tuple[HubFile, ...]) -> str:
    return sha256_of(sorted((file.path, file.content_hash) for file in files))


def refresh_digest(upstream: Upstream) -> str:
    """SHA-256 of the small files, and of licence, gating and successor as the repo's metadata states them."""
    pairs = [(file.path, file.content_hash) for file in refresh_files(upstream)]
    licenses = list(upstream.licenses)
    metadata: dict[str, object] = {
        # As it was published before a repo could have several.
        "license": licenses if len(licenses) > 1 else next(iter(licenses), None),
        "license_name": upstream.license_name,
        "license_link": upstream.license_link,
        "gated": upstream.gated,
    }
    # Version 0.1 did not read it.
    if upstream.new_version:
        metadata["new_version"] = upstream.new_version
    return sha256_of([sorted(pairs), metadata])


def recipe_digest(entry: WatchEntry, *, quantizer: int | None = None) -> str:
    """SHA-256 of what the watchlist asks for. quantizer: where `requantize: outdated` asked for a newer one."""
    recipe = _recipe_for_digest(entry.recipe)
    return sha256_of({"recipe": recipe, "calibration": entry.calibration, "quantizer": quantizer})


def _recipe_for_digest(recipe: Recipe) -> dict[str, object]:
    """The recipe with version 0.1's field names: published digests were computed from those."""
    named = asdict(recipe)
    method = named.pop("method")
    # Version 0.1 had no such field.
    if named["max_unquantized_share"] == Recipe().max_unquantized_share:
        del named["max_unquantized_share"]
    return named | {"search": "gram" if method == "awq+gptq" else method}


def tag_name(upstream: Upstream, digests: Digests, *, existing_tags: tuple[str, ...] = ()) -> str:
    """A name that the target does not have yet: a recipe may change and change back, and tags never move."""
    name = f"upstream-{upstream.sha[:8]}-{digests.content[:8]}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(item for item in names if item not in existing_tags)


def job_id(entry: WatchEntry, upstream: Upstream, digests: Digests) -> str:
    return f"{entry.target.replace('/', '--')}-{upstream.sha[:8]}-{digests.content[:8]}"
