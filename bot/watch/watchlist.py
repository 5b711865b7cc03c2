"""watchlist.yaml -> WatchEntry: the one place where a person's typing is validated."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bot.errors import WatchlistError
from bot.records import Calibration, Licenses, Recipe, TextSource, Thresholds, WatchEntry
from bot.watch.messages import Lines, YamlMistake, describe, load_with_lines
from bot.watch.schema import MAX_REPO_ID, CalibrationSpec, DefaultsSpec, ModelSpec, WatchlistSpec
from bot.watch.targets import default_target, target_mistakes

_MAX_BYTES = 500_000
_MOST_MISTAKES = 100  # more than anybody mends at once
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing that is wrong with a watchlist, where, and what to type instead."""

    file: str
    line: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class InvalidWatchlistError(WatchlistError):
    """Every mistake of a watchlist at once."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        if len(mistakes) == 1:
            super().__init__(str(mistakes[0]), hint=mistakes[0].hint)
        else:
            # A hint at the very end would seem to belong to the last one.
            lines = [f"{item}  ({item.hint})" if item.hint else str(item) for item in mistakes]
            super().__init__("\n".join(lines), hint=f"{len(mistakes)} mistakes; `awq-bot check` looks again.")
        self.mistakes = mistakes


def load(path: Path) -> tuple[WatchEntry, ...]:
    """The entries of a watchlist, in its order, with defaults filled in.

    Raises InvalidWatchlistError with every mistake, each with file and line.
    """
    try:
        raw, lines = load_with_lines(_read(path))
    except YamlMistake as error:
        raise _invalid(path, error.line, error.message, error.hint) from None
    mistakes: list[Mistake] = []
    raw = _long_form(path, raw)
    spec = _validated(path, raw, lines, mistakes)
    entries = [] if spec is None else list(_entries(path, spec, lines, mistakes))
    # Also where another key is wrong, so that nobody mends a list twice.
    for loc, message, hint in target_mistakes(raw, lines):
        mistakes.append(Mistake(file=str(path), line=lines.of(loc), message=message, hint=hint))
    if mistakes:
        raise InvalidWatchlistError(tuple(sorted(mistakes, key=lambda mistake: mistake.line)))
    return tuple(entries)


def select(entries: tuple[WatchEntry, ...], only: str | None, *, path: Path) -> tuple[WatchEntry, ...]:
    """The one model that was named, or all. Raises WatchlistError when it is not on the list."""
    chosen = tuple(entry for entry in entries if only is None or entry.repo_id == only)
    if only is not None and not chosen:
        raise WatchlistError(f"{only} is not on {path}", hint="Add it there, or check its spelling.")
    return chosen


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise WatchlistError(
            f"{path}: cannot be read: {error.strerror}",
            hint="Name the file with --watchlist, or start one: see the README.",
        ) from None
    if len(content) > _MAX_BYTES:
        raise _invalid(path, 1, f"more than {_MAX_BYTES:,} bytes, too large to be read", "Is it the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _invalid(path, line, "not UTF-8 text", "Save the file as UTF-8.") from None


def _invalid(path: Path, line: int, message: str, hint: str) -> InvalidWatchlistError:
    return InvalidWatchlistError((Mistake(file=str(path), line=line, message=message, hint=hint),))


def _long_form(path: Path, raw: Any) -> dict[str, Any]:
    """The short form `- owner/name` is the long form with one key."""
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else "a list" if isinstance(raw, list) else "text without keys"
        hint = "At the top stand the keys `publish_to:`, `defaults:` and `models:`."
        raise _invalid(path, 1, f"expected keys and values, found {found}", hint)
    models = raw.get("models")
    if not isinstance(models, list):
        return raw
    return raw | {"models": [{"repo_id": item} if isinstance(item, str) else item for item in models]}


def _validated(path: Path, raw: dict[str, Any], lines: Lines, mistakes: list[Mistake]) -> WatchlistSpec | None:
    try:
        return WatchlistSpec.model_validate(raw)
    except ValidationError as error:
        details = sorted(error.errors(), key=lambda detail: lines.of(detail["loc"]))
    for detail in details[:_MOST_MISTAKES]:
        message, hint = describe(detail, lines.typed(detail["loc"]))
        line = lines.of(detail["loc"])
        mistakes.append(Mistake(file=str(path), line=line, message=message, hint=hint))
    if len(details) > _MOST_MISTAKES:
        line = lines.of(details[_MOST_MISTAKES]["loc"])
        more = f"{len(details) - _MOST_MISTAKES:,} more mistakes from here on"
        mistakes.append(Mistake(file=str(path), line=line, message=more))
    return None


def _entries(path: Path, spec: WatchlistSpec, lines: Lines, mistakes: list[Mistake]) -> Iterator[WatchEntry]:
    contents = _file_contents(path.parent, spec)
    for number, model in enumerate(spec.models):
        settings = _merged(spec.defaults, model)
        target = model.target or default_target(spec.publish_to, model)
        wrong = list(_wrong(path, model, settings, target, contents))
        for item in wrong:
            mistake = _located(path, lines, number, item)
            if mistake not in mistakes:
                mistakes.append(mistake)
        if not wrong and target is not None:
            yield _entry(model, settings, target, contents, line=lines.of(("models", number)))


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A mistake that shows only once defaults are filled in. loc: from the model on."""

    loc: tuple[str | int, ...]
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class _FileContent:
    """sha256 of a calibration file, or the problem that it has."""

    sha256: str = ""
    problem: str = ""


def _wrong(
    path: Path,
    model: ModelSpec,
    settings: DefaultsSpec,
    target: str | None,
    contents: dict[str, _FileContent],
) -> Iterator[_Wrong]:
    name = model.repo_id
    if target is None:
        hint = "Add `publish_to: your-namespace` at the top, or a `target` here."
        yield _Wrong((), f"{name}: nowhere to publish to", hint)
    elif len(target) > MAX_REPO_ID:
        message = f"{name}: the target {target} has more than {MAX_REPO_ID} characters"
        yield _Wrong((), message, "Give it a shorter `target`.")
    if settings.trust_remote_code and not _SHA.fullmatch(settings.revision):
        message = f"{name}: trust_remote_code without a pinned revision"
        hint = "Set `revision` to the full commit sha whose code you have read."
        yield _Wrong(("trust_remote_code",), message, hint)
    for number, source in enumerate(settings.calibration.sources):
        if source.file and (problem := contents[source.file].problem):
            message = f"calibration file {source.file!r} cannot be read: {problem}"
            hint = f"Paths are relative to {path.name}."
            yield _Wrong(("calibration", "sources", number, "file"), message, hint)


def _located(path: Path, lines: Lines, number: int, wrong: _Wrong) -> Mistake:
    where: tuple[str | int, ...] = ("models", number, *wrong.loc)
    # A mistake inherited from `defaults` is reported where it was typed.
    if not lines.knows(where) and lines.knows(("defaults", *wrong.loc)):
        where = ("defaults", *wrong.loc)
    return Mistake(file=str(path), line=lines.of(where), message=wrong.message, hint=wrong.hint)


def _entry(
    model: ModelSpec, settings: DefaultsSpec, target: str, contents: dict[str, _FileContent], *, line: int
) -> WatchEntry:
    return WatchEntry(
        repo_id=model.repo_id,
        revision=settings.revision,
        target=target,
        recipe=Recipe(**_present(settings.recipe)),
        calibration=_calibration(settings.calibration, contents),
        gate=Thresholds(**_present(settings.gate)),
        licenses=Licenses(**_present(settings.licenses)),
        hold=settings.hold,
        priority=settings.priority,
        private=settings.private,
        requantize=settings.requantize,
        trust_remote_code=settings.trust_remote_code,
        line=line,
    )


def _merged(defaults: DefaultsSpec, model: ModelSpec) -> DefaultsSpec:
    """What the model says, else what `defaults` says, key by key also inside recipe, calibration and gate."""
    below = defaults.model_dump(exclude_unset=True)
    above = model.model_dump(exclude_unset=True, exclude={"repo_id", "target"})
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        below[key] = below[key] | value if nested else value
    return DefaultsSpec.model_validate(below)


def _present(spec: BaseModel) -> dict[str, Any]:
    return spec.model_dump(exclude_unset=True)


def _calibration(spec: CalibrationSpec, contents: dict[str, _FileContent]) -> Calibration:
    sources = tuple(
        TextSource(**_present(source), sha256=contents[source.file].sha256 if source.file else None)
        for source in spec.sources
    )
    return Calibration(samples=spec.samples, seq_len=spec.seq_len, seed=spec.seed, sources=sources)


def _file_contents(folder: Path, spec: WatchlistSpec) -> dict[str, _FileContent]:
    """Every calibration file that is named anywhere, read once."""
    settings: tuple[DefaultsSpec, ...] = (spec.defaults, *spec.models)
    names = {source.file for item in settings for source in item.calibration.sources}
    return {name: _file_content(folder, name) for name in names if name is not None}


def _file_content(folder: Path, name: str) -> _FileContent:
    try:
        # A pipe would be waited for without end.
        if (folder / name).exists() and not (folder / name).is_file():
            return _FileContent(problem="not a file")
        with (folder / name).open("rb") as stream:
            return _FileContent(hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        return _FileContent(problem=error.strerror or str(error))
    except ValueError:
        # A name that no file can have, such as one with a null character.
        return _FileContent(problem="no such name")
