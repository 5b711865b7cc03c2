"""What the Hub answers: errors, other content types, files that are not what was listed."""

from __future__ import annotations

import json

from bot.localhub import Fault
from tests.bad_input.case import Accepted, Case, Kind, Place, Refused

_INFO, _CONFIG, _WEIGHTS = r"/api/models/lab/", r"/config\.json", r"model\.safetensors"


def _planned(name: str, report: str, right: Refused | Accepted, *faults: Fault) -> Case:
    return Case(name=name, report=report, kind=Kind.ANSWERS, place=Place.PLAN, faults=faults, right=right)


def _pulled(name: str, report: str, right: Refused | Accepted, *faults: Fault) -> Case:
    return Case(name=name, report=report, kind=Kind.ANSWERS, place=Place.PULL, faults=faults, right=right)


def _always(path: str, status: int, body: str = "", **headers: str) -> Fault:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(path=path, status=status, body=body, headers=sent, times=None)


CASES: tuple[Case, ...] = (
    _planned(
        "page-of-a-login-instead-of-json", "", Refused(3, names="Hub"), _always(_INFO, 200, "<html>Log in</html>")
    ),
    _planned("information-without-an-id", "", Refused(3, names="Hub"), _always(_INFO, 200, "{}")),
    _planned(
        "no-list-of-files",
        "",
        Refused(3, names="config.json"),
        _always(_INFO, 200, json.dumps({"id": "lab/x", "sha": "0" * 40, "cardData": {"license": "mit"}})),
    ),
    _planned("busy", "huggingface_hub#2913", Refused(3, names="Hub", says=("503",)), _always(_INFO, 503)),
    _planned(
        "too-many-requests",
        "transformers#34841",
        Refused(8, names="limits our requests"),
        _always(_INFO, 429, Retry_After="0"),
    ),
    _planned(
        "no-access-to-files",
        "huggingface_hub#1119",
        Refused(3, names="gated"),
        _always(_CONFIG, 403, X_Error_Code="GatedRepo"),
    ),
    _planned(
        "a-file-that-was-listed-is-gone",
        "",
        Refused(3, names="config.json"),
        _always(_CONFIG, 404, X_Error_Code="EntryNotFound"),
    ),
    _planned(
        "page-of-a-login-instead-of-a-file",
        "",
        Refused(3, names="config.json"),
        _always(_CONFIG, 200, "<html>Log in</html>"),
    ),
    _planned(
        "header-cut-short",
        "",
        Refused(3, names="model.safetensors"),
        Fault(path=_WEIGHTS, status=206, body="ab", times=None),
    ),
    _pulled(
        "weights-cut-short-once",
        "huggingface_hub#2464",
        Accepted(says=("model.safetensors",)),
        Fault(path=_WEIGHTS, method="GET", cut_after_bytes=1000),
    ),
    _pulled(
        "page-of-an-error-instead-of-the-weights",
        "huggingface_hub#2589",
        Refused(3, names="model.safetensors"),
        _always(_WEIGHTS, 200, "<Error>AccessDenied</Error>"),
    ),
    _pulled(
        "weights-that-are-gone",
        "",
        Refused(3, names="model.safetensors", says=("missing",)),
        _always(_WEIGHTS, 404, X_Error_Code="EntryNotFound"),
    ),
    _pulled(
        "busy-once",
        "huggingface_hub#2913",
        Accepted(says=("model.safetensors",)),
        Fault(path=_WEIGHTS, status=503),
    ),
)
