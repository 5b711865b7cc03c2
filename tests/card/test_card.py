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
from bot.card.model_card import Origin, render_card
from bot.localhub.card import check_card
from bot.records import (
    ERROR_BY_LAYER,
    KL_BY_POSITION,
    CachedLayers,
    JobKind,
    KVCache,
    PublishedFile,
    Recipe,
    SourceCount,
    Upstream,
    read_signer,
)
from tests.support.engines import served
from tests.support.factories import (
    VERSIONS,
    calibration_set,
    entry,
    expert_tokens,
    hub_file,
    job,
    provenance,
    published_file,
    report,
    source_figures,
    task_figures,
    upstream,
)

GOLDEN = Path(__file__).parent / "golden"


def rendered(source: Upstream | None = None, *, chat: bool = True, **facts: Any) -> str:
    asked, source = entry(), source or upstream()
    return render_card(job(asked, source), provenance(asked, source, **facts), chat=chat)


def files(*paths: str) -> tuple[PublishedFile, ...]:
    return tuple(published_file(path) for path in paths)


def front_matter(text: str) -> dict[str, Any]:
    """As the Hub cuts it out: between the first two lines of three dashes."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match
    metadata = yaml.safe_load(match[1])
    assert isinstance(metadata, dict)
    return metadata


def as_html(text: str) -> str:
    body = text.split("\n---\n\n", 1)[1]
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


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
        license_file="LICENSE",
        languages=("en", "de"),
        tags=("chat", "not-a-known-tag"),
        gated="manual",
    )
    texts: dict[str, Any] = {
        "label": "lab/texts@01234567",
        "documents": 1200,
        "duplicates_removed": 34,
        "languages": ("en", "de"),
    }
    sources = (
        SourceCount(**texts, tokens=3072, share=0.75),
        SourceCount(label="texts/chat.jsonl", documents=40, tokens=1024, share=0.25),
    )
    return rendered(
        source,
        recipe=Recipe(modules_to_not_convert=tuple(f"model.layers.{layer}.mlp.gate" for layer in range(6))),
        calibration=calibration_set(sources=sources),
        report=report(
            sources=(
                source_figures("lab/texts@01234567 (test)", kl_mean_rounding=0.0456),
                source_figures("texts/more.txt", kl_mean=0.02, kl_mean_rounding=0.03, documents_left_out=2),
            ),
            text_label="lab/texts@01234567 (test) and texts/more.txt",
            pictures=(KL_BY_POSITION, ERROR_BY_LAYER),
            tasks=(task_figures(), task_figures("a_b", metric="bits_per_byte", source=0.0, source_stderr=None)),
            versions=VERSIONS | {"lm_eval": "0.4.13"},
            served=(served(), served(engine="vllm", version="0.32", kernel="AWQMarlinLinearMethod", device="L4")),
        ),
        tensor_parallel=(1, 2, 4),
        kv_cache=KVCache(layers=(CachedLayers(layers=36, heads=8, width=128),), contexts=(8192, 32_768)),
        artifact_dtype="bfloat16",
        device="NVIDIA L4",
        files=files("LICENSE", "NOTICE.txt", "README.md", "config.json", "model.safetensors"),
    )


EXPERTS = tuple(expert_tokens(layer, lowest=layer + 12, unseen=int(layer == 5)) for layer in range(1, 48))
# As the source names them and, where that differs, as the model's class does.
GATES = tuple(
    f"{path}.{layer}.mlp.gate" for layer in range(1, 48) for path in ("model.layers", "model.text.layers")
)


def mixture() -> str:
    return rendered(
        report=report(experts=EXPERTS), modules_to_not_convert=(*GATES, "model.layers.0.mlp.down_proj")
    )


def vision_language() -> str:
    source = upstream(pipeline_tag="image-text-to-text")
    return rendered(source, modules_to_not_convert=("visual", "model.visual", "model.multi_modal_projector"))


GOLDEN_CARDS = [
    ("base.md", rendered(chat=False)),
    ("chat.md", full()),
    ("mixture.md", mixture()),
    ("vision.md", vision_language()),
]


@pytest.mark.parametrize(("name", "text"), GOLDEN_CARDS, ids=[name for name, _ in GOLDEN_CARDS])
def test_the_card_reads_as_it_should(name: str, text: str) -> None:
    """After a wanted change: GOLDEN=write pytest tests/card/test_card.py, then read the diff."""
    if os.environ.get("GOLDEN") == "write":
        (GOLDEN / name).write_text(text)
    difference = difflib.unified_diff((GOLDEN / name).read_text().splitlines(), text.splitlines(), lineterm="")
    assert "\n".join(difference) == ""
    assert check_card(text) == ([], [])


def test_the_numbers_follow_the_report() -> None:
    worse = report(perplexity_quantized=15.2, size_quantized_bytes=50_000_000, tokens=7)
    rows = tables(rendered(report=worse))[0]
    assert rows[0][0] == "on 7 tokens of builtin:stdlib (test split)"
    assert (rows[1][2], rows[5][2]) == ("15.200 (-5.00 %)", "50.0 MB (160.00 \N{MULTIPLICATION SIGN} smaller)")


@pytest.mark.parametrize("text", [rendered(), full()], ids=["base", "full"])
def test_commands_are_narrow_and_pin_the_release_and_every_table_column_has_a_name(text: str) -> None:
    blocks = re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)
    tag = re.findall(r"The tag `(.*?)`", text)[0]
    assert [(tag in block, "quantized/Tiny-awq" in block) for block in blocks] == [(True, True)] * 4
    compile(next(block for block in blocks if "import" in block), "card", "exec")
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 72
    assert all(name.strip() for table in tables(text) for name in table[0])
    assert not re.search(r"TGI|text-generation-launcher|[KMG]iB", text)


@pytest.mark.parametrize(
    ("stated", "facts", "shown"),
    [
        ({}, {"tensor_parallel": (1,)}, "\ntensor parallel size: 1\n"),
        ({}, {"recipe": Recipe(method="awq")}, "to 4 bits, group size 128, by\nAutoAWQ's own search."),
        ({"license": "other", "license_name": "qwen"}, {}, "The licence is the source's: other (qwen)."),
        ({"license": None, "license_name": "qwen"}, {}, "The licence is the source's: qwen."),
        ({"license": None}, {}, "The licence is the source's: not stated."),
        ({"licenses": ("mit", "isc")}, {}, "The licence is the source's: mit, isc."),
        ({"license": "mit"}, {"files": files("config.json")}, "The licence is the source's: mit.\n"),
    ],
)
def test_facts_are_stated_in_words(stated: dict[str, Any], facts: dict[str, Any], shown: str) -> None:
    assert shown in rendered(upstream(**stated), **facts)


VISION = ("model.visual",)
AUDIO = ("audio_tower", "multi_modal_projector")


@pytest.mark.parametrize(
    ("names", "chat", "shown", "hidden"),
    [
        (VISION, True, "import AutoModelForImageTextToText, AutoProcessor", "AutoTokenizer"),
        (VISION, True, "the vision tower is not. Calibration", "AutoModelForCausalLM"),
        (VISION, False, "# From here on as on the source's card.", "apply_chat_template"),
        (AUDIO, True, "import AutoModelForMultimodalLM, AutoProcessor", '"type": "image"'),
        (AUDIO, True, "the audio tower and projector are not. Calibration", "images were not"),
        (("lm_head",), True, "import AutoModelForCausalLM, AutoTokenizer", "--enable-multimodal"),
        (("lm_head",), True, "embeddings, norms and the output head |", "lm_head"),
    ],
)
def test_a_multimodal_model_is_loaded_with_its_own_class(
    names: tuple[str, ...], chat: bool, shown: str, hidden: str
) -> None:
    text = rendered(chat=chat, modules_to_not_convert=names)
    assert shown in text
    assert hidden not in text
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")
    commands = [block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "--enable-multi" in block]
    assert len(commands) == (names != ("lm_head",))
    assert all("sglang" in command for command in commands)


@pytest.mark.parametrize(
    ("names", "task"), [(VISION, "image-text-to-text"), (AUDIO, "any-to-any"), ((), "text-generation")]
)
def test_a_task_that_upstream_does_not_state_follows_from_the_parts(names: tuple[str, ...], task: str) -> None:
    text = rendered(upstream(pipeline_tag=None), modules_to_not_convert=names)
    assert front_matter(text)["pipeline_tag"] == task


def test_a_multimodal_mixture_has_all_that_both_have() -> None:
    text = rendered(report=report(experts=EXPERTS), modules_to_not_convert=(*VISION, *GATES))
    assert "vision tower `model.visual`; routers `model.layers.*.mlp.gate` (47 layers) |" in text
    assert "| calibration tokens of one expert, median | 4,096 |" in text
    assert "from transformers" not in text
    assert "--enable-multimodal" in text


def test_a_card_is_the_same_each_time_and_says_nothing_of_when_or_where() -> None:
    first = rendered()
    assert rendered(report=replace(report(), duration_s=77.0)) == first
    assert not re.search(r"\b20\d\d-\d\d|/home/|/tmp/|/work/", first)
    assert first.endswith("\n")
    assert not re.search(r"[ \t]$|\n\n\n", first.split("## Licence", maxsplit=1)[0], re.MULTILINE)


# --- metadata -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "written"),
    [
        ({"license": "MIT"}, {"license": "mit"}),
        ({"license": "Apache License 2.0"}, {"license": "other", "license_name": "apache-license-2.0"}),
        ({"license": "Foo!", "license_name": "Foo 2"}, {"license": "other", "license_name": "foo-2"}),
        ({"license": "other", "license_name": "Qwen AI"}, {"license": "other", "license_name": "qwen-ai"}),
        ({"license": "other"}, {"license": "other", "license_name": "other"}),
        ({"license": "(c)"}, {"license": "other", "license_name": "c"}),
        ({"license": "©"}, {"license": "other", "license_name": "other"}),
        ({"license": None, "license_name": "Qwen Research"}, {"license_name": "qwen-research"}),
        ({"license": None}, {}),
        ({"licenses": ("MIT", "apache-2.0")}, {"license": ["mit", "apache-2.0"]}),
        ({"licenses": ("mit", "MIT")}, {"license": "mit"}),
        ({"licenses": ("mit", "Lab 1", "Lab 2")}, {"license": ["mit", "other"], "license_name": "lab-1-lab-2"}),
        ({"license": "llama99"}, {"license": "other", "license_name": "llama99"}),
        ({"license": "mit" * 100}, {"license": "other", "license_name": ("mit" * 100)[:100]}),
        ({"license": "mi\u202et"}, {"license": "other", "license_name": "mi-t"}),
        ({"languages": ("English", "en", "zh-CN", "code", "EN")}, {"language": ["en", "zh-CN", "code"]}),
        ({"languages": ("English",)}, {}),
        ({"pipeline_tag": None}, {"pipeline_tag": "text-generation"}),
        ({"pipeline_tag": "Text Generation"}, {"pipeline_tag": "text-generation"}),
        ({"pipeline_tag": "image-text-to-text"}, {"pipeline_tag": "image-text-to-text"}),
        ({"new_version": "lab/Tiny-2"}, {"new_version": "lab/Tiny-2"}),
        ({"new_version": None}, {}),
    ],
)
def test_metadata_is_what_the_hub_accepts(stated: dict[str, Any], written: dict[str, Any]) -> None:
    made = rendered(upstream(**stated))
    metadata = front_matter(made)
    keys = {name: (name.removesuffix("s"),) for name in ("languages", "pipeline_tag", "new_version")}
    asked = keys.get(next(iter(stated)), ("license", "license_name", "license_link"))
    assert {key: metadata[key] for key in asked if key in metadata} == written
    assert check_card(made) == ([], [])


def test_a_card_names_the_successor_that_the_source_names() -> None:
    said = "**The source has a successor**: its card names [lab/Tiny-2](/lab/Tiny-2) as the newer version."
    assert said in rendered(upstream(new_version="lab/Tiny-2"))
    assert "successor" not in rendered(upstream())


PAGE = "https://huggingface.co/lab/Tiny/blob/0123/docs/Terms.md"


@pytest.mark.parametrize(
    ("link", "carried", "written"),
    [
        ({"license_file": "docs/Terms.md", "license_url": PAGE}, "docs/Terms.md", "docs/Terms.md"),
        ({"license_file": "docs/Terms.md", "license_url": PAGE}, "LICENSE", PAGE),
        ({"license_url": "https://lab.example/terms"}, "LICENSE", "https://lab.example/terms"),
        ({}, "LICENSE", None),
    ],
)
def test_the_licence_link_leads_somewhere(link: dict[str, str], carried: str, written: str | None) -> None:
    source = upstream(license="other", license_name="lab", license_link="docs/Terms.md", **link)
    made = rendered(source, files=files("README.md", carried))
    assert front_matter(made).get("license_link") == written
    assert f" See [{carried}]({carried})." in made
    assert check_card(made) == ([], [])


def test_python_files_that_are_left_out_are_told() -> None:
    names = ("modeling_[x].py", "a.py", "b.py", "c.py", "sub/d.py")
    source = upstream(files=tuple(hub_file(name) for name in names))
    said = r"The source's own Python files (modeling\_\[x\].py, a.py, b.py, …) are not in this repo"
    assert said in rendered(source)
    trusting = entry(trust_remote_code=True)
    assert "Python files" not in render_card(job(trusting, source), provenance(trusting, source), chat=True)


def test_the_card_names_the_source_as_the_hub_does() -> None:
    asked, source = entry(repo_id="lab/Old"), upstream(repo_id="lab/New")
    made = render_card(job(asked, source), provenance(asked, source), chat=True)
    assert front_matter(made)["base_model"] == "lab/New"
    assert "lab/Old" not in made


def test_several_texts_have_a_table_of_their_own() -> None:
    texts = (source_figures("lab/texts@0123 (en/test)", kl_mean=0.01), source_figures("chats.jsonl", kl_mean=0.02))
    made = rendered(report=report(sources=texts, text_label="two texts"))
    found = [row for row in made.splitlines() if row.startswith(("| lab/texts", "| chats"))]
    assert found == [
        "| lab/texts@0123 (en/test) | 16.000 | 16.400 | 93.5 % | 0.0100 nats |",
        "| chats.jsonl | 16.000 | 16.400 | 93.5 % | 0.0200 nats |",
    ]
    one, none = (rendered(report=report(sources=listed)).partition("\n---\n\n")[2] for listed in (texts[:1], ()))
    assert one == none


def test_a_text_that_the_source_does_not_know_is_said() -> None:
    texts = (source_figures("a.txt"), source_figures("b.txt", perplexity_source=23_456.7))
    said = "b.txt: the source's own perplexity is 23,457: does it know this language?"
    made = rendered(report=report(sources=texts))
    assert said in made
    assert "a.txt: the source" not in made


def test_documents_that_calibration_used_too_are_counted() -> None:
    made = rendered(report=report(sources=(source_figures("a.txt", documents_left_out=3),)))
    assert "a.txt: 3 documents that share text with calibration left out" in made


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
        upstream(license="other", license_name=licence),
        calibration=calibration_set(sources=(counted,)),
        report=report(
            text_label=text,
            sources=(
                source_figures(text, kl_mean_rounding=0.05),
                source_figures(text, perplexity_source=1e6, kl_mean_rounding=0.001),
            ),
            served=(served(version=text, kernel=text, device=text),),
        ),
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
    assert [list(map(len, table)) for table in tables(made)] == [list(map(len, table)) for table in tables(plain)]
    assert "49" not in made.rsplit("## Licence", maxsplit=1)[1]
    assert len(as_html(made)) < len(as_html(plain)) + 4000
    made.encode()


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("path", ["{}", "model.layers.0.{}", "{}.0.mlp", "vision.{}"])
def test_names_of_modules_cannot_be_markup(text: str, path: str) -> None:
    names = tuple(path.replace("{}", name) for name in (text, f"{text}.more", text[::-1]))
    made = as_html(rendered(modules_to_not_convert=names))
    plain = as_html(rendered(modules_to_not_convert=tuple(path.replace("{}", f"a{n}") for n in range(3))))
    tags = [re.sub(r"</?code>", "", " ".join(re.findall(r"<[^>]*>", each))).split() for each in (made, plain)]
    assert tags[0] == tags[1]
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
    stated = {"license": f"The {text}", "license_name": text, "pipeline_tag": f"The {text}"}
    made = rendered(upstream(**stated, languages=(text, "en")))
    metadata = front_matter(made)
    assert (metadata["license"], metadata["base_model"]) == ("other", "lab/Tiny")
    assert check_card(made) == ([], [])


@settings(deadline=None, max_examples=60, database=None)
@given(text=st.text(min_size=1, max_size=60))
def test_any_text_stays_text(text: str) -> None:
    made = rendered(upstream(license="other", license_name=text))
    made.encode()
    assert front_matter(made)["base_model"] == "lab/Tiny"
    assert as_html(made).count("<a ") == as_html(rendered(upstream(license="mit"))).count("<a ")


# --- the template itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(model_card._facts(Origin.of(job(), chat=True), provenance())))
def test_every_fact_is_used_and_a_missing_one_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    facts = model_card._facts(Origin.of(job(), chat=True), provenance())
    del facts[name]
    monkeypatch.setattr(model_card, "_facts", lambda work, made: facts)
    with pytest.raises((UndefinedError, TypeError), match=r"undefined|StrictUndefined"):
        rendered()


def test_what_was_left_out_of_the_calibration_text_is_said_where_there_is_any() -> None:
    counts: dict[str, Any] = {"label": "chats", "documents": 9, "tokens": 90, "share": 0.5}
    left_out = SourceCount(**counts, rows_left_out={"without text": 3, "<b>": 1})
    text = rendered(calibration=calibration_set(sources=(SourceCount(**counts), left_out)))
    assert text.count("rows left out") == 1
    assert "\n\nchats: rows left out: 1 \\<b\\>, 3 without text.\n\n[`provenance" in text
    assert "left out" not in rendered()


@pytest.mark.parametrize(("kind", "workflow"), [(JobKind.RELEASE, "model"), (JobKind.REFRESH, "watch")])
def test_card_names_the_workflow_that_signs_this_release(kind: JobKind, workflow: str) -> None:
    """Where `signed_by` includes each workflow of a repository: OpenSSF's tool wants the very one."""
    before, after = "https://github.com/you/bot/.github/workflows/", "@refs/heads/main"
    asked = entry(signed_by=read_signer(f"{before}*{after}"))
    text = render_card(job(asked, kind=kind), provenance(asked), chat=True)
    assert f"--require-signature '{before}{workflow}.yml{after}'" in text
    assert f"--identity '{before}{workflow}.yml{after}'" in text
    assert "--identity_provider 'https://token.actions.githubusercontent.com'" in text
