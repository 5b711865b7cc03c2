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
from tests.support.watch import job, skip

COMPANIONS = (
    *("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("LICENSE", "NOTICE.txt", "license-model.md", "COPYING", "Acceptable_Use_Policy.txt"),
)
TAG = provenance().tag


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        *((with_file(upstream(), path, "v2"), f"small files changed upstream: {path}") for path in COMPANIONS),
        (without_file(upstream(), "LICENSE"), "small files changed upstream: LICENSE"),
        (upstream(license="mit"), "licence, gating or successor changed upstream"),
        (upstream(licenses=("apache-2.0", "mit")), "licence, gating or successor changed upstream"),
        (upstream(license_link="https://example.org"), "licence, gating or successor changed upstream"),
        (upstream(gated="manual"), "licence, gating or successor changed upstream"),
        (upstream(new_version="lab/Tiny-2"), "licence, gating or successor changed upstream"),
    ],
)
def test_small_files_licence_and_gating_are_refreshed_without_a_gpu(after: Upstream, reason: str) -> None:
    found = job(triage(entry(), after, published()))
    assert (found.kind, found.reason, found.estimate) == (JobKind.REFRESH, reason, None)
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
        ((Tag(name=TAG, sha=SHA),), False),
        ((Tag(name=TAG, sha=HEAD),), True),
        ((Tag(name="v1", sha=SHA), Tag(name=TAG, sha=HEAD)), True),
    ],
)
def test_complete_is_provenance_on_the_head_and_its_tag_pointing_there(
    tags: tuple[Tag, ...], complete: bool
) -> None:
    assert published(tags=tags).complete == complete
    assert not absent(tags=tags, head=HEAD).complete


def test_a_commit_by_hand_on_top_of_a_release_is_reported_and_left_alone() -> None:
    """The tag cannot move to it, so trying to finish would fail for ever."""
    target = published(tags=(Tag(name=TAG, sha=SHA),))
    found = skip(triage(entry(), upstream(), target))
    assert found.reason == f"main of quantized/Tiny-awq was changed by hand after {TAG}"
    assert found.blocked
    assert "Revert" in found.hint
    assert isinstance(triage(entry(), with_file(upstream(), "config.json", "v2"), target), Candidate)
    assert job(triage(entry(), with_file(upstream(), "LICENSE", "v2"), target)).kind is JobKind.REFRESH
