"""Who could run code on a self-hosted runner, and what that code could reach: `doctor --runner`.

https://docs.github.com/en/actions/reference/security/secure-use#hardening-for-self-hosted-runners
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bot.github.environment import Actions
from bot.records import Check

_DOCKER_SOCKET = Path("/var/run/docker.sock")
_PUBLIC = (
    "See `Public repositories` in the README: approval for all outside contributors, and runners for one job."
)


def check_isolation() -> Iterator[Check]:
    """What a model's files could do to this machine, or in our name, if one of them ran as code."""
    if os.geteuid() == 0:
        fix = "Run the runner under its own account: see .github/runner."
        yield Check(name="account", status="warning", found="root", fix=fix)
    else:
        yield Check(name="account", status="ok", found=f"uid {os.geteuid()}, not root")
    if os.access(_DOCKER_SOCKET, os.W_OK):
        fix = "Access to the Docker socket is root access to its host: keep it away from jobs."
        yield Check(name="docker", status="warning", found=f"{_DOCKER_SOCKET} is writable", fix=fix)
    if os.environ.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN"):
        fix = "Remove `id-token: write` from the job that quantizes; only the one that publishes needs it."
        yield Check(name="id-token", status="failed", found="this job may request one", fix=fix)


def check_exposure(actions: Actions, *, runner: bool) -> Iterator[Check]:
    """Nothing outside GitHub Actions. runner: this is a self-hosted runner."""
    if not actions.inside or not runner:
        return
    if actions.event_name.startswith("pull_request"):
        fix = "Anyone can open a pull request: keep self-hosted runners out of workflows that those start."
        found = f"started by {actions.event_name}"
        yield Check(name="event", status="failed", found=found, fix=fix)
    if actions.is_public is False:
        yield Check(name="repository", status="ok", found=f"{actions.repository} is private")
    elif actions.is_public:
        found = f"{actions.repository} is public, and this runner is self-hosted"
        yield Check(name="repository", status="warning", found=found, fix=_PUBLIC)
    else:
        found = f"GitHub does not say whether {actions.repository} is public"
        yield Check(name="repository", status="unknown", found=found, fix=_PUBLIC)
