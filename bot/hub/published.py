"""A published release, read for a check of its card: small files, headers and lists, and no weights.

Seven requests where the weights are one file. One more for the release before it, for a chat template in a JSON
file, for a key, for an index, and for each further file of weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError

from bot.checkpoint.repo_files import CARD, CHAT_TEMPLATE, CONFIG, PUBLIC_KEY
from bot.checkpoint.small_files import TEMPLATE_SETTINGS
from bot.errors import BotError, PublishError, UpstreamError
from bot.hub.fetch import files_at, read_small_file
from bot.hub.provenance import ProvenanceError
from bot.hub.release_log import link_to
from bot.hub.session import Hub, status_of
from bot.hub.sources import read_sources, read_weights
from bot.hub.targets import published_state
from bot.hub.verify import commit_of, provenance_of
from bot.records import HubFile, Provenance, Published, TargetState, TensorInfo, Upstream, WatchEntry

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRelease:
    """upstream: at the release's commit, with a problem if it cannot be read. before: the release before it.

    templates: the files that may hold a chat template, by path. problems: what could not be read, by file.
    """

    repo_id: str
    commit: str
    tags: tuple[str, ...]
    files: tuple[HubFile, ...]
    provenance: Provenance
    card: bytes = b""
    config: bytes = b""
    tensors: tuple[TensorInfo, ...] = ()
    templates: dict[str, bytes] = field(default_factory=dict)
    key_sha256: str = ""
    upstream: Upstream
    before: Provenance | None = None
    problems: dict[str, str] = field(default_factory=dict)


def read_release(hub: Hub, repo_id: str, *, revision: str | None) -> PublishedRelease:
    """Raises UpstreamError when the repo or revision is missing, and PublishError when it is not awq-bot's."""
    api = hub.reader
    state = published_state(api, repo_id)
    if state.state is TargetState.ABSENT:
        raise UpstreamError(f"{repo_id}: no such repo, or private", hint="Check its name, or set HF_TOKEN.")
    commit = commit_of(state, revision)
    made = provenance_of(api, state, commit)
    files = _or_raise(state, commit, lambda: files_at(api, state.repo_id, revision=commit))
    here = Upstream(repo_id=state.repo_id, sha=commit, files=files)
    problems: dict[str, str] = {}

    def read(path: str) -> bytes:
        if here.file(path) is None:
            problems[path] = "it is missing"
            return b""
        return _noted(problems, path, lambda: read_small_file(api, here.repo_id, path, revision=commit)) or b""

    templates = {path: b"" for path in (CHAT_TEMPLATE,) if here.file(path)}
    if not templates:
        templates = {path: read(path) for path in TEMPLATE_SETTINGS if here.file(path)}
    weights = _noted(problems, "weights", lambda: read_weights(hub, here))
    return PublishedRelease(
        repo_id=state.repo_id,
        commit=commit,
        tags=tuple(tag.name for tag in state.tags),
        files=files,
        provenance=made,
        card=read(CARD),
        config=read(CONFIG),
        tensors=tuple(weights.tensors.values()) if weights else (),
        templates=templates,
        key_sha256=hashlib.sha256(read(PUBLIC_KEY)).hexdigest() if here.file(PUBLIC_KEY) else "",
        upstream=_upstream(hub, made),
        before=_before(hub, state.repo_id, made, problems),
        problems=problems,
    )


def read_artifact(hub: Hub, repo_id: str) -> tuple[bytes, tuple[TensorInfo, ...]]:
    """config.json and the tensors on the head of a repo. Raises PublishError when they cannot be read."""
    here = Upstream(repo_id=repo_id, sha="main")
    try:
        here = replace(here, files=files_at(hub.reader, repo_id))
        config = read_small_file(hub.reader, repo_id, CONFIG, revision=here.sha)
        return config, tuple(read_weights(hub, here).tensors.values())
    except HfHubHTTPError as error:
        reason = f"the Hub answers {status_of(error)}"
    except (ValueError, UpstreamError) as error:
        reason = str(error)
    raise PublishError(f"{repo_id}: its weights cannot be read: {reason}", hint="Look at it on the Hub.")


def _upstream(hub: Hub, made: Provenance) -> Upstream:
    """By the name that it had then: the card names it so."""
    source = made.source
    asked = WatchEntry(repo_id=source.repo_id, revision=source.sha, target=source.repo_id)
    [found] = read_sources(hub, [asked])
    return Upstream(repo_id=source.repo_id, problem=found.problem) if found.problem else found


def _before(hub: Hub, repo_id: str, made: Provenance, problems: dict[str, str]) -> Provenance | None:
    link = made.log.previous if made.log is not None else None
    if link is None or not made.earlier:
        return None
    found = _noted(problems, link.tag, lambda: link_to(hub.reader, repo_id, link.commit))
    if found is not None and found[0] != link:
        problems[link.tag] = "it is not the release that this one names"
        return None
    return found[1] if found else None


def _noted(problems: dict[str, str], what: str, request: Callable[[], Read]) -> Read | None:
    """None, with the reason among the problems, where it cannot be read."""
    try:
        return request()
    except ProvenanceError as error:
        problems[what] = f"its provenance {error}"
    except HfHubHTTPError as error:
        problems[what] = f"the Hub answers {status_of(error)}"
    except BotError as error:
        problems[what] = error.message
    except ValueError as error:
        problems[what] = str(error)
    return None


def _or_raise(state: Published, commit: str, request: Callable[[], Read]) -> Read:
    try:
        return request()
    except HfHubHTTPError as error:
        raise PublishError(
            f"{state.repo_id}@{commit[:8]}: the list of its files answers {status_of(error)}",
            hint="If it is gated, ask for access and set HF_TOKEN.",
        ) from None
