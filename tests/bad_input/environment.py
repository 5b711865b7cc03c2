"""Environment variables, and what lies on the disk already."""

from __future__ import annotations

from pathlib import Path

from tests.bad_input.case import Accepted, Case, Kind, Place, Refused

# Nothing is planned, so that no child process is started: that the Hub answered is all that is asked.
_DENIED = {"licenses": {"deny": ["mit"]}}
_ANSWERED = Accepted(says=("mit is denied",))


def _planned(name: str, report: str, right: Refused | Accepted, **variables: str) -> Case:
    return Case(
        name=name,
        report=report,
        kind=Kind.ENVIRONMENT,
        place=Place.PLAN,
        entry=_DENIED,
        variables=variables,
        right=right,
    )


def _pulled(name: str, report: str, right: Refused | Accepted, prepare: object) -> Case:
    assert callable(prepare)
    return Case(name=name, report=report, kind=Kind.ENVIRONMENT, place=Place.PULL, prepare=prepare, right=right)


def _linked(job: Path) -> None:
    """The folder for the source is a link to another one, which is not the job's."""
    (job / "source").symlink_to(Path.cwd(), target_is_directory=True)


def _linked_file(job: Path) -> None:
    """A file of the source is a link to one elsewhere."""
    (job / "source").mkdir()
    (job / "source" / "config.json").symlink_to(Path.cwd() / "kept.txt")


def _a_file(job: Path) -> None:
    (job / "source").write_text("x")


def _damaged(job: Path) -> None:
    """A file of the right size with other content, as a bad disk leaves it."""
    (job / "source").mkdir()
    (job / "source" / "README.md").write_text("x")


CASES: tuple[Case, ...] = (
    _planned("socks-proxy", "xet-core#572", _ANSWERED, ALL_PROXY="socks5h://127.0.0.1:9", NO_PROXY="127.0.0.1"),
    _planned(
        "proxy-of-an-unknown-scheme", "", Refused(8, names="HTTPS_PROXY"), HTTPS_PROXY="carrier://127.0.0.1:9"
    ),
    _planned(
        "certificates-that-are-not-there",
        "huggingface_hub#2222",
        Refused(8, names="SSL_CERT_FILE"),
        SSL_CERT_FILE="/nowhere/ca.pem",
    ),
    # What is empty counts as unset, and a token's line end is no part of it. All of them at once.
    _planned(
        "variables-that-are-empty",
        "huggingface_hub#1271",
        _ANSWERED,
        CURL_CA_BUNDLE="",
        HF_HUB_DOWNLOAD_TIMEOUT="",
        HF_HUB_ETAG_TIMEOUT="",
        HF_WRITE_TOKEN="\n",
        HTTPS_PROXY="",
        SSL_CERT_FILE="",
    ),
    _planned("timeout-is-text", "", Refused(8, names="HF_HUB_DOWNLOAD_TIMEOUT"), HF_HUB_DOWNLOAD_TIMEOUT="abc"),
    _planned(
        "other-timeout-is-text",
        "huggingface_hub#3594",
        Refused(8, names="HF_HUB_ETAG_TIMEOUT"),
        HF_HUB_ETAG_TIMEOUT="10s",
    ),
    _planned("no-network-wanted", "huggingface_hub#1643", Refused(8, names="HF_HUB_OFFLINE"), HF_HUB_OFFLINE="1"),
    _planned(
        "endpoint-without-a-scheme",
        "huggingface_hub#3307",
        Refused(8, names="HF_ENDPOINT"),
        HF_ENDPOINT="hf-mirror.example",
    ),
    _pulled("source-folder-is-a-link", "", Refused(8, names="source", says=("link",)), _linked),
    _pulled("file-of-the-source-is-a-link", "", Refused(8, names="config.json", says=("link",)), _linked_file),
    _pulled("source-folder-is-a-file", "", Refused(8, names="source"), _a_file),
    _pulled("other-content-is-there-already", "", Accepted(says=("model.safetensors",)), _damaged),
)
