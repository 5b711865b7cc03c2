"""Rules of GitHub Actions that look at nothing but what they are given."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from tests.workflows.documents import Job
from tests.workflows.reading import WorkflowError

_RIGHTS = ("none", "read", "write")
_KINDS: dict[str, type | tuple[type, ...]] = {"string": str, "number": (int, float), "boolean": bool}
_MATRIX_LIMIT = 256


def in_order(jobs: tuple[Job, ...]) -> Iterator[Job]:
    """Every job after those that it needs, otherwise as written."""
    waiting, done = list(jobs), set[str]()
    while waiting:
        job = next(each for each in waiting if done.issuperset(each.needs))
        waiting.remove(job)
        done.add(job.id)
        yield job


def status(job: Job, jobs: Mapping[str, Job], done: Mapping[str, Mapping[str, Any]]) -> str:
    """What success() and its kin go by before a job: a need that was skipped makes all of them false."""
    results = {done[name]["result"] for name in _ancestors(job, jobs)}
    for bad in ("failure", "cancelled"):
        if bad in results:
            return bad
    return "success" if all(done[need]["result"] == "success" for need in job.needs) else "skipped"


def _ancestors(job: Job, jobs: Mapping[str, Job]) -> set[str]:
    found = set(job.needs)
    for need in job.needs:
        found |= _ancestors(jobs[need], jobs)
    return found


def together(results: list[str]) -> str:
    """The result of several jobs as one."""
    return next((result for result in ("failure", "cancelled", "success") if result in results), "skipped")


def legs(job: Job, matrix: Any) -> list[dict[str, Any]]:
    """The matrix context of each leg; one empty one without a matrix."""
    if matrix is None:
        return [{}]
    if matrix.keys() == {"include"}:
        found = list(matrix["include"])
    elif "include" in matrix or "exclude" in matrix:
        raise WorkflowError(f"{job.id}: this harness knows either axes or `include`")
    else:
        found = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())]
    if not 0 < len(found) <= _MATRIX_LIMIT:
        raise WorkflowError(f"{job.id}: a matrix of {len(found)} jobs")
    return found


def check_inputs(file: str, declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if unknown := given.keys() - declared.keys():
        raise WorkflowError(f"{file} has no inputs {sorted(unknown)}")
    for name, each in declared.items():
        if each.get("required") and name not in given:
            raise WorkflowError(f"{file} needs {name}")
        if name in given and not isinstance(given[name], _KINDS[each["type"]]):
            raise WorkflowError(f"{file}: {name} is no {each['type']}: {given[name]!r}")


def permissions(asked: Mapping[str, str], *, ceiling: Mapping[str, str] | None, fork: bool) -> dict[str, str]:
    """What a job's token may do. ceiling: what the caller of its workflow may give."""
    for scope, right in asked.items():
        if ceiling is not None and _RIGHTS.index(right) > _RIGHTS.index(ceiling.get(scope, "none")):
            raise WorkflowError(f"it asks for {scope}: {right}, more than its caller may give")
    return {scope: "read" if fork and right == "write" else right for scope, right in asked.items()}
