"""Facts read from a Hub: repos, their files and tensors, and the state of a target repo."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from bot.records.serialization import LATER


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a repo. content_hash as the Hub lists it: sha256 of LFS files, git blob sha1 of others."""

    path: str
    size_bytes: int
    content_hash: str


def _listed(value: object) -> object:
    """Before there could be several licences, records had one text or null."""
    return [value] if isinstance(value, str) else value or []


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A source repo at one commit, from one API call. problem: why it could not be read, in short.

    repo_id: the id that the Hub answers with; a repo that was renamed is also found by its old name.
    license_link: as stated. license_file: the file of this repo that it names. license_url: what it leads to on
    the web: that file at this commit, or the http(s) address that is stated.
    last_modified: the day of the repo's latest commit, as 2025-01-31; None in records of version 0.1.
    new_version: the id of the repo that its card names as its successor.
    """

    repo_id: str
    sha: str = ""
    files: tuple[HubFile, ...] = ()
    licenses: Annotated[
        tuple[str, ...],
        Field(validation_alias=AliasChoices("licenses", "license")),
        BeforeValidator(_listed),
    ] = ()
    license_name: str | None = None
    license_link: str | None = None
    license_file: str | None = None
    license_url: str | None = None
    languages: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    gated: str | None = None
    private: bool = False
    problem: str | None = None
    last_modified: str | None = None
    new_version: str | None = field(default=None, metadata=LATER)

    def file(self, path: str) -> HubFile | None:
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The latest commit on main of a model repo, and its settings, as a list of its author's repos shows them."""

    repo_id: str
    sha: str
    gated: str | None = None
    private: bool = False
    disabled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One entry of a safetensors header. dtype as safetensors writes it: F16, BF16, F32, I32, ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What the decoder layers of a model hold, by its paths in the model and without `.weight`.

    path: of their list; stored_path: the same in the checkpoint. linears: [out, in] each; others: other matrices.
    experts: their number, by the path of each mixture. fixed: the linears whose packed form has no place in a
    checkpoint, and why. problem: why the model cannot be built, if it cannot; exit_code: of that error.
    """

    path: str = ""
    stored_path: str = ""
    linears: tuple[TensorInfo, ...] = ()
    others: tuple[TensorInfo, ...] = ()
    experts: dict[str, int] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    hint: str = ""
    exit_code: int = 0

    def mixture_of(self, linear: str) -> str | None:
        """The path of the mixture that one of its experts' linears is in."""
        parts = linear.split(".")
        paths = (".".join(parts[:end]) for end in range(1, len(parts) - 1))
        return next((path for path in paths if path in self.experts), None) if self.experts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What the plan reads of a new release besides the listing: config, weight files and safetensors headers.

    small_files: content by path, of those that are JSON or chat templates. layers: of the model that transformers
    builds from config and headers, where it is installed. problem: what is wrong with the upload or our access to
    it, in short.
    """

    config: dict[str, Any] = field(default_factory=dict)
    weight_files: tuple[str, ...] = ()
    tensors: tuple[TensorInfo, ...] = ()
    small_files: dict[str, bytes] = field(default_factory=dict)
    layers: Layers | None = None
    problem: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """What a model's safetensors headers list."""

    tensors: tuple[TensorInfo, ...]


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
