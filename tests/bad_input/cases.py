"""All cases, and the table of kinds and places; `python -m tests.bad_input.cases` prints it as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.bad_input import (
    answers,
    companions,
    configs,
    environment,
    names,
    rows,
    templates,
    tensors,
    tokenizers,
    weights,
)
from tests.bad_input.case import Accepted, Case, Kind, Place

CASES: tuple[Case, ...] = (
    *weights.CASES,
    *tensors.CASES,
    *configs.CASES,
    *tokenizers.CASES,
    *templates.CASES,
    *rows.CASES,
    *names.CASES,
    *companions.CASES,
    *environment.CASES,
    *answers.CASES,
)

_COPIED = "pull compares sizes and hashes, and reads nothing of it."
_RENDERED = "by then a template has made text of the rows, and the tokenizer has made ids of that."
_CHECKED_NAMES = "these open files by names that the plan has checked."
_NOT_READ = "copied as it is, and not read."
_ALLOWLIST = "the child process sees only the variables on an allowlist; tests/jobs/test_worker.py has them."
_OFFLINE = "the child process has no network."

# Cells that no input can reach, and why.
IMPOSSIBLE: dict[tuple[Kind, Place], str] = {
    (Kind.WEIGHTS, Place.TOKENIZER): "the tokenizer reads no weights.",
    (Kind.CONFIG, Place.PULL): _COPIED,
    (Kind.CONFIG, Place.CARD): "the card quotes nothing of config.json.",
    (Kind.TOKENIZER, Place.PULL): _COPIED,
    (Kind.TOKENIZER, Place.SKELETON): "the skeleton reads config.json and headers alone.",
    (Kind.TEMPLATE, Place.PULL): _COPIED,
    (Kind.TEMPLATE, Place.SKELETON): "the skeleton reads config.json and headers alone.",
    (Kind.TEMPLATE, Place.LAYERS): _RENDERED,
    (Kind.TEMPLATE, Place.EVALUATION): "it measures on plain text, without a template.",
    (Kind.ROWS, Place.SKELETON): "the skeleton reads config.json and headers alone.",
    (Kind.ROWS, Place.LAYERS): _RENDERED,
    (Kind.NAMES, Place.TOKENIZER): _CHECKED_NAMES,
    (Kind.NAMES, Place.SKELETON): _CHECKED_NAMES,
    (Kind.NAMES, Place.LAYERS): _CHECKED_NAMES,
    (Kind.NAMES, Place.EVALUATION): _CHECKED_NAMES,
    (Kind.COMPANIONS, Place.PULL): _COPIED,
    (Kind.COMPANIONS, Place.SKELETON): "the skeleton reads config.json and headers alone.",
    (Kind.COMPANIONS, Place.LAYERS): _NOT_READ,
    (Kind.COMPANIONS, Place.EVALUATION): _NOT_READ,
    (Kind.ENVIRONMENT, Place.TOKENIZER): _ALLOWLIST,
    (Kind.ENVIRONMENT, Place.SKELETON): _ALLOWLIST,
    (Kind.ENVIRONMENT, Place.LAYERS): _ALLOWLIST,
    (Kind.ENVIRONMENT, Place.EVALUATION): _ALLOWLIST,
    (Kind.ENVIRONMENT, Place.CARD): "rendering a card reads records and no variable.",
    (Kind.ANSWERS, Place.TOKENIZER): _OFFLINE,
    (Kind.ANSWERS, Place.SKELETON): _OFFLINE,
    (Kind.ANSWERS, Place.LAYERS): _OFFLINE,
    (Kind.ANSWERS, Place.EVALUATION): _OFFLINE,
    (Kind.ANSWERS, Place.CARD): "the card is made of records that the plan has read; wrong facts are under names.",
}


def as_markdown() -> str:
    """The README of this folder."""
    return "\n".join((*_table(), *_impossible(), *_list())) + "\n"


def _table() -> Iterator[str]:
    counts = Counter((case.kind, case.place) for case in CASES)
    yield "# Wrong inputs\n"
    yield "Written by `python -m tests.bad_input.cases`: what upstream, a user's rows, the environment or the Hub"
    yield "can have wrong, who meets it, and the number of cases. `x`: impossible, see below.\n"
    yield f"| | {' | '.join(place.value for place in Place)} |"
    yield f"|---|{'---:|' * len(Place)}"
    for kind in Kind:
        cells = (str(counts[kind, place] or "x") for place in Place)
        yield f"| {kind.value} | {' | '.join(cells)} |"


def _impossible() -> Iterator[str]:
    yield "\n## Impossible\n"
    for (kind, place), reason in IMPOSSIBLE.items():
        yield f"- {kind.value}, {place.value}: {reason}"


def _list() -> Iterator[str]:
    yield "\n## Cases\n"
    yield "The report is where people met the same; the inputs are our own. Without one, it was found here."
    for kind in Kind:
        yield f"\n### {kind.value}\n"
        yield "| case | place | right | report |"
        yield "|---|---|---|---|"
        for case in (each for each in CASES if each.kind is kind):
            right = (
                "accepted" if isinstance(case.right, Accepted) else f"refused, exit code {case.right.exit_code}"
            )
            yield f"| {case.name} | {case.place.value} | {right} | {case.report or 'found here'} |"


if __name__ == "__main__":
    print(as_markdown(), end="")
