"""provenance.json: what it holds, and that equal jobs make equal bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.card.model_card import render_card
from bot.card.provenance import make_provenance, refreshed, with_file
from bot.records import (
    EvaluationTask,
    Job,
    Provenance,
    QuantizedModel,
    Recipe,
    Report,
    SourceCount,
    from_json,
    to_json,
)
from bot.text import size
from tests.support import factories
from tests.support.engines import served
from tests.support.factories import (
    OTHER_SHA,
    SHA,
    VERSIONS,
    calibration_set,
    entry,
    expert_tokens,
    job,
    provenance,
    published_file,
    quantized,
    report,
    source_figures,
    task_figures,
    upstream,
    workflow_run,
)

FILES = tuple(published_file(path) for path in ("model.safetensors", "README.md", "config.json"))


def made(
    work: Job | None = None, artifact: QuantizedModel | None = None, measured: Report | None = None, **options: Any
) -> Provenance:
    given: dict[str, Any] = {"tool": "awq-bot 0.1.0", "files": FILES} | options
    return make_provenance(work or job(), artifact or quantized(), measured or report(), **given)


def test_it_names_source_recipe_calibration_tools_digests_and_files() -> None:
    work = job(entry(revision="v1"), upstream(gated="auto"))
    found = made(work)
    assert (found.schema, found.tool, found.quantizer, found.tag) == (1, "awq-bot 0.1.0", 4, work.tag)
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


def test_a_refresh_keeps_the_run_that_quantized_and_not_the_one_that_published() -> None:
    built = workflow_run()
    before = replace(made(run=built), published_by=built)
    after = refreshed(before, job(), tool="awq-bot 0.1.0", files=FILES)
    assert (after.built_by, after.published_by) == (built, None)
    assert from_json(Provenance, to_json(before)) == before


def test_outside_of_github_actions_no_run_is_named_and_older_provenance_is_the_same() -> None:
    assert not {"built_by", "published_by"} & json.loads(to_json(made())).keys()
    assert "| built by |" not in render_card(job(), made(), chat=True)
    assert "| built by | [run 7001, attempt 2]" in render_card(job(), made(run=workflow_run()), chat=True)


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


# --- every figure on a card is in the provenance ------------------------------------------------------------

TEMPLATE = Path(__file__).parents[2] / "templates" / "model_card.md.jinja"
NUMBER = re.compile(r"(?<![\w.,@])[-+]?\d+(?:,\d{3})*(?:\.\d+)*(?!\w)")


def measured_release() -> Provenance:
    """With other figures than the usual ones, no two of them alike."""
    texts = tuple(
        source_figures(
            name,
            predictions=1717 + place,
            perplexity_source=21.73 + place,
            perplexity_quantized=1023.91 + place,
            kl_mean=0.0719 + place / 100,
            kl_mean_rounding=0.2377 + place / 100,
            top1_agreement=0.7651 + place / 100,
            documents_left_out=37 + place,
        )
        for place, name in enumerate(("prose.txt", "lab/chats@01234567 (test)"))
    )
    figures = report(
        perplexity_source=23.71,
        perplexity_quantized=24.913,
        kl_mean=0.0737,
        kl_p99=0.6113,
        top1_agreement=0.7719,
        bits_per_weight=4.31,
        bits_per_weight_file=6.87,
        size_source_bytes=269_060_552,
        size_quantized_bytes=114_130_000,
        tokens=29_184,
        sources=texts,
        experts=(expert_tokens(1, experts=96, lowest=29, median=3511.0, unseen=7),),
        pictures=(),
        tasks=(
            task_figures(
                examples=467, source=0.6467, source_stderr=0.0221, quantized=0.6253, quantized_stderr=0.0227
            ),
            task_figures("own", metric="perplexity", higher_is_better=False, source=7.1791, quantized=7.8793),
        ),
        versions=VERSIONS | {"lm_eval": "0.4.13"},
        served=(served(mean_difference=0.01234, max_difference=0.23456, tokens=1983, tokens_per_s=17.33),),
    )
    count = SourceCount(
        label="prose.txt",
        documents=573,
        tokens=18_944,
        share=0.83,
        duplicates_removed=47,
        rows_left_out={"without text": 53},
        parts_left_out=59,
        replaced_characters=61,
    )
    used = calibration_set(
        samples=74, seq_len=352, seed=71, sources=(count,), distinct_token_share=0.273, sha256="a" * 64
    )
    return provenance(
        report=figures, calibration=used, recipe=Recipe(group_size=64), tensor_parallel=(1, 2, 3), versions={}
    )


def shown(record: Provenance) -> str:
    """The card's text, without what a program reads: front matter, code, and where links lead to."""
    body = render_card(job(), record, chat=True).split("\n---\n\n", 1)[1]
    return re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", " ", body, flags=re.DOTALL)


def leaves(value: Any) -> Iterator[Any]:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from leaves(item)
    if not isinstance(value, dict | list):
        yield value


def made_of(content: dict[str, Any]) -> set[str]:
    """All that a card may show of this JSON: its figures as they are printed, and those that follow from them."""
    figures, used = content["report"], content["calibration"]
    experts = figures["experts"]
    values = [
        *leaves(content),
        100 * (figures["perplexity_quantized"] / figures["perplexity_source"] - 1),
        figures["size_source_bytes"] / figures["size_quantized_bytes"],
        used["samples"] * used["seq_len"],
        len(experts),
        sum(layer["unseen"] for layer in experts) / sum(layer["experts"] for layer in experts),
    ]
    for each in figures.get("sources", ()):
        ratio = each["kl_mean"] / each["kl_mean_rounding"]
        values.append(max(ratio, 1 / ratio))
    for task in figures.get("tasks", ()):
        ratio = task["quantized"] / task["source"]
        values.append(ratio if task["higher_is_better"] else 1 / ratio)
    found = set()
    for value in values:
        if isinstance(value, str):
            found.update(NUMBER.findall(value))
        elif value is not None:
            found |= {f"{scale * value:.{digits}f}" for scale in (1, 100) for digits in range(5)}
            found |= {f"{value:,}", f"{value:,.0f}", f"{value:+.2f}", size(value).split()[0]}
    return found


def unexplained(text: str, content: dict[str, Any]) -> list[str]:
    """Numbers on a card that neither the provenance nor the words of the template have."""
    words = NUMBER.findall(re.sub(r"{{.*?}}|{%.*?%}", " ", TEMPLATE.read_text()))
    return [number for number in NUMBER.findall(text) if number not in {*words, *made_of(content)}]


def test_no_figure_on_a_card_is_missing_in_its_provenance() -> None:
    record = measured_release()
    found = shown(record)
    assert len(NUMBER.findall(found)) > 50
    assert unexplained(found, json.loads(to_json(record))) == []
    other = provenance(report=report(experts=(expert_tokens(),)))
    assert len(unexplained(found, json.loads(to_json(other)))) > 30


@pytest.mark.parametrize(
    "figure", ["kl_p99", "top1_agreement", "bits_per_weight", "size_source_bytes", "perplexity_source", "tokens"]
)
def test_a_figure_that_the_provenance_does_not_have_is_found(figure: str) -> None:
    record = measured_release()
    content = json.loads(to_json(record))
    content["report"][figure] = 123_456.789
    assert unexplained(shown(record), content)


@pytest.mark.parametrize("figure", ["examples", "source", "source_stderr", "quantized", "quantized_stderr"])
def test_a_figure_of_a_task_that_the_provenance_does_not_have_is_found(figure: str) -> None:
    record = measured_release()
    content = json.loads(to_json(record))
    content["report"]["tasks"][0][figure] = 123_456.789
    assert unexplained(shown(record), content)


@pytest.mark.parametrize("figure", ["mean_difference", "max_difference", "tokens", "tokens_per_s", "version"])
def test_a_figure_of_an_engine_that_the_provenance_does_not_have_is_found(figure: str) -> None:
    record = measured_release()
    content = json.loads(to_json(record))
    content["report"]["served"][0][figure] = 123_456.789
    content["report"]["served"][0]["versions"] = {}
    assert unexplained(shown(record), content)


def test_a_provenance_without_engines_is_read_as_one_and_written_as_before() -> None:
    assert "served" not in to_json(made())
    assert from_json(Provenance, to_json(made())).report.served == ()
    assert from_json(Provenance, to_json(made(measured=report(served=(served(),))))).report.served == (served(),)


def test_it_says_which_tasks_were_asked_for_if_any() -> None:
    task = EvaluationTask(name="arc_easy", dataset="allenai/ai2_arc", revision=SHA, limit=500)
    assert made(job(entry(tasks=(task,)))).tasks_asked == (task,)
    assert "tasks" not in to_json(made())


def test_a_card_is_rendered_from_what_the_published_provenance_says() -> None:
    record = measured_release()
    again = from_json(Provenance, to_json(record))
    assert render_card(job(), again, chat=True) == render_card(job(), record, chat=True)
