"""The changelog on the card, from the provenance of one release to that of the next."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from bot.card.changes import changelog
from bot.card.model_card import render_card
from bot.card.provenance import make_provenance, refreshed
from bot.hub.provenance import ProvenanceError, read_provenance
from bot.records import MOST_EARLIER, EarlierRelease, from_json, to_json
from bot.records.artifact import Provenance
from tests.support.factories import job, provenance, quantized, report


def release(number: int, **fields: Any) -> EarlierRelease:
    sha = f"{number:08x}" + "0" * 32
    standard: dict[str, Any] = {
        "tag": f"upstream-{sha[:8]}-00000000",
        "source_sha": sha,
        "source_digest": "1" * 64,
        "refresh_digest": "2" * 64,
        "recipe_digest": "3" * 64,
        "kl_mean": 0.01,
        "top1_agreement": 0.9,
    }
    return EarlierRelease(**standard | fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source_digest": "4" * 64}, "weights, config or vocabulary of the source"),
        ({"refresh_digest": "4" * 64}, "small files of the source"),
        ({"recipe_digest": "4" * 64}, "another recipe, or a newer quantizer"),
        ({"source_digest": "4" * 64, "recipe_digest": "4" * 64}, "weights, .*; another recipe"),
        ({}, "the same content again"),
    ],
)
def test_digests_say_what_a_release_changed(changes: dict[str, str], words: str) -> None:
    rows = changelog([release(2, **changes), release(1)]).rows
    assert re.fullmatch(words + ".*", rows[0].change)
    assert rows[1].change == ""


def test_the_card_links_the_tags_and_the_commits_of_the_source() -> None:
    made = provenance(earlier=(release(2, kl_mean=0.02), release(1, source_digest="4" * 64)))
    text = render_card(job(), made, chat=True)
    table = text.partition("## Releases\n")[2].partition("## Licence")[0]
    rows = [line for line in table.splitlines() if line.startswith("| [")]
    assert len(rows) == 3
    assert rows[0].startswith(f"| [{made.tag}](/quantized/Tiny-awq/tree/{made.tag}) (this one) | ")
    assert rows[1].startswith(f"| [{release(2).tag}](/quantized/Tiny-awq/tree/{release(2).tag}) | ")
    source = f"[00000002](/lab/Tiny/tree/{release(2).source_sha})"
    assert rows[1].endswith(f" | {source} | 0.0200 nats | weights, config or vocabulary of the source |")


def test_a_first_release_has_no_list() -> None:
    assert "## Releases" not in render_card(job(), provenance(), chat=True)


def test_a_long_list_is_cut_and_counted() -> None:
    text = render_card(job(), provenance(earlier=tuple(release(number) for number in range(20))), chat=True)
    assert text.count("| [upstream-") == 10
    assert "\nAnd 11 releases before, under the tags of this repo.\n" in text


def test_each_release_lists_those_before_it() -> None:
    """A release, then a refresh, then a release: what the plan reads of one is in the next."""
    first = make_provenance(job(), quantized(), report(kl_mean=0.03), tool="awq-bot", files=())
    assert first.earlier == ()
    work = job(earlier=first.releases, tag=f"{first.tag}-2")
    second = refreshed(first, work, tool="awq-bot", files=())
    third = make_provenance(job(earlier=second.releases), quantized(), report(), tool="awq-bot", files=())
    assert [item.tag for item in third.earlier] == [second.tag, first.tag]
    assert [item.kl_mean for item in third.releases] == [0.0123, 0.03, 0.03]
    assert read_provenance(to_json(third).encode()) == third


def test_the_list_of_a_provenance_is_bounded() -> None:
    made = provenance(earlier=tuple(release(number) for number in range(MOST_EARLIER)))
    assert len(made.releases) == MOST_EARLIER
    assert made.releases[0].tag == made.tag


@pytest.mark.parametrize(
    "earlier",
    [
        (release(1, tag="main"),),
        (release(1, tag="upstream-00000002-00000000"),),
        (release(1, source_sha="../../etc"),),
        (release(1, source_digest="4"),),
        tuple(release(number) for number in range(MOST_EARLIER + 1)),
    ],
)
def test_what_awq_bot_never_wrote_is_refused(earlier: tuple[EarlierRelease, ...]) -> None:
    with pytest.raises(ProvenanceError, match="cannot be trusted: earlier lists"):
        read_provenance(to_json(provenance(earlier=earlier)).encode())


def test_releases_without_a_list_stay_readable() -> None:
    made = provenance()
    assert "earlier" not in to_json(made)
    assert from_json(Provenance, to_json(replace(made))) == made
