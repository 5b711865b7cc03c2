"""A card against the card that the facts give: no digit of it can be changed unseen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bot.card.commands import Surroundings
from bot.card.lint import Expected, lint_card
from bot.records import Finding
from tests.support.factories import SHA

GOLDEN = Path(__file__).parent / "golden"
PATHS = {
    "LICENSE",
    "NOTICE.txt",
    "provenance.json",
    "assets/kl-by-position.png",
    "assets/error-by-layer.png",
}
OPTIONS = {"verify": {"--revision", "--require-signature", "--json"}, "lint": {"--revision"}}


def expected(name: str = "chat.md") -> Expected:
    text = (GOLDEN / name).read_text()
    tags = re.findall(r"The tag `(.*?)`", text)
    around = Surroundings(
        target="quantized/Tiny-awq", source="lab/Tiny", source_sha=SHA, tags=tags, paths=PATHS, options=OPTIONS
    )
    return Expected(text=text, around=around)


def wrong(text: str, wanted: Expected) -> list[Finding]:
    return [item for item in lint_card(text.encode(), wanted) if item.status == "wrong"]


@pytest.mark.parametrize("name", ["chat.md", "mixture.md", "base.md", "vision.md"])
def test_a_changed_digit_is_one_finding_on_its_line(name: str) -> None:
    """Every fifth digit of the card, beginning with the first: all of them take half a minute."""
    wanted = expected(name)
    text = wanted.text
    assert wrong(text, wanted) == []
    places = [place for place, char in enumerate(text) if char.isdigit()]
    assert len(places) > 200
    for place in places[::5]:
        changed = f"{text[:place]}{(int(text[place]) + 3) % 10}{text[place + 1 :]}"
        [found] = wrong(changed, wanted)
        assert found.line == text[:place].count("\n") + 1, changed[place - 20 : place + 20]


def added(text: str) -> list[Finding]:
    """What is said of text below the last line of the card."""
    wanted = expected()
    last = wanted.text.count("\n")
    return [
        item
        for item in lint_card(f"{wanted.text}\n{text}\n".encode(), wanted)
        if item.line > last and item.status != "ok"
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It makes 120 tokens per second.", "120 tokens"),
        ("It makes 120tok/s.", "120"),
        ("It makes **120** tok/s.", "120"),
        ("Use `--max-model-len 5000`.", "5000"),
        ("<img alt='97 %'>", "97 %"),
        ("| MMLU | 71.5 |", "71.5"),
        ("KL divergence is 0.0123 bits.", "0.0123 bits"),
        ("Made of commit fedcba98.", "fedcba98"),
        ("It needs 8 GB, or 6 GB.", "6 GB"),
    ],
)
def test_a_number_that_no_fact_bears_out_is_wrong(text: str, found: str) -> None:
    [item] = added(text)
    assert (item.status, item.found, item.expected) == ("wrong", found, "no such fact")


@pytest.mark.parametrize(
    "text",
    [
        "Thanks to everybody.",
        "It needs 8 GB, is 3.7 times closer, and made of 0123456789abcdef.",
        "See [vLLM](https://docs.vllm.ai/en/v0.32/x) and Qwen3.",
        "Of \\[texts\\](more.bin), which is no link.",
        "```bash\nnvidia-smi\n```",
        "```bash\nhf download 'quantized/Tiny-awq\n```",
    ],
)
def test_what_a_person_wrote_in_words_is_not_checkable(text: str) -> None:
    [item] = added(text)
    assert (item.status, item.found) == ("unknown", "awq-bot did not write this")


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("vllm serve other/Tiny-awq", "other/Tiny-awq"),
        ("$ hf download other/Tiny-awq --revision main", "other/Tiny-awq"),
        ("python -m sglang.launch_server --model-path=other/Tiny", "other/Tiny"),
        ("python -m sglang.launch_server \\\n    --model-path \\\n    other/Tiny", "other/Tiny"),
        ("docker run x --model other/Tiny", "other/Tiny"),
        ("vllm serve quantized/Tiny-awq --revision v1", "v1"),
        ("awq-bot verify other/Tiny-awq", "other/Tiny-awq"),
        ("awq-bot verify quantized/Tiny-awq --fast=1", "--fast"),
        ("awq-bot check-it quantized/Tiny-awq", "awq-bot check-it"),
    ],
)
def test_commands_that_lead_elsewhere_are_wrong(command: str, found: str) -> None:
    [item] = added(f"```bash\n{command}\n```")
    assert (item.what, item.status, item.found) == ("command", "wrong", found)


@pytest.mark.parametrize(
    "line", ['repo = "other/Tiny"', "AutoModel.from_pretrained('other/Tiny')", 'x(repo, revision="v1")']
)
def test_python_that_leads_elsewhere_is_wrong(line: str) -> None:
    [item] = added(f"```python\n{line}\n```")
    assert (item.what, item.status) == ("command", "wrong")


def test_facts_that_cannot_be_read_are_not_judged() -> None:
    wanted = expected()
    unread = Expected(
        text=wanted.text, around=wanted.around, unknown=("license", "Licence"), why_unknown="it is gone"
    )
    text = wanted.text.replace("license: other", "license: mit").replace("source's: other (", "source's: mit (")
    found = [item for item in lint_card(text.encode(), unread) if item.status != "ok"]
    assert [(item.what, item.status, item.found) for item in found] == [
        ("license", "unknown", "it is gone"),
        ("Licence", "unknown", "it is gone"),
    ]


def test_a_line_that_was_taken_out_is_said_to_be_gone() -> None:
    wanted = expected()
    row = next(line for line in wanted.text.splitlines() if line.startswith("| KL divergence to the source, mean"))
    [found] = [
        item for item in lint_card(wanted.text.replace(f"{row}\n", "").encode(), wanted) if item.status != "ok"
    ]
    assert (found.status, found.found, found.expected) == ("unknown", "the card does not have it", row)


def test_metadata_of_another_version_is_wrong_only_where_no_version_would_write_it() -> None:
    wanted = replace(expected(), other_version=True)
    text = wanted.text.replace("- chat\n", "").replace("pipeline_tag: text-generation", "pipeline_tag: other")
    assert wrong(text, wanted) == []
    [found] = wrong(wanted.text.replace("base_model: lab/Tiny", "base_model: lab/Other"), wanted)
    assert (found.what, found.found, found.expected) == ("base_model", "lab/Other", "lab/Tiny")
