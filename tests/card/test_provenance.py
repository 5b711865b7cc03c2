"""provenance.json: what it holds, and that equal jobs make equal bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from bot.card.provenance import make_provenance, refreshed, with_file
from bot.records import Job, Provenance, QuantizedModel, Report, from_json, to_json
from tests.support import factories
from tests.support.factories import (
    OTHER_SHA,
    SHA,
    entry,
    expert_tokens,
    job,
    provenance,
    published_file,
    quantized,
    report,
    upstream,
)

FILES = tuple(published_file(path) for path in ("model.safetensors", "README.md", "config.json"))


def made(
    work: Job | None = None, artifact: QuantizedModel | None = None, measured: Report | None = None, **options: Any
) -> Provenance:
    given: dict[str, Any] = {"tool": "awq-bot 0.1.0", "quantizer": 1, "files": FILES} | options
    return make_provenance(work or job(), artifact or quantized(), measured or report(), **given)


def test_it_names_source_recipe_calibration_tools_digests_and_files() -> None:
    work = job(entry(revision="v1"), upstream(gated="auto"))
    found = made(work)
    assert (found.schema, found.tool, found.quantizer, found.tag) == (1, "awq-bot 0.1.0", 1, work.tag)
    assert (found.source.repo_id, found.source.revision, found.source.sha) == ("lab/Tiny", "v1", SHA)
    assert found.source.gated == "auto"
    sources = [file.path for file in found.source.source_files]
    assert sources == ["config.json", "model.safetensors", "tokenizer.json"]
    digests = (found.source.source_digest, found.source.refresh_digest, found.recipe_digest)
    assert digests == (work.digests.source, work.digests.refresh, work.digests.recipe)
    assert (found.recipe, found.calibration) == (quantized().recipe, quantized().calibration)
    assert (found.device, found.artifact_dtype, found.tensor_parallel) == ("cpu", "float16", (1, 2))
    assert found.versions == quantized().versions
    assert found.report.kl_mean == report().kl_mean
    assert [file.path for file in found.files] == ["README.md", "config.json", "model.safetensors"]
    more = with_file(found, published_file("LICENSE"))
    assert [file.path for file in more.files] == ["LICENSE", "README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "changes", [{"schema": 2}, {"tag": None}, {"files": "none"}, {"source": {}}, {"report": None}]
)
def test_other_json_is_not_read_as_provenance(changes: dict[str, Any]) -> None:
    content = json.loads(to_json(made())) | changes
    with pytest.raises(ValueError, match="validation error"):
        from_json(Provenance, json.dumps(content))


def test_two_equal_jobs_make_the_same_bytes() -> None:
    """However long they took, wherever they ran, in whatever order the files were listed."""
    again = quantized(duration_s=1.0, folder="/somewhere/else")
    second = made(artifact=again, measured=report(duration_s=1.0), files=tuple(reversed(FILES)))
    assert to_json(made()) == to_json(second)


def test_it_contains_no_dates_durations_or_local_paths() -> None:
    text = to_json(made(artifact=quantized(folder="/mnt/work/job/quantized")))
    assert not re.search(r"\b20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d", text)
    assert not re.search(r'"(/|~|[A-Z]:\\)', text)
    assert json.loads(text)["report"]["duration_s"] == 0.0
    assert set(re.findall(r'"(\w*duration\w*|\w*date\w*|folder)":', text)) == {"duration_s"}


def test_a_refresh_keeps_what_was_measured_and_changes_what_it_was_made_from() -> None:
    before = provenance(tool="awq-bot 0.0.9")
    work = job(entry(), factories.with_file(upstream(), "LICENSE", "v2"))
    after = refreshed(before, work, tool="awq-bot 0.1.0", files=FILES)
    assert after.source.sha == OTHER_SHA
    assert after.source.refresh_digest == work.digests.refresh != before.source.refresh_digest
    assert after.source.source_digest == before.source.source_digest
    assert (after.tag, after.tool) == (work.tag, "awq-bot 0.1.0")
    assert replace(after, tag=before.tag, tool=before.tool, source=before.source, files=before.files) == before


def test_it_lists_what_is_not_quantized_and_a_refresh_keeps_the_list() -> None:
    names = ("visual", "model.layers.0.mlp.gate")
    before = made(artifact=quantized(modules_to_not_convert=names))
    assert before.modules_to_not_convert == names
    assert refreshed(before, job(), tool="awq-bot 0.1.0", files=FILES).modules_to_not_convert == names


def test_a_provenance_from_before_mixtures_is_read() -> None:
    content = json.loads(to_json(made()))
    del content["modules_to_not_convert"]
    del content["report"]["experts"]
    assert from_json(Provenance, json.dumps(content)) == made()


def test_it_has_the_figures_of_experts() -> None:
    measured = report(experts=(expert_tokens(3, unseen=1),))
    found = json.loads(to_json(made(measured=measured)))["report"]["experts"]
    assert found == [{"layer": 3, "experts": 128, "lowest": 12, "median": 4096.0, "unseen": 1}]


def test_what_was_predicted_is_not_published_beside_the_tokens() -> None:
    """So that the same job publishes the bytes that earlier versions do."""
    assert to_json(made(measured=report(predictions=32_704))) == to_json(made())
