"""A person who makes a repository from the template: their actions on GitHub's pages, and their GPU machine."""

from __future__ import annotations

import contextlib
import subprocess
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import github
import torch
from github.EnvironmentDeploymentBranchPolicy import EnvironmentDeploymentBranchPolicyParams
from github.Repository import Repository

from tests.support.github_api.id_token import REPOSITORY
from tests.support.github_api.settings import TEMPLATE
from tests.support.sandbox import wait_for
from tests.workflows.interpreter.documents import ROOT

_SCRIPT = ROOT / ".github" / "runner" / "jit-runner.sh"
# Replaces in-container.sh: tests the machine, then waits while the interpreter runs a job's steps.
_EXEC = """\
#!/usr/bin/env bash
set -euo pipefail
if [[ $1 == awq-bot ]]; then exec awq-bot doctor --runner --work "$RUNNER_WORK/job"; fi
touch "$SIGNS/waiting"
until [[ -e $SIGNS/done ]]; do sleep 0.1; done
rm "$SIGNS/done"
"""


class Pages:
    """GitHub's pages. Each action is the request that the page itself sends. Use as a context manager."""

    def __init__(self, url: str, token: str) -> None:
        self._api = github.Github(auth=github.Auth.Token(token), base_url=url, lazy=True, seconds_between_writes=0)

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *ended: object) -> None:
        self._api.close()

    @property
    def repository(self) -> Repository:
        return self._api.get_repo(REPOSITORY)

    def use_this_template(self, *, private: bool) -> None:
        owner, name = REPOSITORY.split("/")
        asked = {"owner": owner, "name": name, "private": private}
        self._api.requester.requestJsonAndCheck("POST", f"/repos/{TEMPLATE}/generate", input=asked)

    def create_environment(self, name: str, secrets: dict[str, str], *, branch: str) -> None:
        policy = EnvironmentDeploymentBranchPolicyParams(protected_branches=False, custom_branch_policies=True)
        made = self.repository.create_environment(name, deployment_branch_policy=policy)
        path = f"/repos/{REPOSITORY}/environments/{name}/deployment-branch-policies"
        self._api.requester.requestJsonAndCheck("POST", path, input={"name": branch})
        for key, value in secrets.items():
            made.create_secret(key, value)

    def run_workflow(self, file: str, **inputs: bool) -> None:
        assert self.repository.get_workflow(file).create_dispatch("main", dict(inputs))


@dataclass
class GpuMachine:
    """A machine on which jit-runner.sh runs one job at a time. environment: that of its jobs.

    Its Python finds what is installed deployment, and installs beside it, as the runner's image has it.
    """

    root: Path
    tools: str
    endpoint: str
    python: Path = field(init=False)
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.python = self.root / "python"
        venv.create(self.python, symlinks=True, with_pip=True)
        [packages] = self.python.glob("lib/*/site-packages")
        (packages / "image.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
        (self.root / "signs").mkdir()
        executable = self.root / "exec"
        executable.write_text(_EXEC)
        executable.chmod(0o755)
        path = f"{self.python / 'bin'}:{self.tools}"
        self.environment = {"PATH": path, "AWQ_BOT_WORK": str(self.work / "job" / "work")}

    @property
    def work(self) -> Path:
        return self.root / "srv" / "runner"

    @contextlib.contextmanager
    def waiting_for_one_job(self, api_url: str, token: str, labels: tuple[str, ...]) -> Iterator[None]:
        """One cycle of the script; at the end it has cleaned up."""
        secret = self.root / "token"
        secret.write_text(token)
        secret.chmod(0o600)
        settings = {
            "PATH": self.tools,
            "HF_ENDPOINT": self.endpoint,
            "GITHUB_API_URL": api_url,
            "RUNNER_SCOPE": f"repos/{REPOSITORY}",
            "RUNNER_LABELS": ",".join(labels),
            "RUNNER_WORK": str(self.work),
            "RUNNER_EXEC": str(self.root / "exec"),
            "RUNNER_TOKEN_FILE": str(secret),
            "SIGNS": str(self.root / "signs"),
        }
        waiting, done = self.root / "signs" / "waiting", self.root / "signs" / "done"
        with subprocess.Popen([str(_SCRIPT)], env=settings, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_for(lambda: waiting.exists() or process.poll() is not None)
                assert process.poll() is None, process.communicate()
                yield
            finally:
                done.touch()
                _, said = process.communicate(timeout=60)
        waiting.unlink()
        assert process.returncode == 0, said
