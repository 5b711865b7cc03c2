"""Check a card against its artifact: for anybody, of a published repo; and before anything is published.

What the card should say is rendered again, from the provenance with all that the artifact itself shows in place of
what the provenance says: sizes, bits, shapes, dtype, group size. Without torch and without a token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from bot.card.commands import Surroundings
from bot.card.lint import Expected, lint_card
from bot.card.model_card import Origin, render_release
from bot.checkpoint.repo_files import CARD, CONFIG, PROVENANCE, SIGNATURE, is_code
from bot.checkpoint.small_files import has_chat_template
from bot.checkpoint.weight_files import read_weight_headers
from bot.errors import BotError, PublishError
from bot.hub.published import PublishedRelease, read_artifact, read_release
from bot.hub.session import Hub
from bot.jobs.folder import JobDir
from bot.jobs.handover import has_chat_template as folder_has_chat_template
from bot.jobs.rederived import rederived
from bot.records import (
    CARD_VERSION,
    Finding,
    HubFile,
    Job,
    JobKind,
    LintResult,
    Provenance,
    PublishedFile,
    Signer,
    TensorInfo,
    Upstream,
    from_json,
    read_signer,
)
from bot.text import one_line

# What publishing again without new files adds to a tag; the card keeps the tag that it was made for.
_ADDED_TO_TAG = re.compile(r"(?:-(?:signed|restored|noticed)-[0-9a-f]{8})+$")
_SIGNER = re.compile(rb"--require-signature '([^'\n]{1,500})'")
_OF_UPSTREAM = (
    "license",
    "license_name",
    "license_link",
    "language",
    "pipeline_tag",
    "tags",
    "new_version",
    "Licence",
)
_MOST_NAMED = 3


class _Unknown(TypedDict):
    unknown: tuple[str, ...]
    why_unknown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """A card and all that it has to follow from. sizes: of the published files, by path."""

    content: bytes
    origin: Origin
    provenance: Provenance
    config: bytes
    tensors: tuple[TensorInfo, ...]
    sizes: Mapping[str, int]
    tags: Collection[str]


def lint_repo(
    hub: Hub,
    repo_id: str,
    *,
    revision: str | None = None,
    options: Mapping[str, Collection[str]] | None = None,
) -> LintResult:
    """Every fact of a published card. options: of each command of awq-bot, to check the commands on the card.

    Raises UpstreamError when the repo or revision is missing, and PublishError when awq-bot did not publish it.
    """
    found = read_release(hub, repo_id, revision=revision)
    made = found.provenance
    card = _Card(
        content=found.card,
        origin=_origin(found),
        provenance=made,
        config=found.config,
        tensors=found.tensors,
        sizes={file.path: file.size_bytes for file in found.files},
        tags=found.tags,
    )
    try:
        judged = tuple(_judged(card, upstream=found.upstream, options=options))
    except (ArithmeticError, ValueError) as error:  # numbers that no model has
        said = f"no card can be made of them: {error}"
        judged = (_finding("figures", "wrong", said, "figures of a model"),)
    findings = (*_of_repo(found), *judged)
    return LintResult(repo_id=found.repo_id, commit=found.commit, tag=made.tag, findings=findings)


def check_before_publishing(hub: Hub, job: Job, jobdir: JobDir, files: tuple[PublishedFile, ...]) -> None:
    """Raises PublishError naming what the card in the job's folder says and the artifact does not bear out.

    A refresh has no weights in its folder: the published ones are read.
    """
    made = from_json(Provenance, (jobdir.card / PROVENANCE).read_bytes())
    if job.kind is JobKind.REFRESH:
        config, tensors = read_artifact(hub, job.entry.target)
    else:
        config = (jobdir.quantized / CONFIG).read_bytes()
        tensors = tuple(read_weight_headers(jobdir.quantized).tensors.values())
    chat = folder_has_chat_template(jobdir.quantized)
    card = _Card(
        content=(jobdir.card / CARD).read_bytes(),
        origin=Origin.of(job, chat=chat),
        provenance=made,
        config=config,
        tensors=tensors,
        sizes={file.path: file.size_bytes for file in files},
        tags={job.tag, *(release.tag for release in job.earlier)},
    )
    wrong = [item for item in _judged(card, upstream=job.upstream, options=None) if item.status == "wrong"]
    if wrong:
        said = "; ".join(_sentence(item) for item in wrong[:_MOST_NAMED])
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise PublishError(
            f"{job.entry.target}: the artifact does not bear out its card: {said}{more}",
            hint="Nothing was published. Delete the job's folder and run it again.",
        )


def _sentence(item: Finding) -> str:
    place = f"{item.file}:{item.line}" if item.line else item.file
    return f"{place}: {item.what}: {item.found}, expected {item.expected}"


# --- what the card should say -------------------------------------------------------------------------------


def _judged(
    card: _Card, *, upstream: Upstream, options: Mapping[str, Collection[str]] | None
) -> Iterator[Finding]:
    """The provenance against the artifact, then the card against both."""
    made, found = rederived(card.provenance, config=card.config, tensors=card.tensors, sizes=card.sizes)
    yield from found
    tag = _ADDED_TO_TAG.sub("", made.tag)
    made = replace(made, tag=tag) if tag in card.tags else made
    expected = Expected(
        text=render_release(card.origin, made),
        around=Surroundings(
            target=card.origin.target,
            source=made.source.repo_id,
            source_sha=made.source.sha,
            tags={*card.tags, made.tag},
            paths={*card.sizes, PROVENANCE},
            options=options,
        ),
        other_version=made.card != CARD_VERSION,
        **_unknown(upstream, made),
    )
    yield from lint_card(card.content, expected)


def _unknown(upstream: Upstream, made: Provenance) -> _Unknown:
    """upstream: by the name that it has now."""
    if upstream.problem:
        return {"unknown": _OF_UPSTREAM, "why_unknown": f"the source cannot be read: {upstream.problem}"}
    if upstream.repo_id.lower() != made.source.repo_id.lower():
        # The link to a file of the source has the name that the source had.
        return {"unknown": ("license_link",), "why_unknown": f"the source is now {upstream.repo_id}"}
    return {"unknown": (), "why_unknown": ""}


def _origin(found: PublishedRelease) -> Origin:
    source, paths = found.provenance.source, {file.path for file in found.files}
    upstream = found.upstream
    if upstream.problem:
        upstream = replace(upstream, sha=source.sha, files=(*source.source_files, *source.refresh_files))
    return Origin(
        target=found.repo_id,
        upstream=replace(upstream, repo_id=source.repo_id, gated=source.gated),
        chat=_has_chat_template(found.templates),
        signed_by=_signer(found.card) if SIGNATURE in paths else None,
        trust_remote_code=any(is_code(path) for path in paths),
    )


def _has_chat_template(templates: Mapping[str, bytes]) -> bool:
    try:
        return has_chat_template(dict(templates))
    except BotError:  # it is no JSON: nothing reads a template in it
        return False


def _signer(card: bytes) -> Signer | None:
    """Whom the card names. Who signed is for `verify` to say."""
    named = _SIGNER.search(card)
    return read_signer(named[1].decode(errors="replace")) if named else None


# --- what is in the repo ------------------------------------------------------------------------------------


def _of_repo(found: PublishedRelease) -> Iterator[Finding]:
    made = found.provenance
    for what, problem in found.problems.items():
        yield _finding(
            what, "wrong" if problem == "it is missing" else "unknown", problem, "a file that can be read"
        )
    if made.card != CARD_VERSION:
        said = f"the card is of version {made.card} of awq-bot's cards, and this is version {CARD_VERSION}"
        yield _finding("version", "unknown", said)
    yield from _files(made.files, {file.path: file for file in found.files})
    yield from _releases(found)
    yield from _signature(found)


def _files(listed: tuple[PublishedFile, ...], there: Mapping[str, HubFile]) -> Iterator[Finding]:
    """By size, and by sha256 where the Hub lists it: that of large files. `verify` downloads them all."""
    whole = 0
    for file in listed:
        found = there.get(file.path)
        if found is None:
            yield _finding(file.path, "wrong", "it is missing", f"{file.size_bytes:,} bytes")
        elif file.path == CARD:
            if found.size_bytes != file.size_bytes:
                yield _finding(CARD, "unknown", "it was changed after it was published")
        elif found.size_bytes != file.size_bytes:
            yield _finding(file.path, "wrong", f"{found.size_bytes:,} bytes", f"{file.size_bytes:,} bytes")
        elif len(found.content_hash) == len(file.sha256) and found.content_hash != file.sha256:
            yield _finding(file.path, "wrong", f"sha256 {found.content_hash}", f"sha256 {file.sha256}")
        else:
            whole += 1
    yield _finding(
        "files", "ok", f"{whole} have the size, and as far as the Hub lists it the sha256, of the provenance"
    )


def _releases(found: PublishedRelease) -> Iterator[Finding]:
    """That what this provenance lists is what the release before it lists, and that release."""
    before, listed = found.before, found.provenance.earlier
    if before is None:
        return
    wanted = before.releases[: len(listed)]
    same = len(wanted) == len(listed) and all(
        replace(one, tag="") == replace(two, tag="") and _base(one.tag) == _base(two.tag)
        for one, two in zip(listed, wanted, strict=True)
    )
    said = f"{len(listed)} before {found.provenance.tag}"
    if same:
        yield _finding("releases", "ok", said)
    else:
        yield _finding("releases", "wrong", said, f"those that {before.tag} lists, and itself")


def _base(tag: str) -> str:
    return _ADDED_TO_TAG.sub("", tag)


def _signature(found: PublishedRelease) -> Iterator[Finding]:
    signer = _signer(found.card)
    if signer is None or SIGNATURE not in {file.path for file in found.files}:
        return  # a card that names a signer where nothing is signed is not what it should be
    if signer.kind == "key":
        same = found.key_sha256 == signer.value
        yield _finding("signature", "ok" if same else "wrong", f"key:{found.key_sha256}", f"key:{signer.value}")
    else:
        yield _finding("signature", "unknown", f"`awq-bot verify --require-signature '{signer}'` checks it")


def _finding(what: str, status: Literal["ok", "wrong", "unknown"], found: str, expected: str = "") -> Finding:
    return Finding(
        file=PROVENANCE,
        line=0,
        what=one_line(what),
        status=status,
        found=one_line(found),
        expected=one_line(expected),
    )
