"""A release that is ready to be published to a local Hub, and what a test asks of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bot.errors import BotError, PublishError
from bot.hub.publish import Artifact, finish, publish
from bot.hub.session import Hub
from bot.hub.targets import read_targets
from bot.jobs import pipeline
from bot.localhub import LocalHub
from bot.records import Job, Progress, Publication, Published, no_progress
from tests.support.repos import SOURCE, TARGET, as_bot, make_artifact, release_job


@dataclass(frozen=True)
class Release:
    """A job and its artifact. caller: who publishes it; `bot`, unless a test says otherwise."""

    hub: LocalHub
    job: Job
    artifact: Artifact
    caller: Hub

    @classmethod
    def of(
        cls,
        hub: LocalHub,
        folder: Path,
        files: dict[str, bytes] | None = None,
        *,
        caller: Hub | None = None,
        **entry: Any,
    ) -> Release:
        """Of what is at the source now. files: path -> content of what quantizing made."""
        job = release_job(hub, **entry)
        return cls(hub, job, make_artifact(folder / job.job_id, job, files), caller or as_bot(hub))

    def next(
        self, folder: Path, files: dict[str, bytes] | None = None, config: str = "{}", **entry: Any
    ) -> Release:
        """The release after a commit to the source."""
        self.hub.seed(SOURCE, {"config.json": config})
        return Release.of(self.hub, folder, files, caller=self.caller, **entry)

    def publish(self, progress: Progress = no_progress) -> Publication:
        return publish(self.caller, self.job, self.artifact, progress)

    def finish(self) -> Publication:
        return finish(self.caller, self.job, no_progress)

    def fails(self, match: str, kind: type[BotError] = PublishError, progress: Progress = no_progress) -> BotError:
        """The error of publishing it, whose message matches."""
        with pytest.raises(kind, match=match) as caught:
            self.publish(progress)
        assert caught.value.hint
        return caught.value

    def by(self, caller: Hub) -> Release:
        return replace(self, caller=caller)

    @property
    def paths(self) -> set[str]:
        """What the repo holds once it is published."""
        return {file.path for file in self.artifact.files} | {".gitattributes"}

    @property
    def state(self) -> Published:
        return read_targets(as_bot(self.hub), [self.job.entry])[0]

    @property
    def complete(self) -> bool:
        found = self.state
        return found.complete and found.provenance is not None and found.provenance.tag == self.job.tag

    @property
    def private(self) -> bool:
        return self.hub.repo(TARGET).settings().private

    def open_target(self) -> tuple[str, ...]:
        """What `create-target` changes."""
        target = pipeline.create_targets(as_bot(self.hub), [self.job.entry])[0]
        assert target.problem == ""
        return target.done
