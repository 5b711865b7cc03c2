"""Work without a GPU: small files that changed, publications that were cut short."""

from __future__ import annotations

import pytest

from bot.records import JobKind, Tag, Upstream
from bot.watch.release import Candidate, triage
from tests.support.factories import (
    HEAD,
    SHA,
    absent,
    entry,
    provenance,
    published,
    upstream,
    with_file,
    without_file,
)
from tests.support.watch import candidate, job, skip


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        (with_file(upstream(), "tokenizer_config.json", "v2"), "tokenizer_config.json"),
        (with_file(upstream(), "chat_template.jinja", "v2"), "chat_template.jinja"),
        (with_file(upstream(), "special_tokens_map.json", "v2"), "special_tokens_map.json"),
        (with_file(upstream(), "LICENSE", "v2"), "LICENSE"),
        (with_file(upstream(), "NOTICE.txt", "new"), "NOTICE.txt"),
        (without_file(upstream(), "generation_config.json"), "generation_config.json"),
        (upstream(license="mit"), "licence or gating"),
        (upstream(license_link="https://example.org"), "licence or gating"),
        (upstream(gated="manual"), "licence or gating"),
    ],
)
def test_small_files_licence_and_gating_are_refreshed_without_a_gpu(after: Upstream, changed: str) -> None:
    found = job(triage(entry(), after, published()))
    small = f"small files changed upstream: {changed}"
    reason = "licence or gating changed upstream" if changed == "licence or gating" else small
    assert (found.kind, found.reason) == (JobKind.REFRESH, reason)
    assert found.estimate is None
    made = published().provenance
    assert made is not None
    assert found.source_files == made.source.source_files
    assert found.digests.source == made.source.source_digest
    assert found.tag != made.tag
    assert found.job_id.endswith("-refresh")
    refreshed = published(provenance(entry(), after, tag=found.tag))
    assert skip(triage(entry(), after, refreshed)).reason == "up to date"


def test_a_gate_that_closes_and_opens_again_gets_a_tag_that_is_free() -> None:
    """Gating is no commit: the same content at the same commit comes back."""
    first = published()
    gated = provenance(entry(), upstream(gated="auto"))
    target = published(gated, tags=(Tag(name=first.tags[0].name, sha=SHA), Tag(name=gated.tag, sha=HEAD)))
    assert job(triage(entry(), upstream(), target)).tag == f"{first.tags[0].name}-2"


def test_changed_weights_count_before_changed_small_files() -> None:
    after = with_file(with_file(upstream(), "LICENSE", "v2"), "model.safetensors", "v2")
    assert candidate(triage(entry(), after, published())).reason == "upstream changed: model.safetensors"


def test_a_publication_without_its_tag_is_finished_as_it_was_made() -> None:
    made = provenance()
    cut_short = published(made, tags=())
    assert not cut_short.complete
    # Upstream's small files went on meanwhile; what stands on main is completed first.
    found = job(triage(entry(), with_file(upstream(), "LICENSE", "v2"), cut_short))
    assert (found.kind, found.tag) == (JobKind.FINISH, made.tag)
    assert found.reason == "publication was cut short: no tag"
    assert (found.digests.refresh, found.refresh_files) == (made.source.refresh_digest, made.source.refresh_files)
    assert found.job_id.endswith("-finish")


@pytest.mark.parametrize(
    ("tags", "complete"),
    [
        ((), False),
        ((Tag(name="v1", sha=HEAD),), False),
        ((Tag(name=provenance().tag, sha=SHA),), False),
        ((Tag(name=provenance().tag, sha=HEAD),), True),
        ((Tag(name="v1", sha=SHA), Tag(name=provenance().tag, sha=HEAD)), True),
    ],
)
def test_complete_is_provenance_on_the_head_and_its_tag_pointing_there(
    tags: tuple[Tag, ...], complete: bool
) -> None:
    assert published(tags=tags).complete == complete
    assert not absent(tags=tags, head=HEAD).complete


def test_a_commit_by_hand_on_top_of_a_release_is_reported_and_left_alone() -> None:
    """The tag cannot move to it, so trying to finish would fail for ever."""
    target = published(tags=(Tag(name=provenance().tag, sha=SHA),))
    found = skip(triage(entry(), upstream(), target))
    assert found.reason == f"main of quantized/Tiny-awq was changed by hand after {provenance().tag}"
    assert found.blocked
    assert "Revert" in found.hint
    assert isinstance(triage(entry(), with_file(upstream(), "config.json", "v2"), target), Candidate)
    assert job(triage(entry(), with_file(upstream(), "LICENSE", "v2"), target)).kind is JobKind.REFRESH
