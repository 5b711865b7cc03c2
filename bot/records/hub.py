"""Facts read from a Hub: repos, their files and tensors, and the state of a target repo."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repo. content_hash as the Hub lists it: sha256 of LFS files, git blob sha1 of others."""

    path: str
    size_bytes: int
    content_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A source repo at one commit, from one API call. problem: why it could not be read, in short."""

    repo_id: str
    sha: str = ""
    files: tuple[HubFile, ...] = ()
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    gated: str | None = None
    private: bool = False
    problem: str | None = None

    def file(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One entry of a safetensors header. dtype as safetensors writes it: F16, BF16, F32, I32, ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What the plan reads of a new release besides the listing: config, weight files and safetensors headers.

    problem: what is wrong with the upload or our access to it, in short.
    """

    config: dict[str, Any] = field(default_factory=dict)
    weight_files: tuple[str, ...] = ()
    tensors: tuple[TensorInfo, ...] = ()
    problem: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetListing:
    """The paths of a data set's files at its pinned commit. problem: why they cannot be read, in short."""

    repo_id: str
    revision: str
    paths: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceProvenance:
    """Which upstream files, at which commit, an artifact was made from."""

    repo_id: str
    revision: str
    sha: str
    gated: str | None
    source_files: tuple[HubFile, ...]
    refresh_files: tuple[HubFile, ...]
    source_digest: str
    refresh_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file of an artifact, as it was published."""

    path: str
    size_bytes: int
    sha256: str


class TargetState(StrEnum):
    """The state of a target repo."""

    ABSENT = "absent"
    EMPTY = "empty"  # only the initial commit: we can publish there
    FOREIGN = "foreign"  # content that awq-bot did not publish
    UNREADABLE = "unreadable"  # see the problem
    OURS = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    name: str
    sha: str
