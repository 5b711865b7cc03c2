"""Who could have a job run on our machines: the part of `doctor` that GitHub tells a job."""

from __future__ import annotations

from collections.abc import Iterator

from bot.github.environment import Actions
from bot.records import Check

_PRIVATE = (
    "See `Public repositories` in the README: approval for all outside contributors, and runners for one job."
)


def check_exposure(actions: Actions, *, runner: bool) -> Iterator[Check]:
    """Nothing outside GitHub Actions. runner: this is a machine of ours."""
    if not actions.inside or not runner:
        return
    if actions.event_name.startswith("pull_request"):
        fix = "Anybody can open a pull request: keep self-hosted runners out of workflows that those start."
        found = f"started by {actions.event_name}"
        yield Check(name="event", status="failed", found=found, fix=fix)
    if actions.is_public is False:
        yield Check(name="repository", status="ok", found=f"{actions.repository} is private")
    elif actions.is_public:
        found = f"{actions.repository} is public, and this runner is ours"
        yield Check(name="repository", status="warning", found=found, fix=_PRIVATE)
    else:
        found = f"whether {actions.repository} is public is not said"
        yield Check(name="repository", status="unknown", found=found, fix=_PRIVATE)
