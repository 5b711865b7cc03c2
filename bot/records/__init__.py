"""The frozen records that flow between the rooms, and their JSON.

watchlist.yaml -> WatchEntry; Hub -> Upstream, Published; together -> Skip | Candidate -> Job -> Plan;
Job -> Weights -> CalibrationSet -> QuantizedModel -> Report -> Verdict -> Publication. On GitHub Actions every leg
leaves a JobResult, and what failed leaves Attempts.
"""

from __future__ import annotations

from bot.records.artifact import (
    CalibrationSet,
    Card,
    Check,
    ModuleError,
    Provenance,
    Publication,
    Published,
    QuantizedModel,
    Report,
    SmallFiles,
    SourceCount,
    Verdict,
    Weights,
)
from bot.records.config import Calibration, Licenses, Recipe, TextSource, Thresholds, WatchEntry
from bot.records.hub import (
    DatasetListing,
    Details,
    HubFile,
    PublishedFile,
    SourceProvenance,
    Tag,
    TargetState,
    TensorInfo,
    Upstream,
)
from bot.records.plan import Digests, Estimate, Job, JobKind, Plan, Skip
from bot.records.progress import OnBytes, Progress, byte_counter, ignore_bytes, no_progress
from bot.records.result import Attempts, Failure, JobResult, PlanTimes, RunningJob
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
    "Failure",
    "HubFile",
    "Job",
    "JobKind",
    "JobResult",
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
    "SmallFiles",
    "SourceCount",
    "SourceProvenance",
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
    "from_json",
    "ignore_bytes",
    "no_progress",
    "sha256_of",
    "to_json",
]
