"""Where the models of a watchlist publish, seen side by side: two in one place, or in nobody's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bot.watch.messages import Lines, Loc
from bot.watch.schema import ModelSpec, WatchlistSpec

Spec = TypeVar("Spec", bound=BaseModel)
Wrong = tuple[Loc, str, str]

_EXAMPLE = "your-namespace"  # in the file that the template brings


def default_target(publish_to: str | None, model: ModelSpec) -> str | None:
    return None if publish_to is None else f"{publish_to}/{model.repo_id.split('/')[1]}-awq"


def target_mistakes(raw: dict[str, Any], lines: Lines) -> Iterator[Wrong]:
    """Place, message and hint of each. raw: the document, its models in the long form.

    Looks at the models that are valid by themselves, whatever is wrong elsewhere: nobody should mend a list twice.
    """
    named = list(_named_targets(raw))
    yield from _clashes(named, lines)
    yield from _examples(named)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """A model and where it publishes, empty if nowhere. own: it names the target itself."""

    loc: Loc
    repo_id: str
    target: str
    own: bool


def _named_targets(raw: dict[str, Any]) -> Iterator[_Named]:
    models = raw.get("models")
    top = _valid(WatchlistSpec, {"publish_to": raw.get("publish_to"), "models": []})
    publish_to = None if top is None else top.publish_to
    for number, item in enumerate(models if isinstance(models, list) else ()):
        model = _valid(ModelSpec, item)
        if model is not None:
            target = model.target or default_target(publish_to, model) or ""
            own = model.target is not None
            yield _Named(loc=("models", number), repo_id=model.repo_id, target=target, own=own)


def _valid(kind: type[Spec], raw: object) -> Spec | None:
    try:
        return kind.model_validate(raw)
    except ValidationError:
        return None


def _clashes(named: list[_Named], lines: Lines) -> Iterator[Wrong]:
    """Targets that two models share, or that are themselves watched, differing in case or not."""
    sources = {item.repo_id.lower() for item in named}
    first: dict[str, _Named] = {}
    for item in (item for item in named if item.target):
        other = first.setdefault(item.target.lower(), item)
        if other is not item:
            there = f"and so does line {lines.of(other.loc)}"
            message = f"{item.repo_id}: publishes to {item.target}, {there}"
            yield item.loc, message, "Give one of them a `target`."
        if item.target.lower() in sources:
            message = f"{item.repo_id}: the target {item.target} is itself on the watchlist"
            yield item.loc, message, "Choose another `target`."


def _examples(named: list[_Named]) -> Iterator[Wrong]:
    """The example's namespace left standing: told once where models take it from, and in each that names it."""
    message = f"publishes to {_EXAMPLE}, which is only the example"
    left = [item for item in named if item.target.startswith(f"{_EXAMPLE}/")]
    if any(not item.own for item in left):
        yield ("publish_to",), message, "Set `publish_to` to your user or organisation on the Hub."
    for item in left:
        if item.own:
            hint = "Name your user or organisation on the Hub there, or leave `target` out."
            yield (*item.loc, "target"), f"{item.repo_id}: {message}", hint
