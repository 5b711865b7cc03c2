"""The site of a report: every page whole, escaped, and without anything from elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from bot.page.site import page_of, site_files
from bot.records import ModelState, StatusReport, from_json
from tests.support.status import many, model, release, report

HOSTILE = "</td><script>alert(1)</script> \"'&{{ 7*7 }}\x1b[31m\u202e"
VOID = {"meta", "link", "br", "input"}


class Page(HTMLParser):
    """Elements with their attributes, and text; unclosed and misplaced tags are faults."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(content.decode())
        self.faults += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def pages(made: StatusReport) -> dict[str, Page]:
    return {path: Page(content) for path, content in site_files(made).items() if path.endswith(".html")}


@pytest.mark.parametrize("count", [0, 3, 300])
def test_every_page_is_whole_and_every_link_within_the_site_leads_to_a_file(count: int) -> None:
    made = many(count)
    files = site_files(made)
    for path, page in pages(made).items():
        assert page.faults == [], path
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), path
        links = [item["href"] or "" for tag in ("a", "link") for item in page.all(tag)]
        links += [item["src"] or "" for item in page.all("script")]
        root = "" if "/" not in path else path.rpartition("/")[0] + "/"
        for link in links:
            if not link.startswith(("https://", "data:,", "#")):
                assert re.sub(r"^models/\.\./", "", root + link) in files, (path, link)


def test_each_model_has_a_row_and_each_one_but_proposals_a_page() -> None:
    made = many(300)
    files = site_files(made)
    rows = [item for item in Page(files["index.html"]).all("tr") if "data-state" in item]
    assert [item["data-state"] for item in rows] == [str(item.state) for item in made.models]
    expected = {page_of(item) for item in made.models if item.state is not ModelState.PROPOSED}
    assert {path for path in files if path.startswith("models/")} == expected


def test_nothing_is_loaded_from_elsewhere_and_no_page_has_a_script_or_a_style_in_it() -> None:
    for page in pages(many(3)).values():
        assert [item["http-equiv"] for item in page.all("meta") if "http-equiv" in item] == [
            "Content-Security-Policy"
        ]
        policy = next(item["content"] or "" for item in page.all("meta") if "http-equiv" in item)
        assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
        assert all((item["src"] or "").endswith("status.js") for item in page.all("script"))
        assert page.all("style") == [] == page.all("img")
        assert not any(name.startswith("on") or name == "style" for _, found in page.elements for name in found)


def test_what_others_wrote_stays_text() -> None:
    made = report(
        model(state=ModelState.REFUSED, reason=HOSTILE, hint=HOSTILE, note=HOSTILE), notes=(HOSTILE,), tool=HOSTILE
    )
    for content in site_files(made).values():
        assert b"\x1b" not in content or content.startswith(b"{")
    for page in pages(made).values():
        assert page.faults == []
        assert len(page.all("script")) == 1
        assert "</td><script>alert(1)</script>" in page.text
        assert "{{ 7*7 }}" in page.text


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "http://elsewhere.example/1", "data:text/html,x", "https://a/\"onclick='x"]
)
def test_an_issue_is_linked_to_by_https_alone(address: str) -> None:
    made = report(model(issue=7, issue_url=address))
    for page in pages(made).values():
        assert address not in [item["href"] for item in page.all("a")]


def test_status_json_is_the_report() -> None:
    made = many(30)
    content = site_files(made)["status.json"]
    assert from_json(StatusReport, content) == made
    assert json.loads(content)["models"][0].keys() >= {"source", "target", "state", "reason", "releases"}


def test_a_planned_model_keeps_the_figures_of_its_last_release() -> None:
    made = report(model(state=ModelState.PLANNED, reason="upstream changed: config.json"))
    page = Page(site_files(made)["index.html"])
    assert "0.0123" in page.text
    assert "93.5 %" in page.text
    assert "2.5 GB" in page.text


def test_sort_values_are_numbers_where_the_column_has_figures() -> None:
    page = Page(site_files(report(model()))["index.html"])
    cells = [item["data-value"] for item in page.all("td") if "data-value" in item]
    assert cells[1:6] == ["2026-01-05T08:00:00Z", "2500000000", "4.156", "0.0123", "0.9345"]


def test_an_empty_watchlist_gets_a_page_that_says_what_to_do() -> None:
    page = Page(site_files(report())["index.html"])
    assert "No model is watched yet" in page.text
    assert "awq-bot add" in page.text
    assert page.all("table") == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"left_out": 2}, "2 models are not shown: private, or not known to be public."),
        ({"private": True}, "Do not publish it."),
        ({"notes": ("Failed attempts are not known.",)}, "Failed attempts are not known."),
    ],
)
def test_what_the_page_does_not_show_is_said(fields: dict[str, Any], said: str) -> None:
    assert said in Page(site_files(report(**fields))["index.html"]).text


def test_history_is_drawn_for_who_sees_it_and_for_who_does_not() -> None:
    releases = tuple(release(number, kl_mean=0.01 * (number + 1)) for number in (2, 1, 0))
    page = Page(site_files(report(model(releases=releases)))["models/quantized--Tiny-awq.html"])
    assert [item["role"] for item in page.all("svg")] == ["img", "img"]
    labels = {item["id"] for tag in ("title", "desc") for item in page.all(tag) if "id" in item}
    assert {name for item in page.all("svg") for name in (item["aria-labelledby"] or "").split()} == labels
    assert "the first has 0.0100, the newest 0.0300" in page.text
    assert len(page.all("tr")) == 1 + 3
    assert page.text.count(releases[0].tag) == 3  # beside the commands, in the table


def test_one_release_is_not_drawn() -> None:
    page = Page(site_files(report(model()))["models/quantized--Tiny-awq.html"])
    assert page.all("svg") == []
    assert "One release so far" in page.text


def test_a_token_does_not_reach_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "abcdefghij" * 3
    monkeypatch.setenv("HF_TOKEN", token)
    made = replace(report(model(reason=f"the Hub said {token}")), notes=(token,))
    assert [path for path, content in site_files(made).items() if token.encode() in content] == []
