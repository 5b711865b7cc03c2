"""watchlist.yaml -> Watchlist: the one place where the watchlist is validated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from bot.errors import WatchlistError
from bot.records import (
    Calibration,
    DiscoverRule,
    Engine,
    EngineName,
    Evaluation,
    EvaluationTask,
    Licenses,
    PinnedFile,
    Recipe,
    TextSource,
    Thresholds,
    WatchEntry,
    Watchlist,
    read_signer,
)
from bot.watch.document import Lines, YamlMistake, load_with_lines, yaml_line
from bot.watch.messages import describe
from bot.watch.rules import default_target, rule_mistakes, sources_typed, tasks_typed
from bot.watch.schema import (
    CalibrationSpec,
    DefaultsSpec,
    EvaluationSpec,
    ServeSpec,
    SourceSpec,
    TaskSpec,
    WatchlistSpec,
    evaluation_sources,
)
from bot.watch.task_files import FileContent, TaskContent, file_content, task_content
from bot.watch.values import is_task_file, is_text_file, wait_s

_MAX_BYTES = 500_000
_MAX_MISTAKES = 100


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
    """Every mistake of a watchlist at once, by line."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        lines = [f"{item}\n  help: {item.hint}" if item.hint else str(item) for item in mistakes]
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(count)
        self.message = "\n".join([*lines, count])  # one line each, of the user's own file
        self.args = (self.message,)
        self.mistakes = mistakes


def load(path: Path) -> tuple[WatchEntry, ...]:
    """The entries of a watchlist, in its order, with defaults filled in.

    Raises InvalidWatchlistError with every mistake, each with file and line.
    """
    return read(path).entries


def read(path: Path) -> Watchlist:
    """Like `load`, with the rules of `discover`."""
    return parse(_read(path), path)


def parse(text: str, path: Path) -> Watchlist:
    """Like `read`, for a text that is, or could be, the content of the file."""
    try:
        raw, lines, unread = load_with_lines(text)
    except YamlMistake as error:
        raise _invalid(path, error.line, error.message, error.hint) from None
    raw = _long_form(path, raw)
    contents, tasks = _file_contents(path.parent, raw), _task_contents(path.parent, raw)
    spec, found = _validated(raw, lines)
    found += [(lines.of(loc), message, hint) for loc, message, hint in rule_mistakes(raw, lines, contents, tasks)]
    found += [(item.line, item.message, item.hint) for item in unread]
    if spec is None or found:
        raise InvalidWatchlistError(_mistakes(path, found))
    return Watchlist(
        entries=tuple(_entries(spec, lines, contents, tasks)),
        rules=tuple(_rules(spec, raw, lines, contents, tasks)),
    )


def select(watchlist: Watchlist, only: str | None, *, path: Path) -> Watchlist:
    """The one model that was named, or all. Raises WatchlistError when it is not on the list.

    A model that is not on the list may be found by the rules that look through its owner's repos.
    """
    if only is None:
        return watchlist
    chosen = tuple(entry for entry in watchlist.entries if entry.repo_id == only)
    owner = only.partition("/")[0].lower()
    rules = tuple(rule for rule in watchlist.rules if rule.author.lower() == owner)
    if not chosen and not rules:
        raise WatchlistError(f"{only} is not on {path}", hint="Add it there, or check its spelling.")
    return Watchlist(entries=chosen, rules=() if chosen else rules)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise WatchlistError(
            f"{path}: cannot be read: {error.strerror}",
            hint="Name the file with --watchlist, or start one with `awq-bot init`.",
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
        hint = "A watchlist has the keys `publish_to:`, `defaults:`, `models:` and `discover:`, and no others."
        raise _invalid(path, 1, f"expected a mapping, found {found}", hint)
    models = raw.get("models")
    if not isinstance(models, list):
        return raw
    return raw | {"models": [{"repo_id": item} if isinstance(item, str) else item for item in models]}


_Found = tuple[int, str, str]  # line, message, hint


def _validated(raw: dict[str, Any], lines: Lines) -> tuple[WatchlistSpec | None, list[_Found]]:
    try:
        return WatchlistSpec.model_validate(raw), []
    except ValidationError as error:
        details = error.errors()
    return None, [(lines.of(detail["loc"]), *describe(detail, lines.typed(detail["loc"]))) for detail in details]


def _mistakes(path: Path, found: list[_Found]) -> tuple[Mistake, ...]:
    """Sorted by line, each once, and no more of them than a person reads."""
    ordered = sorted(dict.fromkeys(found), key=lambda item: item[0])
    mistakes = [
        Mistake(file=str(path), line=line, message=message, hint=hint)
        for line, message, hint in ordered[:_MAX_MISTAKES]
    ]
    if len(ordered) > _MAX_MISTAKES:
        more = f"{len(ordered) - _MAX_MISTAKES:,} more mistakes from here on"
        mistakes.append(Mistake(file=str(path), line=ordered[_MAX_MISTAKES][0], message=more))
    return tuple(mistakes)


def _entries(
    spec: WatchlistSpec, lines: Lines, contents: dict[str, FileContent], tasks: dict[str, TaskContent]
) -> Iterator[WatchEntry]:
    for number, model in enumerate(spec.models):
        target = model.target or default_target(spec.publish_to, model.repo_id) or ""
        settings = _merged(spec.defaults, model)
        entry = _entry(settings, contents, tasks, line=lines.of(("models", number)))
        yield replace(entry, repo_id=model.repo_id, target=target)


def _rules(
    spec: WatchlistSpec,
    raw: dict[str, Any],
    lines: Lines,
    contents: dict[str, FileContent],
    tasks: dict[str, TaskContent],
) -> Iterator[DiscoverRule]:
    for number, rule in enumerate(spec.discover):
        entry = _entry(_merged(spec.defaults, rule), contents, tasks, line=lines.of(("discover", number)))
        typed = raw["discover"][number]
        yield DiscoverRule(
            author=rule.author,
            match=rule.match,
            exclude=rule.exclude,
            since=rule.since.isoformat() if rule.since else None,
            min_downloads=rule.min_downloads,
            max_parameters=rule.max_parameters,
            architectures=rule.architectures,
            tags=rule.tags,
            limit=rule.limit,
            mode=rule.mode,
            publish_to=rule.publish_to or spec.publish_to or "",
            entry=replace(entry, found=True),
            own_place=rule.publish_to is not None,
            settings=tuple(yaml_line(key, typed[key]) for key in typed if key in DefaultsSpec.model_fields),
        )


def _entry(
    settings: DefaultsSpec, contents: dict[str, FileContent], tasks: dict[str, TaskContent], *, line: int
) -> WatchEntry:
    """The settings of a model, which has no names yet."""
    return WatchEntry(
        repo_id="",
        revision=settings.revision,
        target="",
        recipe=Recipe(**_present(settings.recipe)),
        calibration=_calibration(settings.calibration, contents),
        evaluation=_evaluation(settings.evaluation, settings.calibration, contents),
        tasks=tuple(_task(task, tasks) for task in settings.tasks),
        serve=_engines(settings.serve),
        gate=Thresholds(**_present(settings.gate)),
        licenses=Licenses(**_present(settings.licenses)),
        hold=settings.hold,
        settle_s=wait_s(settings.settle),
        priority=settings.priority,
        private=settings.private,
        requantize=settings.requantize,
        trust_remote_code=settings.trust_remote_code,
        signed_by=read_signer(settings.signed_by) if settings.signed_by else None,
        collections=tuple(dict.fromkeys(settings.collections)),
        line=line,
    )


def _merged(defaults: DefaultsSpec, model: DefaultsSpec) -> DefaultsSpec:
    """A model's or a rule's settings over those of `defaults`, key by key also inside recipe and others."""
    below = defaults.model_dump(exclude_unset=True)
    above = model.model_dump(exclude_unset=True, include=set(DefaultsSpec.model_fields))
    for key, value in above.items():
        # Of engines, one that `defaults` have could not be taken out otherwise.
        nested = isinstance(value, dict) and isinstance(below.get(key), dict) and key != "serve"
        below[key] = below[key] | value if nested else value
    return DefaultsSpec.model_validate(below)


def _present(spec: BaseModel) -> dict[str, Any]:
    return spec.model_dump(exclude_unset=True)


def _engines(spec: ServeSpec) -> tuple[Engine, ...]:
    names: tuple[EngineName, ...] = get_args(EngineName)
    return tuple(Engine(name=name, version=version) for name in names if (version := getattr(spec, name)))


def _calibration(spec: CalibrationSpec, contents: dict[str, FileContent]) -> Calibration:
    return Calibration(
        samples=spec.samples, seq_len=spec.seq_len, seed=spec.seed, sources=_sources(spec.sources, contents)
    )


def _evaluation(
    spec: EvaluationSpec, calibration: CalibrationSpec, contents: dict[str, FileContent]
) -> Evaluation:
    return Evaluation(tokens=spec.tokens, sources=_sources(evaluation_sources(spec, calibration), contents))


def _sources(specs: tuple[SourceSpec, ...], contents: dict[str, FileContent]) -> tuple[TextSource, ...]:
    return tuple(
        TextSource(**_present(spec), sha256=contents[spec.file].sha256 if spec.file else None) for spec in specs
    )


def _task(spec: TaskSpec, contents: dict[str, TaskContent]) -> EvaluationTask:
    if spec.file is None:
        return EvaluationTask(name=spec.task or "", dataset=spec.dataset, revision=spec.revision, limit=spec.limit)
    content = contents[spec.file]
    return EvaluationTask(
        name=content.name,
        file=PinnedFile(path=spec.file, sha256=content.sha256),
        data=tuple(PinnedFile(path=path, sha256=sha256) for path, sha256 in content.data),
        limit=spec.limit,
    )


def _file_contents(folder: Path, raw: dict[str, Any]) -> dict[str, FileContent]:
    """Every text file that is named anywhere by a valid name, read once."""
    named = [source.get("file") for _, source in sources_typed(raw)]
    names = {name for name in named if isinstance(name, str) and is_text_file(name)}
    return {name: file_content(folder, name) for name in names}


def _task_contents(folder: Path, raw: dict[str, Any]) -> dict[str, TaskContent]:
    """Every task file that is named anywhere by a valid name, read once, with the data that it names."""
    named = [task.get("file") for _, task in tasks_typed(raw)]
    names = {name for name in named if isinstance(name, str) and is_task_file(name)}
    return {name: task_content(folder, name) for name in names}
