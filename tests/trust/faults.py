"""Every request of publishing and every way it can fail, for each kind of publication.

A cell publishes with one fault, looks at what is on the Hub, and publishes again without the fault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bot.checkpoint.repo_files import PROVENANCE
from bot.errors import BotError
from bot.localhub import Fault, LocalHub
from bot.records import Progress, Publication, no_progress
from tests.support.release import Release
from tests.support.repos import TARGET, all_requests, forget_requests, seal

OLD = {"config.json": b"{}", "model.safetensors": b"old!" * 3000, "tokenizer.json": b"{}", "LICENSE": b"old"}
NEW = {"config.json": b'{"new": 1}', "model.safetensors": b"new!" * 3000, "tokenizer.json": b"{}"}
# What a change of small files publishes: the weights are on the Hub already, and stay there.
SMALL = {"config.json": b"{}", "tokenizer.json": b'{"new": 1}', "LICENSE": b"new"}

# The requests of publishing, by the name that a cell has.
CALLS: Mapping[str, tuple[str, str]] = {
    "state": ("GET", rf"/api/models/{TARGET}(\?|$)"),
    "refs": ("GET", r"/refs"),
    "provenance": ("GET", r"/resolve/.*provenance\.json"),
    "create": ("POST", r"/repos/create"),
    "settings": ("PUT", r"/settings"),
    "files": ("GET", r"/tree/"),
    "preupload": ("POST", r"/preupload/"),
    "batch": ("POST", r"/objects/batch"),
    "upload": ("PUT", r"/uploads/"),
    "verify blob": ("POST", r"/objects/verify"),
    "validate card": ("POST", r"/validate-yaml"),
    "commit": ("POST", r"/commit/"),
    "small file": ("GET", r"/resolve/(?!.*provenance)"),
    "large file": ("GET", r"/objects/.*"),
    "tag": ("POST", r"/tag/"),
}
_REFUSED = {"X-Error-Message": "Invalid credentials in Authorization header"}
FAULTS: Mapping[str, Fault] = {
    "refused once": Fault(status=403),
    "refused": Fault(status=403, times=None),
    "missing": Fault(status=404, times=None),
    "reset before": Fault(status=500, lose_answer=True),
    "reset after": Fault(lose_answer=True),
    "reset": Fault(status=500, lose_answer=True, times=None),
    "answers lost": Fault(lose_answer=True, times=None),
    "slow": Fault(delay_s=0.05),
    "429": Fault(status=429),
    "429, RateLimit": Fault(
        status=429, headers={"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"api";q=1;w=1'}
    ),
    "429 always": Fault(status=429, times=None),
    "500": Fault(status=500),
    "502 always": Fault(status=502, times=None),
    "503": Fault(status=503),
    "503 always": Fault(status=503, times=None),
    "truncated": Fault(cut_after_bytes=2),
    "truncated always": Fault(cut_after_bytes=2, times=None),
    "other content": Fault(status=200, body="<html>Sign in to the hotel's network</html>"),
    "other content always": Fault(status=200, body="<html>Sign in to the hotel's network</html>", times=None),
    "another type": Fault(status=200, body="[]", headers={"Content-Type": "application/json"}),
    "another type always": Fault(status=200, body="[]", headers={"Content-Type": "application/json"}, times=None),
    "stale parent": Fault(status=412),
    "token revoked": Fault(status=401, headers=_REFUSED, times=None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """kind: of publication; call: of CALLS; fault: of FAULTS."""

    kind: str
    call: str
    fault: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.call}, {self.fault}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """mixed: a tree that is no release was public. lost: a complete release is gone, or nothing can be published.

    unnamed: the error does not say what happened and what to do. Each is a sentence, or empty.
    """

    cell: Cell
    mixed: str = ""
    lost: str = ""
    unnamed: str = ""


def cells() -> tuple[Cell, ...]:
    return tuple(
        Cell(kind=kind, call=call, fault=fault) for kind in KINDS for call in CALLS_OF[kind] for fault in FAULTS
    )


def try_cell(cell: Cell, folder: Path) -> Ended:
    with LocalHub(folder / "hub") as hub:
        return _Trial(hub, folder, cell).run()


# --- one cell -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    hub: LocalHub
    folder: Path
    cell: Cell

    def run(self) -> Ended:
        before, act = KINDS[self.cell.kind](self.hub, self.folder)
        tagged = self._tagged()
        forget_requests(self.hub)
        method, path = CALLS[self.cell.call]
        fault = replace(FAULTS[self.cell.fault], method=method, path=path)
        if self.cell.fault == "token revoked":  # for everything from this request on
            fault = replace(fault, method=".*", path="", skip=self._number_of(method, path))
        self.hub.faults.add(fault)
        unnamed = _unnamed(act.publish)
        self.hub.faults.clear()
        after = self._tagged()
        lost = [tag for tag in tagged if tagged[tag] != after.get(tag)]
        ended = Ended(
            cell=self.cell,
            unnamed=unnamed,
            mixed=self._mixed(before, act),
            lost=f"the releases {lost} changed" if lost else "",
        )
        if again := _unnamed(act.publish, must_succeed=True):
            return replace(ended, lost=ended.lost or f"it cannot be published any more: {again}")
        if not act.complete or self.hub.files(TARGET).keys() != act.paths:
            return replace(ended, lost=ended.lost or "what was published in the end is not the release")
        return ended

    def _tagged(self) -> dict[str, dict[str, bytes]]:
        """The files of every release that is complete, by its tag."""
        if not self.hub.store.exists(TARGET):
            return {}
        tags = {ref.rpartition("/")[2]: sha for ref, sha in self.hub.refs(TARGET).items() if "/tags/" in ref}
        return {tag: self.hub.files(TARGET, revision=sha) for tag, sha in tags.items()}

    def _mixed(self, before: Release | None, act: Release) -> str:
        if not self.hub.store.exists(TARGET) or self.hub.repo(TARGET).settings().private:
            return ""
        public = self.hub.files(TARGET)
        if is_same(public, contents(act)):
            return ""
        if before is not None:
            old = contents(before)
            # One that was restored has a provenance of its own.
            if is_same(public, old) or is_same(public, old | {PROVENANCE: public[PROVENANCE]}):
                return ""
        return f"{sorted(public)} is public"

    def _number_of(self, method: str, path: str) -> int:
        """How many requests a publication without faults sends before the first one of this kind."""
        trial = self.folder / "undisturbed"
        trial.mkdir()
        with LocalHub(trial / "hub") as hub:
            _, act = KINDS[self.cell.kind](hub, trial)
            forget_requests(hub)
            act.publish()
            sent = [(item.method, item.path) for item in all_requests(hub)]
        return next(
            (
                number
                for number, one in enumerate(sent)
                if re.fullmatch(method, one[0]) and re.search(path, one[1])
            ),
            len(sent),
        )


def _unnamed(publish: Callable[[], object], *, must_succeed: bool = False) -> str:
    try:
        publish()
    except BotError as error:
        if must_succeed:
            return error.message
        return "" if error.message and error.hint else f"{error.message!r} has no hint"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def contents(release: Release) -> dict[str, bytes]:
    """The files that are on disk."""
    found: dict[str, bytes] = {}
    for folder in release.artifact.folders:
        found |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        found |= {path.name: path.read_bytes() for path in folder.glob("LICENSE")}
    return found


def is_same(public: Mapping[str, bytes], release: Mapping[str, bytes]) -> bool:
    """Weights that a release does not have on disk are the old ones, which are on the Hub."""
    kept = {"model.safetensors": OLD["model.safetensors"]} | dict(release)
    found = {path: content for path, content in public.items() if path != ".gitattributes"}
    return _as_made(found) == _as_made(kept)


def _as_made(files: Mapping[str, bytes]) -> dict[str, object]:
    """Without what publishing adds to the provenance."""
    if PROVENANCE not in files:
        return dict(files)
    made = json.loads(files[PROVENANCE])
    return {**files, PROVENANCE: {key: value for key, value in made.items() if key != "log"}}


# --- kinds of publication -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finish(Release):
    """A release whose commit is there; only settings and tag are missing."""

    def publish(self, progress: Progress = no_progress) -> Publication:
        return self.finish()


def _first(hub: LocalHub, folder: Path) -> tuple[Release | None, Release]:
    return None, Release.of(hub, folder, NEW)


def _update(hub: LocalHub, folder: Path) -> tuple[Release | None, Release]:
    old = Release.of(hub, folder, OLD)
    old.publish()
    return old, old.next(folder, NEW, '{"model_type": "qwen3"}')


def _refresh(hub: LocalHub, folder: Path) -> tuple[Release | None, Release]:
    old = Release.of(hub, folder, OLD)
    old.publish()
    small = old.next(folder, SMALL, '{"model_type": "qwen3"}')
    [weights] = [file for file in old.artifact.files if file.path == "model.safetensors"]
    files = [file for file in small.artifact.files if file.path != "provenance.json"]
    return old, replace(small, artifact=seal(folder / small.job.job_id, small.job, [*files, weights]))


def _finish(hub: LocalHub, folder: Path) -> tuple[Release | None, Release]:
    release = Release.of(hub, folder, NEW)
    hub.faults.add(Fault(path="/tag/", status=403, times=None))
    try:
        release.publish()
    except BotError:
        hub.faults.clear()
    return None, _Finish(release.hub, release.job, release.artifact, release.caller)


KINDS: Mapping[str, Callable[[LocalHub, Path], tuple[Release | None, Release]]] = {
    "first release": _first,
    "update": _update,
    "refresh": _refresh,
    "finish": _finish,
}
CALLS_OF: Mapping[str, tuple[str, ...]] = {
    "first release": tuple(CALLS),
    "update": tuple(call for call in CALLS if call not in ("create", "settings")),
    "refresh": tuple(call for call in CALLS if call not in ("create", "settings")),
    "finish": ("refs", "provenance", "small file", "large file", "state", "tag"),
}
