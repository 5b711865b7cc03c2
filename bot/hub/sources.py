"""What the plan reads of sources, in few requests: models, the details of new releases, and data sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from bot.checkpoint.config import LFS_POINTER, parse_object
from bot.checkpoint.config_values import quantized_as, ties_embeddings
from bot.checkpoint.header import LENGTH_BYTES, Header, header_length, parse_header
from bot.checkpoint.repo_files import (
    CARD,
    CONFIG,
    GITATTRIBUTES,
    SINGLE_WEIGHTS,
    WEIGHT_INDEX,
    is_companion,
    is_safe_path,
    is_vocabulary,
)
from bot.checkpoint.weight_files import WeightHeaders, collect_headers, shard_names, unheld_tensors
from bot.errors import BotError, UpstreamError
from bot.hub.fetch import read_range, read_small_file, side_by_side
from bot.hub.license_link import read_link
from bot.hub.session import Hub, HubFailsError, call, status_of
from bot.records import DatasetListing, Details, HubFile, TextSource, Upstream, WatchEntry
from bot.text import one_line

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# A pointer of git-lfs has about 130 bytes, and no vocabulary is that small.
_POINTER_BYTES = 200
_FIRST_READ_BYTES = 100_000  # contains the whole header of nearly every safetensors file


def read_sources(hub: Hub, entries: Sequence[WatchEntry]) -> tuple[Upstream, ...]:
    """Each entry's source repo at its revision: one API call per entry."""
    return side_by_side(lambda entry: _upstream(hub, entry), entries)


def read_details(hub: Hub, sources: Sequence[Upstream]) -> tuple[Details, ...]:
    """config.json, the weight index and the safetensors headers of new releases, at the listed commit."""
    return side_by_side(lambda source: _details(hub, source), sources)


def read_datasets(hub: Hub, sources: Iterable[TextSource]) -> tuple[DatasetListing, ...]:
    """The data sets among the sources, each at its commit and once: one API call per data set."""
    pinned = dict.fromkeys((source.dataset, source.revision) for source in sources)
    named = [(repo_id, revision) for repo_id, revision in pinned if repo_id and revision]
    return side_by_side(lambda item: _dataset(hub, *item), named)


def read_change_times(hub: Hub, asked: Sequence[tuple[Upstream, Sequence[str]]]) -> tuple[datetime | str, ...]:
    """When the latest of these files changed in each source, at its commit, or why that is not known, in short.

    One API call each.
    """
    return side_by_side(lambda item: _changed(hub, *item), asked)


def _changed(hub: Hub, source: Upstream, paths: Sequence[str]) -> datetime | str:
    try:
        found = call(lambda: hub.reader.get_paths_info(source.repo_id, [*paths], expand=True, revision=source.sha))
    except (HfHubHTTPError, HubFailsError) as error:
        return _problem_of(error, what="repo", revision=f"commit {source.sha[:8]}")
    return max((item.last_commit.date for item in found if item.last_commit), default="no file has a date")


# --- sources ------------------------------------------------------------------------------------------------


def _upstream(hub: Hub, entry: WatchEntry) -> Upstream:
    try:
        info = call(lambda: _model_info(hub.reader, entry))
    except (HfHubHTTPError, HubFailsError, UpstreamError) as error:
        problem = _problem_of(error, what="repo", revision=f"revision {entry.revision!r}")
        return Upstream(repo_id=entry.repo_id, problem=problem)
    return _read_upstream(entry.repo_id, info, endpoint=hub.endpoint)


def _problem_of(error: HfHubHTTPError | BotError, *, what: str, revision: str) -> str:
    """Why a repo cannot be read, in short. The plan's refusals depend on the first word."""
    if isinstance(error, BotError):
        return error.message
    if isinstance(error, GatedRepoError):
        return "gated: our token has no access"
    if isinstance(error, RevisionNotFoundError):
        return f"missing: no {revision}"
    if isinstance(error, RepositoryNotFoundError):
        return f"missing: no such {what}, or private without access for our token"
    return f"the Hub answers {status_of(error)}"


def _model_info(api: HfApi, entry: WatchEntry) -> ModelInfo:
    try:
        return api.model_info(entry.repo_id, revision=entry.revision, files_metadata=True)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        # huggingface_hub parses the card's metadata into an object, and fails on unexpected types.
        raise UpstreamError(f"the metadata in {CARD} cannot be read: {type(error).__name__}") from None


def _read_upstream(asked: str, info: ModelInfo, *, endpoint: str) -> Upstream:
    """asked: the id in the watchlist. The Hub redirects from a repo's earlier names and from another spelling."""

    def card(key: str) -> object:
        return getattr(info.card_data, key, None)

    repo_id, sha = _repo_id(info) or asked, info.sha or ""
    files = tuple(_hub_file(sibling) for sibling in info.siblings or ())
    paths = {file.path for file in files}
    stated = _text(card("license_link"))
    link = read_link(stated or "", endpoint=endpoint, repo_id=repo_id, old_id=asked, sha=sha, paths=paths)
    return Upstream(
        repo_id=repo_id,
        sha=sha,
        files=files,
        licenses=_texts(card("license")),
        license_name=_text(card("license_name")),
        license_link=stated,
        license_file=link.file,
        license_url=link.url,
        languages=_texts(card("language")),
        pipeline_tag=_text(info.pipeline_tag) or _text(card("pipeline_tag")),
        tags=_texts(card("tags")),
        gated=info.gated if isinstance(info.gated, str) else None,
        private=bool(info.private),
        last_modified=info.last_modified.date().isoformat() if info.last_modified else None,
        new_version=_other_repo(card("new_version"), repo_id),
    )


def _other_repo(value: object, repo_id: str) -> str | None:
    """https://huggingface.co/docs/hub/model-cards#specifying-a-new-version"""
    named = _text(value) or ""
    return named if REPO_ID.fullmatch(named) and named.lower() != repo_id.lower() else None


def _repo_id(info: ModelInfo) -> str | None:
    """None where a mirror answers with something else than an id."""
    return info.id if isinstance(info.id, str) and REPO_ID.fullmatch(info.id) else None


def _hub_file(sibling: RepoSibling) -> HubFile:
    content_hash = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    return HubFile(path=sibling.rfilename, size_bytes=sibling.size or 0, content_hash=content_hash or "")


def _text(value: object) -> str | None:
    """Card metadata is untrusted: other types count as not stated, and invalid characters are replaced."""
    return value.encode("utf-8", "replace").decode().strip() or None if isinstance(value, str) else None


def _texts(value: object) -> tuple[str, ...]:
    """Most keys of a card take one text or a list of them."""
    items = value if isinstance(value, list) else [value]
    return tuple(text for item in items if (text := _text(item)))


# --- details ------------------------------------------------------------------------------------------------


def _details(hub: Hub, source: Upstream) -> Details:
    """All of this is untrusted: sizes are bounded and JSON types checked."""
    api = hub.reader
    try:
        config = _json_object(api, source, CONFIG)
        # Nothing more is needed to refuse it, and its weights may be of any form.
        if quantized_as(config):
            return Details(config=config)
        index = _json_object(api, source, WEIGHT_INDEX) if _has_index(source) else None
        weight_files = _weight_files(source, index)
        present = {path: file for path in weight_files if (file := source.file(path))}
        found = collect_headers(present, lambda path: _header(api, source, present[path]))
        _check_vocabulary(api, source)
        warnings = _index_warnings(index, found.files)
        if ties_embeddings(config):
            warnings += _tied_warnings(api, source, found)
        small_files = _small_files(api, source)
    except GatedRepoError:
        problem = "gated: access to the weights was refused; ask for it on the model's page"
    except RemoteEntryNotFoundError as error:
        problem = f"upload incomplete: {_last_part(error)} is missing"
    except (RepositoryNotFoundError, RevisionNotFoundError):
        problem = "missing: the repo or its commit was deleted while it was read"
    except HfHubHTTPError as error:
        problem = f"{_last_part(error)} upstream answers {status_of(error)}"
    except (HubFailsError, UpstreamError) as error:
        problem = error.message
    except ValueError as error:
        problem = str(error)
    else:
        return Details(
            config=config,
            weight_files=weight_files,
            tensors=tuple(found.tensors.values()),
            small_files=small_files,
            warnings=warnings,
        )
    return Details(problem=problem)


def read_weights(hub: Hub, repo: Upstream) -> WeightHeaders:
    """The safetensors headers of any repo, quantized or not; repo: its id, commit and files.

    One request for each file, or two for a long header. Raises UpstreamError, HubFailsError, HfHubHTTPError and
    ValueError for what cannot be read.
    """
    index = _json_object(hub.reader, repo, WEIGHT_INDEX) if _has_index(repo) else None
    present = {path: file for path in _weight_files(repo, index) if (file := repo.file(path))}
    return collect_headers(present, lambda path: _header(hub.reader, repo, present[path]))


def _small_files(api: HfApi, source: Upstream) -> dict[str, bytes]:
    """Those that are JSON or chat templates. The vocabulary, which may be large, is not among them."""
    return {
        file.path: read_small_file(api, source.repo_id, file.path, revision=source.sha)
        for file in source.files
        if is_companion(file.path) and file.path.endswith((".json", ".jinja")) and is_safe_path(file.path)
    }


def _has_index(source: Upstream) -> bool:
    """transformers prefers the single file when both exist."""
    return not source.file(SINGLE_WEIGHTS) and source.file(WEIGHT_INDEX) is not None


def _weight_files(source: Upstream, index: dict[str, Any] | None) -> tuple[str, ...]:
    if index is not None:
        return shard_names(index, where=f"{WEIGHT_INDEX} upstream")
    return (SINGLE_WEIGHTS,) if source.file(SINGLE_WEIGHTS) else ()


def _index_warnings(index: dict[str, Any] | None, files: Mapping[str, str]) -> tuple[str, ...]:
    if index is None or not (unheld := unheld_tensors(index, files)):
        return ()
    return (f"{WEIGHT_INDEX} lists {len(unheld)} tensors that no file holds, such as {one_line(unheld[0])}",)


def _header(api: HfApi, source: Upstream, file: HubFile) -> Header:
    """The file's header: one Range request, or two when it is long.

    See https://huggingface.co/docs/safetensors/index#format
    """

    def read(start: int, end: int) -> bytes:
        size = end - start
        # HTTP has no empty range.
        return (
            read_range(api, source.repo_id, file.path, revision=source.sha, start=start, size=size)
            if size
            else b""
        )

    first = read(0, min(file.size_bytes, _FIRST_READ_BYTES))
    end = LENGTH_BYTES + header_length(first, file_bytes=file.size_bytes, where=file.path)
    text = first[LENGTH_BYTES:end] + read(len(first), max(end, len(first)))
    return parse_header(text, file_bytes=file.size_bytes, where=file.path)


# How the input and the output embedding are named in most checkpoints, behind the path of their module.
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")
_COMPARED_BYTES = 1 << 16


def _tied_warnings(api: HfApi, source: Upstream, found: WeightHeaders) -> tuple[str, ...]:
    """Warnings about a tied model whose output embedding is not its input embedding, by their first values."""
    embedding, head = (_shortest(found.files, names) for names in (_EMBEDDINGS, _HEADS))
    if head is None:
        return ()
    if embedding is None:
        return (f"config.json ties {head} to the embedding, and only {head} is stored: servers may not find it",)
    if _first_values(api, source, found, embedding) == _first_values(api, source, found, head):
        return ()
    return (
        f"config.json ties {head} to {embedding}, but their values differ: "
        "both are used, as in transformers, and servers may use only one",
    )


def _shortest(tensors: Iterable[str], endings: tuple[str, ...]) -> str | None:
    """The tensor with such a name that is outermost, as layers may have embeddings too."""
    named = [name for name in tensors if f".{name}".endswith(tuple(f".{ending}" for ending in endings))]
    return min(named, key=lambda name: (name.count("."), name), default=None)


def _first_values(api: HfApi, source: Upstream, found: WeightHeaders, tensor: str) -> tuple[str, bytes]:
    path = found.files[tensor]
    span = found.headers[path].spans[tensor]
    size = min(span.size_bytes, _COMPARED_BYTES)
    content = (
        read_range(api, source.repo_id, path, revision=source.sha, start=span.start, size=size) if size else b""
    )
    return span.info.dtype, content


def _check_vocabulary(api: HfApi, source: Upstream) -> None:
    """Raises UpstreamError when git-lfs was not used where it had to be."""
    for file in source.files:
        if is_vocabulary(file.path) and file.size_bytes <= _POINTER_BYTES:
            content = read_small_file(api, source.repo_id, file.path, revision=source.sha)
            if content.startswith(LFS_POINTER):
                raise UpstreamError(f"{file.path}: it is a git-lfs pointer, not the file itself")


def _json_object(api: HfApi, source: Upstream, path: str) -> dict[str, Any]:
    return parse_object(read_small_file(api, source.repo_id, path, revision=source.sha), where=path)


def _last_part(error: HfHubHTTPError) -> str:
    return str(error.response.url.path).rsplit("/", 1)[-1] if error.response is not None else "a file"


# --- data sets ----------------------------------------------------------------------------------------------


def _dataset(hub: Hub, repo_id: str, revision: str) -> DatasetListing:
    try:
        info = call(lambda: hub.reader.dataset_info(repo_id, revision=revision))
        paths = tuple(sibling.rfilename for sibling in info.siblings or ())
        if info.gated:
            _check_access(hub.reader, repo_id, revision, paths)
    except (HfHubHTTPError, HubFailsError) as error:
        problem = _problem_of(error, what="data set", revision=f"commit {revision[:8]}")
        return DatasetListing(repo_id=repo_id, revision=revision, problem=problem)
    return DatasetListing(repo_id=repo_id, revision=revision, paths=paths)


def _check_access(api: HfApi, repo_id: str, revision: str, paths: tuple[str, ...]) -> None:
    """A gated repo lists its files for everyone: whether one may be read, only asking for it says.

    https://huggingface.co/docs/hub/datasets-gated
    """
    if path := next((path for path in paths if path not in (CARD, GITATTRIBUTES)), None):
        url = hf_hub_url(repo_id, path, revision=revision, repo_type="dataset", endpoint=api.endpoint)
        call(lambda: api.get_hf_file_metadata(url=url))
