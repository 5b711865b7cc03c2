"""One job's folder on disk: the records of the stages that are done, and whether they are still valid.

job.json  source/  calibration/  layers/  quantized/  card/
used-text.npz (what calibration used, for evaluation)
headers.json  weights.json  quantized.json  reference.json  report.json  card.json  publication.json
result.json (of a stage that failed)
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import bot
from bot.checkpoint.constants import QUANTIZER_VERSIONS, tool_versions
from bot.errors import EnvironmentProblem, WatchlistError
from bot.files import locked, refuse_link, refuse_links, write_atomic
from bot.records import (
    Card,
    Headers,
    Job,
    JobResult,
    Publication,
    QuantizedModel,
    Reference,
    Report,
    Weights,
    from_json,
    sha256_of,
    to_json,
)
from bot.watch.stock_tasks import lm_eval_version

Record = TypeVar("Record")

_FILES: dict[type, str] = {
    Job: "job.json",
    Headers: "headers.json",
    Weights: "weights.json",
    QuantizedModel: "quantized.json",
    Reference: "reference.json",
    Report: "report.json",
    Card: "card.json",
    Publication: "publication.json",
    JobResult: "result.json",
}


class JobDir:
    """The folder `work/<job_id>/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path / "source"
        self.calibration = path / "calibration"
        self.used_text = path / "used-text.npz"
        self.layers = path / "layers"
        self.quantized = path / "quantized"
        self.card = path / "card"
        self.hf_home = path / "hf_home"
        self.lock = path / ".lock"

    @property
    def job(self) -> Job:
        """Raises WatchlistError when the folder holds no job, EnvironmentProblem as refuse_links does."""
        self.refuse_links()
        job = self.load(Job)
        if job is None:
            raise WatchlistError(
                f"{self.path}: no job.json that this version can read",
                hint="Pass a folder that `awq-bot run` created below its --work.",
            )
        return job

    def record_path(self, kind: type) -> Path:
        return self.path / _FILES[kind]

    def load(self, kind: type[Record], *, inputs: object = None) -> Record | None:
        """The stage's record, or None when it is missing, damaged, or was made from other inputs."""
        try:
            content: dict[str, Any] = json.loads((self.path / _FILES[kind]).read_bytes())
            record = from_json(kind, json.dumps(content["record"]))
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.path / _FILES[kind]}: cannot be read: {error.strerror}",
                hint="Check who owns it. Otherwise delete the job's folder and run it again.",
            ) from None
        return record if inputs is None or content.get("inputs") == sha256_of(inputs) else None

    def store(self, record: object, *, inputs: object = None) -> None:
        """Atomic: a reader finds the whole record or none."""
        refuse_link(self.path)
        text = to_json({"inputs": sha256_of(inputs), "record": record})
        write_atomic(self.path / _FILES[type(record)], text.encode())

    def forget(self, kind: type) -> None:
        self.record_path(kind).unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process works on this folder. The lock ends with the process that holds it.

        Raises EnvironmentProblem when it is a link.
        """
        refuse_link(self.path)
        refuse_link(self.lock)
        with locked(self.lock, make_parents=True):
            yield

    def refuse_links(self) -> None:
        """Raises EnvironmentProblem when the folder is a link, or has links to elsewhere."""
        # The Hub's client may have links in its own home.
        refuse_links(self.path, but=(self.hf_home,))

    def clear(self) -> None:
        """Free the space once the job is published. The card, the report and the publication stay."""
        for kind in (Weights, QuantizedModel):
            self.forget(kind)
        self.clear_inputs()
        shutil.rmtree(self.quantized, ignore_errors=True)

    def clear_inputs(self) -> None:
        """Keep the artifact and the records, which another machine needs to publish it."""
        for folder in (self.source, self.calibration, self.layers, self.hf_home):
            shutil.rmtree(folder, ignore_errors=True)
        self.used_text.unlink(missing_ok=True)
        self.forget(Reference)


# --- what each record was made from: a stage is repeated when one of these differs ---------------------------


def pull_inputs(job: Job) -> object:
    # The job's id stands for what it calibrates on.
    asked = [job.upstream.sha, job.source_files, job.refresh_files, job.weight_files, job.entry.evaluation.sources]
    return [*asked, job.entry.tasks] if job.entry.tasks else asked


def quantize_inputs(job: Job, weights: Weights) -> object:
    recipe = job.entry.recipe
    asked = [recipe, QUANTIZER_VERSIONS[recipe.method], job.entry.calibration, job.entry.trust_remote_code]
    return [weights.files, asked, tool_versions(), bot.__version__]


def evaluate_inputs(job: Job, quantized: QuantizedModel) -> object:
    with_tasks = [job.tasks, lm_eval_version()] if job.tasks else []
    return [quantized.files, job.entry.evaluation, tool_versions(), bot.__version__, *with_tasks]


def card_inputs(job: Job, quantized: QuantizedModel, report: Report) -> object:
    return [job, quantized.files, report, bot.__version__]
