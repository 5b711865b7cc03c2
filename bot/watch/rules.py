"""What no single key shows: files that are missing, models without a target, two models with the same target.

Each rule reads the document as it was typed and looks only at the keys that it needs, so that no mistake elsewhere
hides these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bot.checkpoint.constants import EVALUATION_SEQ_LEN, MIN_EVALUATION_BLOCKS
from bot.records import blocks_by_weight
from bot.watch.document import Lines, Loc
from bot.watch.messages import HOLD_HINT, OVERLAP_HINT, SOURCE_HINT, TASK_HINT
from bot.watch.schema import (
    EXAMPLE_NAMESPACE,
    CalibrationSpec,
    EvaluationSpec,
    ModelSpec,
    SourceSpec,
    TaskSpec,
    WatchlistSpec,
    evaluation_sources,
    source_mistakes,
    task_mistakes,
)
from bot.watch.stock_tasks import stock_problem
from bot.watch.task_files import FileContent, TaskContent
from bot.watch.values import MAX_REPO_ID

Spec = TypeVar("Spec", bound=BaseModel)
Wrong = tuple[Loc, str, str]

_SHA = re.compile(r"[0-9a-f]{40}")


def rule_mistakes(
    raw: dict[str, Any], lines: Lines, contents: Mapping[str, FileContent], tasks: Mapping[str, TaskContent]
) -> Iterator[Wrong]:
    """Place, message and hint of each.

    raw: the document, its models in the long form; contents: of the files that it names; tasks: of the task files.
    """
    yield from _sources(raw, contents)
    yield from _tasks(raw, tasks)
    yield from _evaluations(raw, contents)
    yield from _holds(raw)
    yield from _untrusted_code(raw)
    named = list(_named_targets(raw))
    yield from _without_target(raw, named)
    yield from _clashes(named, lines)
    yield from _examples(named)
    yield from _discover(raw)


def default_target(publish_to: str | None, repo_id: str) -> str | None:
    return None if publish_to is None else f"{publish_to}/{repo_id.split('/')[1]}-awq"


def sources_typed(raw: dict[str, Any]) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """Every source of text in `defaults` and in the models, with its place."""
    for loc, settings in _settings(raw):
        for use in ("calibration", "evaluation"):
            block = settings.get(use)
            sources = block.get("sources") if isinstance(block, dict) else None
            for number, source in enumerate(sources if isinstance(sources, list) else ()):
                if isinstance(source, dict):
                    yield (*loc, use, "sources", number), source


def tasks_typed(raw: dict[str, Any]) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """Every task in `defaults` and in the models, with its place."""
    for loc, settings in _settings(raw):
        tasks = settings.get("tasks")
        for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
            if isinstance(task, dict):
                yield (*loc, "tasks", number), task


def _settings(raw: dict[str, Any]) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """`defaults`, each model and each rule of `discover`, as far as they hold keys."""
    places: list[tuple[Loc, object]] = [(("defaults",), raw.get("defaults"))]
    for name in ("models", "discover"):
        items = raw.get(name)
        places += [((name, number), item) for number, item in enumerate(items if isinstance(items, list) else ())]
    for loc, item in places:
        if isinstance(item, dict):
            yield loc, item


def _settings_at(raw: dict[str, Any], loc: Loc) -> dict[str, Any]:
    """Of one place that `_settings` names, and empty for another."""
    name, *numbers = loc
    items = raw.get(str(name))
    item = items[int(numbers[0])] if numbers and isinstance(items, list) else items
    return item if isinstance(item, dict) else {}


def _sources(raw: dict[str, Any], contents: Mapping[str, FileContent]) -> Iterator[Wrong]:
    for loc, source in sources_typed(raw):
        if source.keys() <= SourceSpec.model_fields.keys():  # else the unknown key may be the one that is missing
            for message in source_mistakes(source):
                yield loc, message, SOURCE_HINT
        content = contents.get(str(source.get("file")))
        if content is not None and content.problem:
            message = f"{loc[-3]} file {source['file']!r} cannot be read: {content.problem}"
            yield (*loc, "file"), message, "Paths are relative to the watchlist."


def _tasks(raw: dict[str, Any], contents: Mapping[str, TaskContent]) -> Iterator[Wrong]:
    seen: set[tuple[Loc, str]] = set()
    for loc, task in tasks_typed(raw):
        for message in task_mistakes(task) if task.keys() <= TaskSpec.model_fields.keys() else ():
            yield loc, message, TASK_HINT
        content = contents.get(str(task.get("file")))
        if content is not None and content.problem:
            yield (*loc, "file"), content.problem, "Paths are relative to the watchlist, data to the task file."
        spec = _valid(TaskSpec, task)
        if spec and spec.task and spec.dataset and (problem := stock_problem(spec.task, spec.dataset)):
            yield (*loc, "task"), problem, "See `lm_eval ls tasks`."
        name = task.get("task") or (content.name if content is not None and not content.problem else None)
        if isinstance(name, str) and (loc[:-1], name) in seen:
            yield loc, f"the task {name} is there twice", "Keep one, or give one another name in its file."
        seen.add((loc[:-1], str(name)))


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
        if loc[0] == "discover":
            message = "trust_remote_code in a rule: no person has read the code of what it will find"
            hint = "Set `trust_remote_code: false` in the rule, and list such models under `models`."
            yield (*loc, "trust_remote_code"), message, hint
            continue
        if not _SHA.fullmatch(str(effective.get("revision", "main"))):
            message = f"{settings.get('repo_id')}: trust_remote_code without a pinned revision"
            place = loc if "trust_remote_code" in settings else ("defaults",)
            hint = "Set `revision` to the full commit sha whose code you have read."
            yield (*place, "trust_remote_code"), message, hint


# --- evaluation ---------------------------------------------------------------------------------------------


def _evaluations(raw: dict[str, Any], contents: Mapping[str, FileContent]) -> Iterator[Wrong]:
    for loc, _ in _settings(raw):
        calibration = _valid(CalibrationSpec, _effective(raw, loc, "calibration"))
        evaluation = _valid(EvaluationSpec, _effective(raw, loc, "evaluation"))
        if calibration is not None and evaluation is not None:
            yield from _overlaps(raw, loc, calibration, evaluation, contents)
            yield from _too_few_blocks(raw, loc, calibration, evaluation)
            yield from _too_short(raw, loc, evaluation, contents)


def _overlaps(
    raw: dict[str, Any],
    loc: Loc,
    calibration: CalibrationSpec,
    evaluation: EvaluationSpec,
    contents: Mapping[str, FileContent],
) -> Iterator[Wrong]:
    """Text that both would read; shorter passages that two texts share are found when they are read."""
    measured = evaluation_sources(evaluation, calibration)
    for (number, one), (other_number, other) in product(enumerate(measured), enumerate(calibration.sources)):
        if (what := _same_text(one, other, contents)) is None:
            continue
        use, index = (
            ("evaluation", number) if "sources" in evaluation.model_fields_set else ("calibration", other_number)
        )
        place = (*_typed_at(raw, loc, use, "sources"), use, "sources", index)
        yield place, f"evaluation and calibration read the same {what}", OVERLAP_HINT


def _same_text(one: SourceSpec, other: SourceSpec, contents: Mapping[str, FileContent]) -> str | None:
    """The split or file that both are, whatever the commit or the column. Built-in text has splits of its own."""
    if one.dataset and other.dataset and one.dataset.lower() == other.dataset.lower():
        if one.split and other.split and not _same_split(one.split, other.split):
            return None
        return f"split, {one.split or other.split or 'all'} of {one.dataset}"
    if one.file and other.file:
        hashes = {contents[name].sha256 for name in (one.file, other.file) if name in contents}
        if one.file == other.file or (len(hashes) == 1 and None not in hashes):
            return f"file, {one.file}" if one.file == other.file else f"text, {one.file} and {other.file}"
    return None


def _same_split(one: str, other: str) -> bool:
    """`train` may be the same as `en/train`."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _too_few_blocks(
    raw: dict[str, Any], loc: Loc, calibration: CalibrationSpec, evaluation: EvaluationSpec
) -> Iterator[Wrong]:
    blocks = evaluation.tokens // EVALUATION_SEQ_LEN
    sources = evaluation_sources(evaluation, calibration)
    least = min(blocks_by_weight([source.weight for source in sources], blocks))
    if least < MIN_EVALUATION_BLOCKS:
        key = "sources" if "sources" in evaluation.model_fields_set else "tokens"
        place = (*_typed_at(raw, loc, "evaluation", key), "evaluation", key)
        message = (
            f"evaluation: {evaluation.tokens:,} tokens give {least} blocks of {EVALUATION_SEQ_LEN} to a source"
        )
        yield (
            place,
            f"{message}; at least {MIN_EVALUATION_BLOCKS} are needed",
            "Raise `tokens`, or name fewer sources.",
        )


def _too_short(
    raw: dict[str, Any], loc: Loc, evaluation: EvaluationSpec, contents: Mapping[str, FileContent]
) -> Iterator[Wrong]:
    """Plain text with fewer bytes than the tokens that are asked of it, as a token has a byte or more."""
    if "sources" not in evaluation.model_fields_set:
        return
    weights = [source.weight for source in evaluation.sources]
    quotas = blocks_by_weight(weights, evaluation.tokens // EVALUATION_SEQ_LEN)
    for number, (source, blocks) in enumerate(zip(evaluation.sources, quotas, strict=True)):
        content = contents.get(source.file or "")
        is_plain = source.file is not None and source.file.endswith((".txt", ".md"))
        tokens = blocks * (EVALUATION_SEQ_LEN - 1)  # a block may begin with a special token
        if is_plain and content is not None and not content.problem and content.size_bytes < tokens:
            place = (*_typed_at(raw, loc, "evaluation", "sources"), "evaluation", "sources", number)
            message = f"evaluation file {source.file!r} has {content.size_bytes:,} bytes"
            message += f", too few for {tokens:,} tokens"
            yield place, message, "Give a longer text, lower `tokens`, or give it less `weight`."


def _effective(raw: dict[str, Any], loc: Loc, use: str) -> dict[str, Any]:
    """What was typed under `calibration` or `evaluation` for a model, over what `defaults` have there."""
    blocks = [_settings_at(raw, place).get(use) for place in (("defaults",), loc)]
    return {key: value for block in blocks if isinstance(block, dict) for key, value in block.items()}


def _typed_at(raw: dict[str, Any], loc: Loc, use: str, key: str) -> Loc:
    """The model, or `defaults` where it inherits the setting."""
    block = _settings_at(raw, loc).get(use)
    return loc if isinstance(block, dict) and key in block else ("defaults",)


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
        model = _valid(ModelSpec, names) if loc[0] == "models" else None
        if model is not None:
            target = model.target or default_target(publish_to, model.repo_id) or ""
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


# --- discover -----------------------------------------------------------------------------------------------


def _discover(raw: dict[str, Any]) -> Iterator[Wrong]:
    """Rules that would publish nowhere, or in the place of the example."""
    absent = raw.get("publish_to") is None and raw.keys() <= WatchlistSpec.model_fields.keys()
    for loc, settings in _settings(raw):
        if loc[0] != "discover":
            continue
        place = settings.get("publish_to", raw.get("publish_to"))
        if absent and place is None:
            hint = "Add `publish_to: your-namespace` at the top, or to this rule."
            yield loc, f"discover {settings.get('author')}: nowhere to publish to", hint
        elif place == EXAMPLE_NAMESPACE:
            where = (*loc, "publish_to") if "publish_to" in settings else ("publish_to",)
            hint = "Set `publish_to` to your user or organisation on the Hub."
            yield where, f"publishes to {EXAMPLE_NAMESPACE}, which is only the example", hint
