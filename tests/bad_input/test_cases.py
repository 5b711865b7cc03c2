"""Every case has its right outcome: refused by name or accepted, soon, and nothing else is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bot.errors import BotError
from tests.bad_input.case import Accepted, Case, Kind, Place, Refused
from tests.bad_input.cases import CASES, IMPOSSIBLE, as_markdown
from tests.bad_input.guard import limit, untouched
from tests.bad_input.places import meet
from tests.bad_input.plans import TRACEBACK, Planned, plan_all, planned_text, planned_together, repo_of

_KINDS = tuple(kind for kind in Kind if any(each.kind is kind for each in CASES if planned_together(each)))

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Kind], Planned]]:
    """The cases of a kind that the plan meets, planned together the first time that one is asked for."""
    done: dict[Kind, Planned | BaseException] = {}

    def of(kind: Kind) -> Planned:
        if kind not in done:
            root = tmp_path_factory.mktemp("planned")
            try:
                with untouched(root / "beside"):
                    done[kind] = plan_all(_together(kind), root, patch)
            except BaseException as error:
                # All cases of the kind fail; none of them tries again.
                done[kind] = error
        found = done[kind]
        if isinstance(found, BaseException):
            raise found
        return found

    with pytest.MonkeyPatch.context() as patch:
        yield of


def _together(kind: Kind) -> list[Case]:
    return [case for case in CASES if case.kind is kind and planned_together(case)]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.place.value}-{case.kind.name.lower()}-{case.name}"
)
def test_case(
    case: Case,
    planned: Callable[[Kind], Planned],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
) -> None:
    try:
        found = _outcome(case, planned, tmp_path, monkeypatch)
    except BaseException:  # pytest's, for what takes too long, is no Exception
        record_property("input", "traceback")
        raise
    assert isinstance(found, (str, BotError))
    record_property("input", "refused" if isinstance(found, BotError) else "accepted")
    if isinstance(found, BotError):
        _check_refusal(case, found)
    else:
        _check_acceptance(case, found)


def _outcome(
    case: Case, planned: Callable[[Kind], Planned], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> str | BotError:
    """What came out, or the error that a user sees."""
    try:
        if planned_together(case):
            return planned_text(planned(case.kind).plan, case)
        (folder / "here").mkdir()
        with untouched(folder / "beside"), limit():
            return meet(case, folder / "here", monkeypatch)
    except BotError as error:
        return error


def _check_refusal(case: Case, error: BotError) -> None:
    shown = f"{type(error).__name__} ({error.exit_code}): {error.message}\nhint: {error.hint}"
    assert isinstance(case.right, Refused), f"refused, but nothing is wrong for the user: {shown}"
    assert error.exit_code == case.right.exit_code, shown
    said = f"{error.message} {error.hint}"
    assert case.right.names in said, f"does not name {case.right.names!r}: {shown}"
    assert [word for word in case.right.says if word not in said] == [], f"does not say so: {shown}"
    assert [word for word in case.right.never if word in said] == [], f"says what it must not: {shown}"
    assert error.hint, f"no hint: {shown}"
    assert error.message.isprintable(), repr(error.message)
    assert error.hint.isprintable(), repr(error.hint)


def _check_acceptance(case: Case, text: str) -> None:
    assert isinstance(case.right, Accepted), f"accepted, which it must not be: {text[:500]!r}"
    assert TRACEBACK not in text, text
    assert [word for word in case.right.says if word not in text] == [], f"not said: {text[-2000:]!r}"
    assert [word for word in case.right.never if word in text] == [], f"said: {text[-2000:]!r}"


# --- after the cause is mended --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", _KINDS)
def test_what_the_plan_refused_is_planned_once_it_is_mended(
    kind: Kind, planned: Callable[[Kind], Planned]
) -> None:
    done = planned(kind)
    assert {job.entry.repo_id for job in done.mended.jobs} == {repo_of(case) for case in _together(kind)}
    assert not done.work.exists()


# --- the table ------------------------------------------------------------------------------------------------


def test_every_cell_has_cases_or_a_reason_why_there_are_none() -> None:
    filled = {(case.kind, case.place) for case in CASES}
    assert filled | IMPOSSIBLE.keys() == {(kind, place) for kind in Kind for place in Place}
    assert not filled & IMPOSSIBLE.keys()


def test_names_of_cases_are_unique_in_their_cell() -> None:
    names = [(case.kind, case.place, case.name) for case in CASES]
    assert len(set(names)) == len(names)


def test_the_readme_lists_the_cases() -> None:
    written = Path(__file__).with_name("README.md").read_text()
    assert written == as_markdown(), "run: python -m tests.bad_input.cases > tests/bad_input/README.md"
