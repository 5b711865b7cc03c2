"""All files of the site, by their path in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Final

from bot.page.feed import feed
from bot.page.plot import HEIGHT, WIDTH, plots
from bot.records import ModelState, ModelStatus, StatusReport, to_json
from bot.redaction import redacted
from bot.text import render

STATUS_JSON: Final = "status.json"
MODELS: Final = "models"
STYLE, SCRIPT = "status.css", "status.js"
TOP_LEVEL: Final = frozenset({"README.md", "feed.xml", "index.html", MODELS, SCRIPT, STATUS_JSON, STYLE})
# Nothing is loaded from elsewhere, and nothing in a page runs but the script beside it.
# https://developer.mozilla.org/docs/Web/HTTP/Guides/CSP
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)
_LINK: Final = re.compile(r"https://[^\s\"'<>]+")


@dataclass(frozen=True, slots=True)
class _StateText:
    label: str
    meaning: str


# In the order in which a person looks at them.
_STATES: Final = {
    ModelState.PUBLISHED: _StateText("Published", "the newest release upstream is published"),
    ModelState.PLANNED: _StateText("Planned", "a run will work on it"),
    ModelState.WAITING: _StateText("Waiting", "for a time, an upload or a person"),
    ModelState.REFUSED: _StateText("Refused", "it cannot be published as it is"),
    ModelState.HELD: _StateText("Held", "the watchlist says not to"),
    ModelState.PROPOSED: _StateText("Proposed", "found by a rule, and not on the watchlist yet"),
}


def site_files(report: StatusReport, *, url: str = "") -> dict[str, bytes]:
    """Path -> content. url: where the page is served, for the feed; with a slash at its end."""
    texts = {
        "index.html": _index(report),
        "feed.xml": feed(report, url=url),
        STATUS_JSON: to_json(report),
        "README.md": render("status_readme.md.jinja", report=report),
        STYLE: _asset(STYLE),
        SCRIPT: _asset(SCRIPT),
        **{page_of(model): _model_page(report, model) for model in report.models if has_page(model)},
    }
    return {path: redacted(text).encode("utf-8", "replace") for path, text in texts.items()}


def has_page(model: ModelStatus) -> bool:
    return model.state is not ModelState.PROPOSED


def page_of(model: ModelStatus) -> str:
    """No repo id on the Hub has two hyphens in a row."""
    return f"{MODELS}/{model.target.replace('/', '--')}.html"


def counted(report: StatusReport) -> Iterator[tuple[ModelState, int]]:
    """The states that there are, and how many models are in each."""
    counts = Counter(model.state for model in report.models)
    return ((state, counts[state]) for state in _STATES if counts[state])


def _index(report: StatusReport) -> str:
    return _page(
        report,
        "status_index.html.jinja",
        root="",
        accounts=sorted({model.target.partition("/")[0] for model in report.models}),
        counts=[(state, _STATES[state], count) for state, count in counted(report)],
    )


def _model_page(report: StatusReport, model: ModelStatus) -> str:
    drawn = plots(model.releases)
    return _page(
        report, "status_model.html.jinja", root="../", model=model, plots=drawn, width=WIDTH, height=HEIGHT
    )


def _page(report: StatusReport, template: str, *, root: str, **facts: object) -> str:
    """root: the way from this page to the site's folder."""

    def on_hub(repo_id: str, revision: str = "") -> str:
        return f"{report.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")

    return render(
        template,
        report=report,
        root=root,
        policy=_POLICY,
        states=_STATES,
        order=list(_STATES),
        on_hub=on_hub,
        has_page=has_page,
        page_of=page_of,
        may_link=lambda address: _LINK.fullmatch(address) is not None,
        minute=_minute,
        **facts,
    )


def _minute(time: str) -> str:
    """`2026-11-22 04:30 UTC`, of 2026-11-22T04:30:00Z."""
    return f"{time[:16].replace('T', ' ')} UTC"


def _asset(name: str) -> str:
    return resources.files("bot.page").joinpath(name).read_text(encoding="utf-8")
