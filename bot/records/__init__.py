"""The frozen records that pass between the packages, and their JSON.

watchlist.yaml -> WatchEntry; Hub -> Upstream, Published; together -> Skip | Candidate -> Job -> Plan;
Job -> Weights -> CalibrationSet -> QuantizedModel -> Report -> Verdict -> Publication. A JobResult
says how a job ended; failed attempts are counted in Attempts.
"""

from __future__ import annotations

from bot.records.artifact import (
    CalibrationSet,
    Card,
    Check,
    ExpertsOfModel,
    ExpertTokens,
    ModuleError,
    Provenance,
    Publication,
    Published,
    QuantizedModel,
    Report,
    SourceCount,
    Verdict,
    Weights,
    experts_of_model,
)
from bot.records.config import Calibration, Licenses, Recipe, TextSource, Thresholds, WatchEntry
from bot.records.hub import (
    DatasetListing,
    Details,
    Headers,
    HubFile,
    Layers,
    PublishedFile,
    SourceProvenance,
    Tag,
    TargetState,
    TensorInfo,
    Upstream,
)
from bot.records.plan import Digests, Estimate, Job, JobKind, Plan, Skip
from bot.records.progress import OnBytes, Progress, byte_counter, ignore_bytes, no_progress
from bot.records.result import Attempts, JobResult, PlanTimes, RunningJob, Status, job_result
from bot.records.serialization import canonical_json, from_json, sha256_of, to_json

__all__ = [
    "Attempts",
    "Calibration",
    "CalibrationSet",
    "Card",
    "Check",
    "DatasetListing",
    "Details",
    "Digests",
    "Estimate",
    "ExpertTokens",
    "ExpertsOfModel",
    "Headers",
    "HubFile",
    "Job",
    "JobKind",
    "JobResult",
    "Layers",
    "Licenses",
    "ModuleError",
    "OnBytes",
    "Plan",
    "PlanTimes",
    "Progress",
    "Provenance",
    "Publication",
    "Published",
    "PublishedFile",
    "QuantizedModel",
    "Recipe",
    "Report",
    "RunningJob",
    "Skip",
    "SourceCount",
    "SourceProvenance",
    "Status",
    "Tag",
    "TargetState",
    "TensorInfo",
    "TextSource",
    "Thresholds",
    "Upstream",
    "Verdict",
    "WatchEntry",
    "Weights",
    "byte_counter",
    "canonical_json",
    "experts_of_model",
    "from_json",
    "ignore_bytes",
    "job_result",
    "no_progress",
    "sha256_of",
    "to_json",
]
