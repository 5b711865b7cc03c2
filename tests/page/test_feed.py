"""The feed, against what RFC 4287 asks of every feed and entry."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bot.page.site import site_files
from bot.records import StatusReport
from tests.support.status import MADE, many, model, release, report

ATOM = "{http://www.w3.org/2005/Atom}"
# https://www.rfc-editor.org/rfc/rfc3339#section-5.6
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def feed(made: StatusReport, url: str = "") -> ElementTree.Element:
    return ElementTree.fromstring(site_files(made, url=url)["feed.xml"])


def texts(element: ElementTree.Element, name: str) -> list[str]:
    return [item.text or "" for item in element.iter(f"{ATOM}{name}")]


@pytest.mark.parametrize("count", [0, 3, 300])
def test_every_feed_and_entry_has_what_atom_requires_once(count: int) -> None:
    root = feed(many(count), "https://someone.github.io/awq-bot/")
    assert root.tag == f"{ATOM}feed"
    for element in (root, *root.findall(f"{ATOM}entry")):
        for name in ("id", "title", "updated"):
            assert len(element.findall(f"{ATOM}{name}")) == 1
        assert len(element.findall(f"{ATOM}author/{ATOM}name")) == 1
        relations = [link.get("rel") for link in element.findall(f"{ATOM}link")]
        assert relations.count("alternate") == 1
    assert all(TIME.fullmatch(text) for text in texts(root, "updated"))
    ids = texts(root, "id")
    assert len(ids) == len(set(ids))
    assert all(re.match(r"(https://|urn:uuid:)", text) for text in ids)


def test_the_newest_come_first_and_no_more_than_fifty() -> None:
    made = many(300)
    entries = feed(made).findall(f"{ATOM}entry")
    times = [texts(item, "updated")[0] for item in entries]
    assert len(entries) == 50
    assert times == sorted(times, reverse=True)
    assert times[0] == max(item.date for each in made.models for item in each.releases)
    assert texts(feed(made), "updated")[0] == times[0]


def test_ids_stay_when_the_page_is_built_again_with_more_releases() -> None:
    one, two = report(model(), made="2026-01-06T00:00:00Z"), report(model(releases=(release(1), release())))
    before, after = texts(feed(one), "id"), texts(feed(two), "id")
    assert set(before) < set(after)


def test_the_id_of_a_feed_is_its_address_or_follows_from_the_accounts() -> None:
    made = report(model())
    assert texts(feed(made, "https://a.example/s/"), "id")[0] == "https://a.example/s/feed.xml"
    assert texts(feed(made), "id")[0] == texts(feed(replace(made, made="2027-01-01T00:00:00Z")), "id")[0]
    assert texts(feed(made), "id")[0] != texts(feed(report(model(target="others/Tiny-awq"))), "id")[0]


def test_an_empty_feed_has_the_time_of_the_report() -> None:
    assert texts(feed(report()), "updated") == [MADE]


def test_names_and_texts_are_escaped() -> None:
    hostile = "]]><entry>&\x00\x1b\ud800\ufffe"
    root = feed(report(model(source=f"lab/{hostile}"), tool=hostile))
    assert len(root.findall(f"{ATOM}entry")) == 1
    assert "]]><entry>&" in texts(root, "content")[0]
