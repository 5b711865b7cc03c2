"""The pages that people read on GitHub: complete, and safe whatever is in names and messages."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from bot.errors import QualityGateError
from bot.github import summaries
from bot.github.attempts import apply_retry_limits
from bot.github.dashboard import Ticks, dashboard_text
from bot.github.environment import MAX_SUMMARY_BYTES
from bot.github.results import final_results
from bot.records import Attempts, Job, JobResult, Plan, Publication, RunningJob, Skip, Status, job_result
from bot.text import escape_github_hint
from bot.watch.release import make_plan
from tests.github.test_attempts import NOW, many
from tests.support.engines import served
from tests.support.factories import HEAD, entry, expert_tokens, job, report, source_figures

HUB = "https://hub.example"
OURS = ("https://hub.example/", "https://github.com/someone/awq-bot")
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=y>",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) <http://evil.example>",
    "| a | b |\n\n## heading\n\n- item\n\n---\n",
    "`code` **bold** _it_ ~~gone~~ \\` &lt;b&gt; &#64;everyone",
    "@everyone @org/team #12 GH-12 someone/repo#3 https://github.com/other/repo/issues/1 www.evil.example a@b.net",
    "</details></td></table><!-- awq-bot target=a/b content=c attempts=9 next=- -->",
    "> quote\n::set-output name=a::b\n::error::x",
    "x" * 5000,
]


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.rows: list[int] = []
        self.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def result(of: Job, text: str) -> JobResult:
    error = QualityGateError(text, hint=text)
    measured = report(text_label=text, served=(served(version=text, kernel=text, device=text),))
    failed = job_result(of, stage="quantize", status=Status.FAILED, error=error, report=measured)
    return replace(failed, repo_id=text)


def every_page(text: str) -> dict[str, str]:
    made = job(reason=text, warnings=(text,))
    skips = [
        Skip(entry=entry(repo_id="lab/Other"), reason=text, hint=text, blocked=True, exit_code=3),
        Skip(entry=entry(repo_id="lab/Third"), reason=text, hint=text, blocked=True),
    ]
    lost = [RunningJob(stage="quantize", target=made.entry.target, status="completed", conclusion="failure")]
    [ended] = final_results([made], [result(made, text)], lost)
    return {
        "plan": summaries.plan_page(make_plan([made, *skips]), endpoint=HUB, notes=[text]),
        "job": summaries.job_page(made, result(made, text), endpoint=HUB),
        "report": summaries.report_page([ended], endpoint=HUB, issues={}, rejected=[text], notes=[text]),
        "issue": summaries.failure_text(
            made, ended, Attempts(target="a/b", content="c", count=1), endpoint=HUB, run_url=""
        ),
        "dashboard": dashboard_of(make_plan([made, *skips])),
        "trouble": summaries.trouble_text("Nothing is watched.", [(text, text)], run_url=""),
    }


def dashboard_of(plan: Plan) -> str:
    text = dashboard_text(plan, Ticks(), (), endpoint=HUB, issues_url="", runs_url=f"{OURS[1]}/actions")
    assert text is not None
    return re.sub("<!-- hold quantized/[A-Za-z-]+ -->", "", text)  # a box


KNOWN_TAGS = {
    *("a", "blockquote", "br", "code", "details", "h2", "h3", "li", "p", "strong", "sub", "summary", "ul"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_from_elsewhere_can_add_to_a_page(text: str) -> None:
    harmless = {name: Page(markdown) for name, markdown in every_page("words").items()}
    for name, markdown in every_page(text).items():
        page = Page(markdown)
        assert page.tags <= KNOWN_TAGS, name
        assert [link for link in page.links if not link.startswith(OURS)] == [], name
        assert page.rows == harmless[name].rows, name
        assert page.links == harmless[name].links, name
        assert "@everyone" not in page.text, name
        assert "repo#3" not in page.text, name
        assert "<!--" not in markdown.replace("\\<", ""), name
        assert not any(line.startswith("::") for line in markdown.splitlines()), name


def test_a_hint_keeps_its_code_and_its_text() -> None:
    assert escape_github_hint("Put it on `hold:` to *silence* it.") == "Put it on `hold:` to \\*silence\\* it."
    assert "code" not in Page(escape_github_hint("``a`b` | `c|d`")).text
    assert "@me" not in escape_github_hint("@me `x` @me ` @me")


def test_a_full_matrix_says_what_is_left_for_the_next_run() -> None:
    plan = apply_retry_limits(make_plan(many(300)), attempts=(), now=NOW)
    text = summaries.plan_page(plan, endpoint=HUB)
    assert "**256 to quantize**, 44 waiting." in text
    assert text.count("over the limit of concurrent jobs") == 20
    assert "and 24 more for later runs" in text
    assert len(text.encode()) < MAX_SUMMARY_BYTES


def test_the_headline_adds_up_what_is_needed() -> None:
    text = summaries.plan_page(make_plan([job(), job(entry(target="a/b"))]), endpoint=HUB)
    assert "Estimated in total: 20 min 00 s of GPU time, 16.0 GB to download" in text


def test_a_card_on_another_page_has_whole_links_and_no_pictures() -> None:
    card = "---\nlicense: mit\n---\n\n# T\n\n![x](assets/a.png)\n\n[s](/lab/T) [f](provenance.json) [w](https://x/y)\n"
    shown = summaries.card_preview(card, endpoint=HUB, target="q/T-awq", tag="upstream-1-2")
    links = f"[s]({HUB}/lab/T) [f]({HUB}/q/T-awq/blob/upstream-1-2/provenance.json) [w](https://x/y)"
    assert shown == f"# T\n\n{links}"


@pytest.mark.parametrize("private", [True, False])
def test_only_pictures_of_public_models_are_linked(private: bool) -> None:
    published = Publication(
        repo_id="q/T-awq", sha=HEAD, tag="t", url=f"{HUB}/q/T-awq", private=private, new=True, duration_s=1.0
    )
    made = job_result(
        job(), stage="publish", status=Status.PUBLISHED, publication=published, report=report(pictures=("a.png",))
    )
    assert ("<img" in summaries.job_page(job(), made, endpoint=HUB)) == (not private)


def test_a_mixture_has_a_line_about_its_experts() -> None:
    experts = tuple(expert_tokens(layer, unseen=1) for layer in range(48))
    ready = job_result(job(), stage="quantize", status=Status.READY, report=report(experts=experts))
    line = "experts: 128 in 48 layers; calibration tokens per expert: lowest 12, median 4,096; 0.8 % saw none"
    assert line in summaries.job_page(job(), ready, endpoint=HUB).splitlines()
    dense = job_result(job(), stage="quantize", status=Status.READY, report=report())
    assert "experts" not in summaries.job_page(job(), dense, endpoint=HUB)


def test_each_engine_that_loaded_the_artifact_has_a_line() -> None:
    ready = job_result(job(), stage="quantize", status=Status.READY, report=report(served=(served(),)))
    page = summaries.job_page(job(), ready, endpoint=HUB)
    figures = "2,044 tokens within 0.0081 nats of ours on average, at most 0.0546; 10.4 tokens/s"
    assert f"Served with gptqmodel 7.6.0 (kernel TorchAtenAwqLinear, CPU): log-probabilities of {figures}" in page


def test_each_text_has_its_figures_and_what_a_reader_of_them_should_know() -> None:
    texts = (
        source_figures("prose.txt", kl_mean=0.02, kl_mean_rounding=0.05),
        source_figures("<b>", kl_mean_rounding=0.01, perplexity_source=23_456.7),
    )
    measured = report(sources=texts, kl_mean_rounding=0.042)
    page = summaries.job_page(
        job(), job_result(job(), stage="quantize", status=Status.READY, report=measured), endpoint=HUB
    )
    assert "| KL divergence of plain rounding, mean | | 0.0420 nats |" in page
    assert "| 93.5 % | 0.0200 nats | 2.5 times closer to the source |" in page
    assert "| 93.5 % | 0.0123 nats | 1.2 times farther from the source |" in page
    assert r"\<b\>: the source's own perplexity is 23,457: does it know this language?" in page
