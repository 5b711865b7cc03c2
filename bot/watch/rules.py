"""What no single key shows: files that are missing, models without a target, two models with the same target.

Each rule reads the document as it was typed and looks only at the keys that it needs, so that no mistake elsewhere
hides these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bot.watch.document import Lines, Loc
from bot.watch.messages import HOLD_HINT, SOURCE_HINT
from bot.watch.schema import EXAMPLE_NAMESPACE, MAX_REPO_ID, ModelSpec, SourceSpec, WatchlistSpec, source_mistakes

Spec = TypeVar("Spec", bound=BaseModel)
Wrong = tuple[Loc, str, str]

_SHA = re.compile(r"[0-9a-f]{40}")


def rule_mistakes(raw: dict[str, Any], lines: Lines, problems: Mapping[str, str]) -> Iterator[Wrong]:
    """Place, message and hint of each.

    raw: the document, its models in the long form; problems: calibration file -> why it cannot be read.
    """
    yield from _sources(raw, problems)
    yield from _holds(raw)
    yield from _untrusted_code(raw)
    named = list(_named_targets(raw))
    yield from _without_target(raw, named)
    yield from _clashes(named, lines)
    yield from _examples(named)


def default_target(publish_to: str | None, model: ModelSpec) -> str | None:
    return None if publish_to is None else f"{publish_to}/{model.repo_id.split('/')[1]}-awq"


def sources_typed(raw: dict[str, Any]) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """Every calibration source in `defaults` and in the models, with its place."""
    for loc, settings in _settings(raw):
        calibration = settings.get("calibration")
        sources = calibration.get("sources") if isinstance(calibration, dict) else None
        for number, source in enumerate(sources if isinstance(sources, list) else ()):
            if isinstance(source, dict):
                yield (*loc, "calibration", "sources", number), source


def _settings(raw: dict[str, Any]) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """`defaults` and each model, as far as they hold keys."""
    models = raw.get("models")
    numbered = enumerate(models if isinstance(models, list) else ())
    places: list[tuple[Loc, object]] = [(("defaults",), raw.get("defaults"))]
    for loc, item in [*places, *((("models", number), item) for number, item in numbered)]:
        if isinstance(item, dict):
            yield loc, item


def _sources(raw: dict[str, Any], problems: Mapping[str, str]) -> Iterator[Wrong]:
    for loc, source in sources_typed(raw):
        if source.keys() <= SourceSpec.model_fields.keys():  # else the unknown key may be the one that is missing
            for message in source_mistakes(source):
                yield loc, message, SOURCE_HINT
        if problem := problems.get(str(source.get("file"))):
            message = f"calibration file {source['file']!r} cannot be read: {problem}"
            yield (*loc, "file"), message, "Paths are relative to the watchlist."


def _holds(raw: dict[str, Any]) -> Iterator[Wrong]:
    for loc, settings in _settings(raw):
        if "hold" in settings and settings["hold"] is None:
            yield (*loc, "hold"), "hold: has no reason, so nothing is put on hold", HOLD_HINT


def _untrusted_code(raw: dict[str, Any]) -> Iterator[Wrong]:
    defaults = raw.get("defaults") if isinstance(raw.get("defaults"), dict) else {}
    for loc, settings in _settings(raw):
        effective = {**(defaults or {}), **settings}
        if loc == ("defaults",) or effective.get("trust_remote_code") is not True:
            continue
        if not _SHA.fullmatch(str(effective.get("revision", "main"))):
            message = f"{settings.get('repo_id')}: trust_remote_code without a pinned revision"
            place = loc if "trust_remote_code" in settings else ("defaults",)
            hint = "Set `revision` to the full commit sha whose code you have read."
            yield (*place, "trust_remote_code"), message, hint


# --- targets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """A model and where it publishes, empty if nowhere. explicit: it names the target itself."""

    loc: Loc
    repo_id: str
    target: str
    explicit: bool


def _named_targets(raw: dict[str, Any]) -> Iterator[_Named]:
    top = _valid(WatchlistSpec, {"publish_to": raw.get("publish_to"), "models": []})
    publish_to = None if top is None else top.publish_to
    for loc, settings in _settings(raw):
        names = {key: settings[key] for key in ("repo_id", "target") if key in settings}
        model = None if loc == ("defaults",) else _valid(ModelSpec, names)
        if model is not None:
            target = model.target or default_target(publish_to, model) or ""
            yield _Named(loc=loc, repo_id=model.repo_id, target=target, explicit=model.target is not None)


def _valid(kind: type[Spec], raw: object) -> Spec | None:
    try:
        return kind.model_validate(raw)
    except ValidationError:
        return None


def _without_target(raw: dict[str, Any], named: list[_Named]) -> Iterator[Wrong]:
    # A `publish_to` that is not valid, or a top-level key that is not known, is reported already.
    absent = raw.get("publish_to") is None and raw.keys() <= WatchlistSpec.model_fields.keys()
    for item in named:
        if absent and not item.target:
            hint = "Add `publish_to: your-namespace` at the top, or a `target` here."
            yield item.loc, f"{item.repo_id}: nowhere to publish to", hint
        elif len(item.target) > MAX_REPO_ID:
            message = f"{item.repo_id}: the target {item.target} has more than {MAX_REPO_ID} characters"
            yield item.loc, message, "Give it a shorter `target`."


def _clashes(named: list[_Named], lines: Lines) -> Iterator[Wrong]:
    """Targets that two models share, or that are themselves watched. The Hub's names ignore case."""
    sources = {item.repo_id.lower() for item in named}
    first: dict[str, _Named] = {}
    for item in (item for item in named if item.target):
        other = first.setdefault(item.target.lower(), item)
        if other is not item:
            there = f"and so does line {lines.of(other.loc)}"
            message = f"{item.repo_id}: publishes to {item.target}, {there}"
            again = item.repo_id.lower() == other.repo_id.lower()
            yield (
                item.loc,
                message,
                "Remove one, or give it a `target`." if again else "Give one of them a `target`.",
            )
        if item.target.lower() in sources:
            message = f"{item.repo_id}: the target {item.target} is itself on the watchlist"
            yield item.loc, message, "Choose another `target`."


def _examples(named: list[_Named]) -> Iterator[Wrong]:
    """The example's namespace, left as it was: reported once where models inherit it, and wherever it is typed."""
    message = f"publishes to {EXAMPLE_NAMESPACE}, which is only the example"
    unchanged = [item for item in named if item.target.startswith(f"{EXAMPLE_NAMESPACE}/")]
    if any(not item.explicit for item in unchanged):
        yield ("publish_to",), message, "Set `publish_to` to your user or organisation on the Hub."
    for item in unchanged:
        if item.explicit:
            hint = "Name your user or organisation on the Hub there, or leave `target` out."
            yield (*item.loc, "target"), f"{item.repo_id}: {message}", hint
