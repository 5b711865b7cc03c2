"""The model card: what it says, and that untrusted text on it stays text."""

from __future__ import annotations

import difflib
import html
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markdown_it import MarkdownIt

from bot.card import model_card
from bot.card.model_card import render_card
from bot.localhub.card import check_card
from bot.records import Recipe, SourceCount, Upstream
from tests.support.factories import calibration_set, entry, job, provenance, published_file, report, upstream

GOLDEN = Path(__file__).parent / "golden"

TIMES = "\N{MULTIPLICATION SIGN}"
TABLE = f"""\
on 32,768 tokens of builtin:stdlib (test split) | source | this repo
perplexity (lower is better) | 16.000 | 16.400 (+2.50 %)
same most likely next token |  | 93.5 %
KL divergence to the source, mean over tokens |  | 0.0123 nats
KL divergence to the source, 99th percentile |  | 0.2345 nats
size of the weights | 8.0 GB | 2.5 GB (3.20 {TIMES} smaller)
bits per weight, quantized linears with scales and zeros |  | 4.16
bits per weight, everything |  | 5.25
"""


def rendered(source: Upstream | None = None, *, chat: bool = True, **facts: Any) -> str:
    asked, source = entry(), source or upstream()
    return render_card(job(asked, source), provenance(asked, source, **facts), chat=chat)


def front_matter(text: str) -> dict[str, Any]:
    """As the Hub cuts it out: between the first two lines of three dashes."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match
    metadata = yaml.safe_load(match[1])
    assert isinstance(metadata, dict)
    return metadata


def body(text: str) -> str:
    return text.split("\n---\n\n", 1)[1]


def as_html(text: str) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(body(text)))


def tables(text: str) -> list[list[list[str]]]:
    """Tables -> rows -> cells, as a reader of Markdown sees them."""
    found = re.findall(r"<table>(.*?)</table>", as_html(text), re.DOTALL)
    return [
        [
            [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        ]
        for table in found
    ]


# --- what people read ---------------------------------------------------------------------------------------


def full() -> str:
    """A card with every optional part."""
    source = upstream(
        license="other",
        license_name="lab-licence",
        license_link="LICENSE",
        languages=("en", "de"),
        tags=("chat", "not-a-known-tag"),
        gated="manual",
    )
    recipe = Recipe(modules_to_not_convert=tuple(f"model.layers.{layer}.mlp.gate" for layer in range(6)))
    sources = (
        SourceCount(
            label="lab/texts@01234567",
            documents=1200,
            tokens=3072,
            share=0.75,
            duplicates_removed=34,
            languages=("en", "de"),
        ),
        SourceCount(label="texts/chat.jsonl", documents=40, tokens=1024, share=0.25),
    )
    files = ("LICENSE", "NOTICE.txt", "README.md", "config.json", "model.safetensors")
    return rendered(
        source,
        recipe=recipe,
        calibration=calibration_set(sources=sources),
        tensor_parallel=(1, 2, 4),
        artifact_dtype="bfloat16",
        device="NVIDIA L4",
        files=tuple(published_file(path) for path in files),
    )


@pytest.mark.parametrize(("name", "text"), [("base.md", rendered(chat=False)), ("chat.md", full())])
def test_the_card_reads_as_it_should(name: str, text: str) -> None:
    """After a wanted change: GOLDEN=write pytest tests/card/test_card.py, then read the diff."""
    if os.environ.get("GOLDEN") == "write":
        (GOLDEN / name).write_text(text)
    difference = difflib.unified_diff((GOLDEN / name).read_text().splitlines(), text.splitlines(), lineterm="")
    assert "\n".join(difference) == ""


def test_the_numbers_are_those_of_the_report() -> None:
    expected = [line.split(" | ") for line in TABLE.splitlines()]
    assert tables(rendered())[0] == [[cell.strip() for cell in row] for row in expected]


def test_the_numbers_follow_the_report() -> None:
    worse = report(perplexity_quantized=15.2, size_quantized_bytes=50_000_000, tokens=7)
    rows = tables(rendered(report=worse))[0]
    assert rows[0][0] == "on 7 tokens of builtin:stdlib (test split)"
    assert (rows[1][2], rows[5][2]) == ("15.200 (-5.00 %)", f"50.0 MB (160.00 {TIMES} smaller)")


def test_every_command_pins_the_release() -> None:
    text, made = rendered(), provenance()
    blocks = re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    assert all("quantized/Tiny-awq" in block and made.tag in block for block in blocks)
    compile(next(block for block in blocks if "import" in block), "card", "exec")


def test_the_recipe_and_the_calibration_are_on_it() -> None:
    text = full()
    made, used = tables(text)[1:]
    facts = dict(made)
    assert facts["method"] == "AWQ scaling and clipping, then GPTQ-style error-compensated rounding"
    assert facts["format"] == "4 bits, group size 128, asymmetric (zero points), gemm"
    assert facts["distinct tokens"] == "25.0 % of the maximum possible for 4,096 tokens"
    kept = "bfloat16: embeddings, norms and the output head; model.layers.0.mlp.gate, "
    assert facts["not quantized"].startswith(kept)
    assert facts["not quantized"].endswith("model.layers.3.mlp.gate and 2 more")
    assert facts["calibration"] == f"16 blocks of 256 tokens, seed 0, sha256 {'5e' * 8}…"
    assert facts["tools"] == "awq-bot 0.1.0, autoawq 0.2.9, torch 2.13.0, transformers 5.23.0"
    assert used[1:] == [
        ["lab/texts@01234567", "1,200", "3,072", "75 %", "34", "en, de"],
        ["texts/chat.jsonl", "40", "1,024", "25 %", "0", "not stated"],
    ]


@pytest.mark.parametrize(
    ("ways", "sentence"),
    [
        ((1, 2, 4), "\nSupported tensor parallel sizes: 1, 2 or 4 (`--tensor-parallel-size`)\n"),
        ((1, 2), "\nSupported tensor parallel sizes: 1 or 2 (`--tensor-parallel-size`)\n"),
        ((1,), "\ntensor parallel size: 1\n"),
    ],
)
def test_possible_tensor_parallel_sizes_are_listed(ways: tuple[int, ...], sentence: str) -> None:
    assert sentence in rendered(tensor_parallel=ways)


def test_method_is_stated_in_words() -> None:
    made = rendered(recipe=Recipe(method="awq"))
    assert "quantized to 4 bits, group size 128, by\nAutoAWQ's own search." in made


@pytest.mark.parametrize("text", [rendered(chat=False), full()], ids=["base", "chat"])
def test_every_table_column_has_a_name_and_no_command_is_wide(text: str) -> None:
    assert all(name.strip() for table in tables(text) for name in table[0])
    commands = "".join(re.findall(r"```\w+\n(.*?)```", text, re.DOTALL))
    assert max(map(len, commands.splitlines())) <= 72
    assert not re.search(r"TGI|text-generation-launcher|[KMG]iB", text)


def test_gate_is_mentioned_only_for_a_gated_source() -> None:
    assert "The source is gated" in rendered(upstream(gated="auto"))
    assert "gated" not in rendered()


@pytest.mark.parametrize(
    ("stated", "shown"),
    [
        ({"license": "mit"}, "The licence is the source's: mit."),
        ({"license": "other", "license_name": "qwen"}, "The licence is the source's: other (qwen)."),
        ({"license": None, "license_name": "qwen"}, "The licence is the source's: qwen."),
        ({"license": None}, "The licence is the source's: not stated."),
    ],
)
def test_the_licence_is_shown_as_the_source_states_it(stated: dict[str, Any], shown: str) -> None:
    assert shown in rendered(upstream(**stated))


def test_a_licence_file_is_linked_only_where_there_is_one() -> None:
    assert "See [LICENSE](LICENSE)." in rendered(files=(published_file("LICENSE"),))
    assert "LICENSE" not in rendered(files=(published_file("config.json"),))


def test_a_card_is_the_same_each_time_and_says_nothing_of_when_or_where() -> None:
    first = rendered()
    later = replace(report(), duration_s=77.0)
    assert rendered(report=later) == first
    assert not re.search(r"\b20\d\d-\d\d|/home/|/tmp/|/work/", first)
    assert first.endswith("\n")
    assert not re.search(r"[ \t]$|\n\n\n", first.split("## Licence", maxsplit=1)[0], re.MULTILINE)


# --- metadata -----------------------------------------------------------------------------------------------


def test_the_metadata_is_what_the_hub_reads() -> None:
    assert front_matter(full()) == {
        "license": "other",
        "license_name": "lab-licence",
        "license_link": "LICENSE",
        "language": ["en", "de"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "lab/Tiny",
        "base_model_relation": "quantized",
        "quantized_by": "quantized",
        "tags": ["awq", "int4", "4-bit", "chat"],
    }


def test_what_the_source_does_not_state_is_left_out() -> None:
    metadata = front_matter(rendered(upstream(license=None, languages=(), pipeline_tag=None)))
    assert not {"license", "license_name", "license_link", "language"} & set(metadata)
    assert metadata["pipeline_tag"] == "text-generation"


@pytest.mark.parametrize(
    ("stated", "written"),
    [
        ({"license": "MIT"}, {"license": "mit"}),
        ({"license": "Apache License 2.0"}, {"license": "other", "license_name": "apache-license-2.0"}),
        ({"license": "Foo!", "license_name": "Foo 2"}, {"license": "other", "license_name": "foo-2"}),
        (
            {"license": "other", "license_name": "Qwen Research"},
            {"license": "other", "license_name": "qwen-research"},
        ),
        ({"license": "other"}, {"license": "other", "license_name": "other"}),
        ({"license": "(c)"}, {"license": "other", "license_name": "c"}),
        ({"license": "©"}, {"license": "other", "license_name": "other"}),
        ({"license": None, "license_name": "Qwen Research"}, {"license_name": "qwen-research"}),
        ({"languages": ("English", "en", "zh-CN", "code", "EN")}, {"language": ["en", "zh-CN", "code"]}),
        ({"languages": ("English",)}, {}),
        ({"pipeline_tag": "Text Generation"}, {"pipeline_tag": "text-generation"}),
        ({"pipeline_tag": "image-text-to-text"}, {"pipeline_tag": "image-text-to-text"}),
    ],
)
def test_metadata_that_the_hub_would_refuse_is_written_as_it_takes_it(
    stated: dict[str, Any], written: dict[str, Any]
) -> None:
    made = rendered(upstream(**stated))
    metadata = front_matter(made)
    keys = {"languages": ("language",), "pipeline_tag": ("pipeline_tag",)}
    asked = keys.get(next(iter(stated)), ("license", "license_name"))
    assert {key: metadata[key] for key in asked if key in metadata} == written
    assert check_card(made) == ([], [])


# --- hostile facts ------------------------------------------------------------------------------------------

HOSTILE = [
    "a\n---\n# Injected\n\n- list",
    "<script>alert(1)</script><img src=x onerror=y>",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "https://evil.example www.evil.example <http://evil.example> me@evil.example",
    "{{ 7*7 }}{% for x in range(9) %}x{% endfor %}{# c #}",
    "{{ ''.__class__.__mro__ }}",
    "| a | b |\n|---|---|\n| c | d |",
    "`code` **bold** _it_ ~~no~~ $$x^2$$ &lt; \\* !",
    "\u202egnp.exe \u200b\x00\x1b[31m\x85\u2028next",
    "half a pair: \ud800",
    "'\": {a: b}, [c], *alias, &anchor, !tag, %dir, @x, `y`",
    "x" * 10_000,
]


def card_with(text: str, *, licence: str) -> str:
    """With the same text in every place that is not ours."""
    counted = SourceCount(label=text, documents=1, tokens=1, share=1.0, languages=(text,))
    return rendered(
        upstream(license="other", license_name=licence, license_link=licence),
        calibration=calibration_set(sources=(counted,)),
        report=report(text_label=text),
        device=text,
        versions={"torch": text},
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_cannot_be_markup_or_code(text: str) -> None:
    # What the Hub client reads of a source is valid UTF-8.
    licence = "fine" if "\ud800" in text else text
    made, plain = card_with(text, licence=licence), card_with("fine", licence="fine")
    # The same structure as with harmless text: not one tag more, and every table cell in its column.
    assert re.findall(r"<[^>]*>", as_html(made)) == re.findall(r"<[^>]*>", as_html(plain))
    assert [len(row) for table in tables(made) for row in table] == [
        len(row) for table in tables(plain) for row in table
    ]
    assert "49" not in made.rsplit("## Licence", maxsplit=1)[1]
    assert len(as_html(made)) < len(as_html(plain)) + 4000
    made.encode()


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable()])
def test_readable_text_is_shown_as_it_was_written(text: str) -> None:
    made = as_html(rendered(upstream(license=text)))
    expected = " ".join(text.split())
    if len(expected) > 200:
        expected = expected[:199] + "…"
    assert f"The licence is the source's: {expected}." in html.unescape(made)


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text])
def test_hostile_metadata_is_left_out_or_text_that_the_hub_takes(text: str) -> None:
    made = rendered(
        upstream(
            license=f"The {text}",
            license_name=text,
            license_link=text,
            languages=(text, "en"),
            pipeline_tag=f"The {text}",
        )
    )
    metadata = front_matter(made)
    assert (metadata["license"], metadata["license_link"], metadata["base_model"]) == ("other", text, "lab/Tiny")
    assert check_card(made) == ([], [])


@settings(deadline=None, max_examples=60, database=None)
@given(text=st.text(min_size=1, max_size=60))
def test_any_text_stays_text(text: str) -> None:
    made = rendered(upstream(license="other", license_name=text))
    made.encode()
    assert front_matter(made)["base_model"] == "lab/Tiny"
    assert as_html(made).count("<a ") == as_html(rendered(upstream(license="mit"))).count("<a ")


# --- the template itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(model_card._facts(job(), provenance())))
def test_every_fact_is_used_and_a_missing_one_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    facts = model_card._facts
    monkeypatch.setattr(
        model_card,
        "_facts",
        lambda work, made: {key: value for key, value in facts(work, made).items() if key != name},
    )
    with pytest.raises((UndefinedError, TypeError), match=r"undefined|StrictUndefined"):
        rendered()
