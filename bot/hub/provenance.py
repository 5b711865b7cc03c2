"""provenance.json of a repo, read as what anybody could have uploaded, before a word of it is used.

What is refused here leads to no request and no path on a disk. That the rest is true is shown by comparing it with
the files, with the source, with the release before it and with a signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from bot.checkpoint.repo_files import GITATTRIBUTES, PROVENANCE, is_safe_path
from bot.hub.fetch import read_small_file
from bot.records import MOST_EARLIER, HubFile, Provenance, PublishedFile, canonical_json, from_json

_MAX_FILES = 10_000  # each is a request when it is verified
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAG = re.compile(r"upstream-([0-9a-f]{8})-[0-9a-f]{8}[0-9a-z-]{0,150}")
_PICTURE = re.compile(r"assets/[A-Za-z0-9._-]+\.png")


class ProvenanceError(ValueError):
    """What is wrong with a provenance.json, on one line, to be read after its name."""


def provenance_at(api: HfApi, repo_id: str, revision: str) -> Provenance:
    """Raises HfHubHTTPError when the file is missing, and ProvenanceError as `read_provenance`."""
    try:
        content = read_small_file(api, repo_id, PROVENANCE, revision=revision)
    except ValueError as error:  # it is too large
        raise ProvenanceError(f"cannot be read: {error}") from None
    return read_provenance(content)


def read_provenance(content: bytes) -> Provenance:
    """Raises ProvenanceError when it cannot be parsed, or has a value that awq-bot writes nowhere."""
    try:
        made = from_json(Provenance, content)
    except ValueError:
        raise ProvenanceError("cannot be read") from None
    if problem := next(_problems(made), None):
        raise ProvenanceError(f"cannot be trusted: {problem}")
    return made


def _problems(made: Provenance) -> Iterator[str]:
    yield from _repo_problems(made)
    yield from _published_problems(made.files)
    source = made.source
    for name, files in (("source_files", source.source_files), ("refresh_files", source.refresh_files)):
        yield from _upstream_problems(name, files)
    yield from _digest_problems(made)
    yield from _log_problems(made)
    yield from _earlier_problems(made)
    yield from _run_problems(made)
    yield from _report_problems(made)


def _repo_problems(made: Provenance) -> Iterator[str]:
    source = made.source
    try:
        validate_repo_id(source.repo_id)
    except HFValidationError:
        yield f"source.repo_id {source.repo_id[:100]!r} is no repo id"
    if source.repo_id.count("/") != 1:
        yield f"source.repo_id {source.repo_id[:100]!r} is no repo id"
    if not _COMMIT.fullmatch(source.sha):
        yield "source.sha is no commit"
    tag = _TAG.fullmatch(made.tag)
    if tag is None or tag[1] != source.sha[:8]:
        yield f"its tag {made.tag[:100]!r} does not follow from its source"


def _published_problems(files: Sequence[PublishedFile]) -> Iterator[str]:
    yield from _path_problems("files", [file.path for file in files])
    for file in files:
        if file.path in (PROVENANCE, GITATTRIBUTES):
            yield f"files lists {file.path}"
        if file.size_bytes < 0:
            yield f"files: {file.path} has a negative size"
        if not _SHA256.fullmatch(file.sha256):
            yield f"files: {file.path} has no sha256"


def _upstream_problems(name: str, files: Sequence[HubFile]) -> Iterator[str]:
    yield from _path_problems(name, [file.path for file in files])
    for file in files:
        if file.size_bytes < 0:
            yield f"{name}: {file.path} has a negative size"
        if not (_SHA256.fullmatch(file.content_hash) or _COMMIT.fullmatch(file.content_hash)):
            yield f"{name}: {file.path} has no hash of the Hub"


def _path_problems(name: str, paths: Sequence[str]) -> Iterator[str]:
    if len(paths) > _MAX_FILES:
        yield f"{name} lists more than {_MAX_FILES:,} files"
    seen: set[str] = set()
    for path in paths:
        if not is_safe_path(path):
            yield f"{name}: {path[:100]!r} is no safe path"
        if path in seen:
            yield f"{name} lists {path} twice"
        seen.add(path)


def _digest_problems(made: Provenance) -> Iterator[str]:
    digests = {
        "source.source_digest": made.source.source_digest,
        "source.refresh_digest": made.source.refresh_digest,
        "recipe_digest": made.recipe_digest,
        "calibration.sha256": made.calibration.sha256,
        "report.text_sha256": made.report.text_sha256,
    }
    yield from (f"{name} is no sha256" for name, value in digests.items() if not _SHA256.fullmatch(value))


def _log_problems(made: Provenance) -> Iterator[str]:
    link = made.log.previous if made.log is not None else None
    if link is not None and not (
        _TAG.fullmatch(link.tag) and _COMMIT.fullmatch(link.commit) and _SHA256.fullmatch(link.sha256)
    ):
        yield "log.previous is no release"


def _earlier_problems(made: Provenance) -> Iterator[str]:
    if len(made.earlier) > MOST_EARLIER:
        yield f"earlier lists more than {MOST_EARLIER} releases"
    for item in made.earlier:
        digests = (item.source_digest, item.refresh_digest, item.recipe_digest)
        tag = _TAG.fullmatch(item.tag)
        if tag is None or tag[1] != item.source_sha[:8] or not all(map(_SHA256.fullmatch, digests)):
            yield "earlier lists what is no release"
        if not _COMMIT.fullmatch(item.source_sha):
            yield "earlier lists what is no release"


def _run_problems(made: Provenance) -> Iterator[str]:
    for name, run in (("built_by", made.built_by), ("published_by", made.published_by)):
        if run is not None and run.problem is not None:
            yield f"{name}.{run.problem}"


def _report_problems(made: Provenance) -> Iterator[str]:
    """What a refresh divides by, and what its card quotes."""
    try:
        canonical_json(made)
    except ValueError:
        yield "a figure is not finite"
    report = made.report
    if min(report.perplexity_source, report.perplexity_quantized, report.size_quantized_bytes) <= 0:
        yield "a figure of its report is not positive"
    for path in report.pictures:
        if not _PICTURE.fullmatch(path):
            yield f"report.pictures: {path[:100]!r} is no picture of a report"
