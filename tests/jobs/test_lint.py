"""`lint` of published repos: what was published passes, and each single edit is found and named."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.card.model_card import render_card
from bot.hub.republish import sign_release
from bot.hub.session import Hub
from bot.jobs.lint import lint_repo
from bot.localhub import LocalHub
from bot.records import Finding, LintResult, Provenance, Recipe, TensorInfo, from_json, no_progress, to_json
from tests.support.factories import CONFIG, expert_tokens, layer_tensors
from tests.support.linted import README, Shape, edit, make_release, seed_source, weights
from tests.support.release import Release
from tests.support.repos import SOURCE, TARGET, all_requests, as_bot, forget_requests
from tests.support.signers import with_key
from tests.support.watch import moe_tensors


@pytest.fixture
def release(hub: LocalHub, tmp_path: Path) -> Release:
    made = make_release(hub, tmp_path)
    made.publish()
    return made


def checked(hub: LocalHub, revision: str | None = None) -> LintResult:
    """By anybody: without a token."""
    return lint_repo(Hub(hub.endpoint), TARGET, revision=revision)


def others(result: LintResult) -> list[Finding]:
    return [item for item in result.findings if item.status != "ok"]


def card_of(hub: LocalHub) -> str:
    return hub.files(TARGET)["README.md"].decode()


def edited(hub: LocalHub, before: str, after: str) -> LintResult:
    """After a person replaced one text on the card. Only the first place, and it is there."""
    card = card_of(hub)
    assert before in card
    edit(hub, TARGET, "README.md", card.replace(before, after, 1).encode())
    return checked(hub)


# --- as it was published ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("release")
def test_what_was_published_is_borne_out_by_its_artifact_in_ten_requests(hub: LocalHub) -> None:
    forget_requests(hub)
    result = checked(hub)
    assert others(result) == []
    assert len(result.findings) > 60
    assert len([item for item in all_requests(hub) if "agent-harnesses" not in item.path]) <= 10


def test_a_model_with_a_chat_template_and_a_licence_file_is_borne_out(hub: LocalHub, tmp_path: Path) -> None:
    readme = README.replace("apache-2.0", "other\nlicense_name: lab-licence\nlicense_link: LICENSE")
    seed_source(hub, chat_template__jinja="{{ messages }}", README__md=readme)
    make_release(hub, tmp_path).publish()
    assert "apply_chat_template" in card_of(hub)
    assert "[LICENSE](LICENSE)" in card_of(hub)
    assert others(checked(hub)) == []


def test_later_releases_are_borne_out_with_their_changelog(
    hub: LocalHub, release: Release, tmp_path: Path
) -> None:
    for number in (2, 3):
        edit(hub, SOURCE, "config.json", json.dumps(CONFIG | {"n": number}).encode())
        make_release(hub, tmp_path).publish()
    forget_requests(hub)
    result = checked(hub)
    assert others(result) == []
    assert "releases" in {item.what for item in result.findings}
    assert card_of(hub).count("/tree/upstream-") == 3
    assert len([item for item in all_requests(hub) if "agent-harnesses" not in item.path]) <= 10
    assert others(checked(hub, release.job.tag)) == []


def test_a_signed_release_names_its_key(hub: LocalHub, tmp_path: Path) -> None:
    ours = with_key()
    made = make_release(hub, tmp_path, caller=replace(as_bot(hub), signing=ours.credential), signed_by=ours.signer)
    made.publish()
    result = checked(hub)
    assert others(result) == []
    assert "signature" in {item.what for item in result.findings}
    other = f"key:{'0' * 64}"
    wrong = edited(hub, f"--require-signature '{ours.signer}'", f"--require-signature '{other}'").wrong
    assert (wrong[0].what, wrong[0].expected) == ("signature", other)


@pytest.mark.usefixtures("release")
def test_a_release_that_was_signed_afterwards_keeps_its_card(hub: LocalHub) -> None:
    sign_release(replace(as_bot(hub), signing=with_key().credential), TARGET, progress=no_progress)
    assert others(checked(hub)) == []


def renamed(*pairs: tuple[str, str], config: dict[str, Any] = CONFIG) -> tuple[TensorInfo, ...]:
    """The tensors of a Qwen3 with other names."""
    found = layer_tensors(config)
    for old, new in pairs:
        found = tuple(replace(tensor, name=tensor.name.replace(old, new)) for tensor in found)
    return found


def with_latents() -> tuple[TensorInfo, ...]:
    down = [
        TensorInfo(
            name=f"model.layers.{number}.self_attn.kv_a_proj_with_mqa.weight", dtype="BF16", shape=(96, 256)
        )
        for number in (0, 1)
    ]
    return (*(tensor for tensor in layer_tensors() if ".k_proj" not in tensor.name), *down)


MIXTURE = CONFIG | {"model_type": "qwen3_moe", "moe_intermediate_size": 128, "num_experts": 4}
UNTIED = CONFIG | {"tie_word_embeddings": False}
LATENT = {"model_type": "deepseek_v3", "kv_lora_rank": 64, "qk_rope_head_dim": 32}
WINDOW = {"model_type": "gemma2", "sliding_window": 1024, "max_position_embeddings": 8192}
NESTED = {"model_type": "llava", "text_config": CONFIG | {"model_type": "mistral", "sliding_window": None}}
# As many as the model's own, in another dtype.
EXTRA = (TensorInfo(name="model.mtp.weight", dtype="BF16", shape=(9000, 256)),)
SHAPES = {
    "qwen3": Shape(),
    "bfloat16": Shape(dtype="bfloat16"),
    "groups of 64": Shape(recipe=Recipe(group_size=64)),
    "method awq": Shape(recipe=Recipe(method="awq")),
    "short context": Shape(config=CONFIG | {"max_position_embeddings": 2048}),
    "windows": Shape(config=CONFIG | WINDOW),
    "latent attention": Shape(config=CONFIG | LATENT, tensors=with_latents()),
    "linear attention": Shape(config=CONFIG | {"model_type": "qwen3_next"}),
    "left out": Shape(left_out=("1.mlp.down_proj", "0.self_attn.o_proj")),
    "untied": Shape(config=UNTIED, tensors=layer_tensors(UNTIED)),
    "mixture": Shape(
        config=MIXTURE,
        tensors=moe_tensors(MIXTURE),
        left_out=(".mlp.gate",),
        experts=(expert_tokens(0, experts=4), expert_tokens(1, experts=4)),
    ),
    "nested": Shape(config=NESTED, tensors=renamed(("model.", "language_model.model."))),
    "tensors that nothing reads": Shape(unused=EXTRA),
    "one head": Shape(
        config=CONFIG | {"num_key_value_heads": 1},
        tensors=layer_tensors(CONFIG | {"num_key_value_heads": 1}),
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_repos_of_many_kinds_are_borne_out(
    hub: LocalHub, tmp_path: Path, shape: Shape, record_property: Callable[[str, object], None]
) -> None:
    make_release(hub, tmp_path, shape).publish()
    found = others(checked(hub))
    record_property("lint", len(found))
    assert found == []


# --- one edit each ------------------------------------------------------------------------------------------

# What is replaced, by what, and what is said: the name of the fact, what was found, and what it should be.
EDITS = {
    "perplexity": ("16.400 (+2.50 %)", "16.100 (+2.50 %)", "perplexity", "16.100 (+2.50 %)", "16.400 (+2.50 %)"),
    "ratio": ("(+2.50 %)", "(+0.50 %)", "perplexity", "16.400 (+0.50 %)", "16.400 (+2.50 %)"),
    "top-1": ("| 93.5 % |", "| 98.5 % |", "same most likely next token", "98.5 %", "93.5 %"),
    "KL": ("0.0123 nats", "0.0023 nats", "KL divergence to the source, mean", "0.0023 nats", "0.0123 nats"),
    "percentile": ("0.2345 nats", "0.1345 nats", "99th percentile", "0.1345 nats", "0.2345 nats"),
    "size": ("| 1.9 MB (", "| 0.9 MB (", "size of the weights", "0.9 MB", "1.9 MB"),
    "bits": ("| 4.16 |", "| 3.16 |", "bits per weight", "3.16", "4.16"),
    "by text": ("0.0200 nats", "0.0100 nats", "texts/more.txt", "0.0100 nats", "0.0200 nats"),
    "rounding": ("3.7 times", "9.7 times", "On lab/texts", "9.7", "3.7"),
    "tokens": ("on 32,768 tokens", "on 99,999 tokens", "on 32,768 tokens", "on 99,999", "on 32,768"),
    "GPU": ("| 8 GB |", "| 6 GB |", "8,192", "6 GB", "8 GB"),
    "cache": ("| 8.4 MB |", "| 4.4 MB |", "8,192", "4.4 MB", "8.4 MB"),
    "formula": ("2 layers", "3 layers", "KV cache", "3 layers", "2 layers"),
    "tensor parallel": ("1 or 2 (", "1, 2 or 4 (", "tensor parallel", "4", ""),
    "group size": ("group size 128, asym", "group size 64, asym", "format", "group size 64", "group size 128"),
    "dtype": ("| float16:", "| bfloat16:", "not quantized", "bfloat16", "float16"),
    "seed": ("seed 0", "seed 7", "calibration", "seed 7", "seed 0"),
    "hash": ("`5e5e5e5e5e5e5e5e…`", "`5e5e5e5e5e5e5e5f…`", "calibration", "5e5f", "5e5e"),
    "version": ("torch 2.13.0", "torch 2.14.0", "tools", "torch 2.14.0", "torch 2.13.0"),
    "command": ("vllm serve quantized/Tiny-awq", "vllm serve other/Tiny-awq", "command", "other/", "quantized/"),
    "Python": (
        'repo = "quantized/Tiny-awq"',
        'repo = "other/Tiny"',
        "command",
        "other/Tiny",
        "quantized/Tiny-awq",
    ),
    "verify": ("awq-bot verify quantized", "awq-bot verify other", "command", "other", "quantized"),
    "link": ("(provenance.json)", "(provenance.yaml)", "provenance.json", "provenance.yaml", "provenance.json"),
    "picture": (
        "](assets/error-by-layer.png)",
        "](assets/none.png)",
        "Relative error",
        "none.png",
        "error-by-layer",
    ),
    "base model": ("base_model: lab/Tiny", "base_model: lab/Other", "base_model", "lab/Other", "lab/Tiny"),
    "licence": ("license: apache-2.0", "license: mit", "license", "mit", "apache-2.0"),
    "licence in words": ("source's: apache-2.0.", "source's: mit.", "The licence is", "mit", "apache-2.0"),
    "model-index": ("value: 16.4\n", "value: 15.4\n", "metrics[0].value", "15.4", "16.4"),
    "result": ("name: lab/texts", "name: other/texts", "dataset.name", "other/texts", "lab/texts"),
    "language": ("- de\n", "- fr\n", "language[1]", "fr", "de"),
    "heading": ("# Tiny-awq", "# Huge-awq", "Tiny-awq", "# Huge-awq", "# Tiny-awq"),
    "added number": (
        "## Licence",
        "It makes 120 tokens per second.\n\n## Licence",
        "It makes",
        "120 tokens",
        "no such fact",
    ),
    "added command": (
        "## Licence",
        "```bash\nhf download other/x\n```\n\n## Licence",
        "command",
        "other/x",
        TARGET,
    ),
    "added option": (
        "## Licence",
        "```bash\nawq-bot verify quantized/Tiny-awq --fast\n```\n\n## Licence",
        "command",
        "--fast",
        "an option of `awq-bot verify`",
    ),
    "added link": (
        "## Licence",
        "See [this](weights.bin).\n\n## Licence",
        "link",
        "weights.bin",
        "a file of this repo",
    ),
    "added tag": (
        "## Licence",
        "See [this](/quantized/Tiny-awq/tree/v2).\n\n## Licence",
        "link",
        "/tree/v2",
        "a tag of this repo",
    ),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A published repo on a Hub that runs for all edits."""
    folder = tmp_path_factory.mktemp("lint")
    with LocalHub(folder / "hub") as hub:
        make_release(hub, folder).publish()
        yield hub, card_of(hub)


@pytest.mark.parametrize(("before", "after", "what", "found", "expected"), EDITS.values(), ids=EDITS)
def test_a_single_edit_is_found_and_named(
    shared: tuple[LocalHub, str], before: str, after: str, what: str, found: str, expected: str
) -> None:
    hub, card = shared
    assert before in card
    changed = card.replace(before, after, 1)
    edit(hub, TARGET, "README.md", changed.encode())
    options = {"verify": {"--revision", "--require-signature", "--json"}}
    result = lint_repo(Hub(hub.endpoint), TARGET, options=options)
    [wrong] = result.wrong
    assert wrong.file == "README.md"
    assert what in wrong.what
    assert found in wrong.found
    assert expected in wrong.expected
    # The line is one that the edit has changed.
    lines = changed.splitlines()
    assert lines[wrong.line - 1] not in card.splitlines()


def test_a_revision_that_the_repo_does_not_have_is_found(shared: tuple[LocalHub, str]) -> None:
    hub, card = shared
    tag = checked(hub, "main").tag
    for number, place in enumerate((f"--revision {tag}", f'revision = "{tag}"'), 1):
        edit(hub, TARGET, "README.md", card.replace(place, place.replace(tag, "latest"), 1).encode())
        [wrong] = checked(hub).wrong
        assert "latest" in wrong.found, number
        assert tag in wrong.expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("None of this text was used for calibration.", "This text was not used for calibration."),
        ("## Licence", "Thanks to everybody who helped.\n\n## Licence"),
        ("## Licence", "See [the docs](https://docs.vllm.ai).\n\n## Licence"),
        ("tags:\n", "tags:\n- ours\n"),
    ],
)
def test_words_of_a_person_are_not_called_wrong(shared: tuple[LocalHub, str], before: str, after: str) -> None:
    hub, card = shared
    if before == "tags:\n":
        before, after = "- chat\nmodel-index", "- chat\n- ours\nmodel-index"
    assert before in card
    edit(hub, TARGET, "README.md", card.replace(before, after, 1).encode())
    result = checked(hub)
    assert result.wrong == ()
    assert {"it was changed after it was published"} < {item.found for item in others(result)}


# --- the artifact -------------------------------------------------------------------------------------------


def proven(hub: LocalHub, change: Any) -> LintResult:
    """With another provenance. The card stays."""
    made = from_json(Provenance, hub.files(TARGET)["provenance.json"])
    edit(hub, TARGET, "provenance.json", to_json(change(made)).encode())
    return checked(hub)


def with_report(**fields: Any) -> Any:
    return lambda made: replace(made, report=replace(made.report, **fields))


@pytest.mark.parametrize(
    ("change", "what", "found"),
    [
        (with_report(size_quantized_bytes=1_000_000), "size of the weights", "1.0 MB"),
        (with_report(size_source_bytes=90_000_000), "size of the source's weights", "90.0 MB"),
        (with_report(bits_per_weight=3.5), "bits per weight", "3.500"),
        (with_report(bits_per_weight_file=3.5), "bits per weight, everything", "3.500"),
        (lambda made: replace(made, artifact_dtype="bfloat16"), "dtype of what is not quantized", "bfloat16"),
        (lambda made: replace(made, tensor_parallel=(1, 2, 4, 8)), "tensor parallel sizes", "1, 2, 4, 8"),
        (
            lambda made: replace(made, kv_cache=replace(made.kv_cache, contexts=(1,))),
            "KV cache",
            "1,024 bytes at 1 tokens",
        ),
        (
            lambda made: replace(made, recipe=replace(made.recipe, group_size=64)),
            "quantization_config.group_size",
            "64",
        ),
        (
            lambda made: replace(made, files=(*made.files[:-1], replace(made.files[-1], size_bytes=7))),
            "token",
            "bytes",
        ),
    ],
)
@pytest.mark.usefixtures("release")
def test_a_provenance_that_the_artifact_does_not_bear_out_is_found(
    hub: LocalHub, change: Any, what: str, found: str
) -> None:
    wrong = proven(hub, change).wrong
    assert any(what in item.what and found in item.found for item in wrong), wrong
    # The card still follows from the artifact.
    assert [item for item in wrong if item.file == "README.md"] == []


@pytest.mark.parametrize("number", [10**400, 10**4299])
@pytest.mark.usefixtures("release")
def test_numbers_that_no_model_has_are_one_line(hub: LocalHub, number: int) -> None:
    def change(made: Provenance) -> Provenance:
        files = tuple(replace(file, size_bytes=number) for file in made.source.source_files)
        return replace(made, source=replace(made.source, source_files=files))

    [figures] = [item for item in proven(hub, change).wrong if item.what == "figures"]
    assert figures.found.startswith("no card can be made of them: ")


@pytest.mark.usefixtures("release")
def test_other_weights_are_found_by_their_headers(hub: LocalHub) -> None:
    half = tuple(tensor for tensor in Shape().artifact if ".layers.1." not in tensor.name)
    edit(hub, TARGET, "model.safetensors", weights(half))
    named = {item.what for item in checked(hub).wrong}
    assert {"model.safetensors", "size of the weights", "KV cache"} <= named


@pytest.mark.parametrize(
    ("path", "content", "what"),
    [
        ("config.json", b"{", "config"),
        ("config.json", b"[" * 100_000, "config"),
        ("model.safetensors", b"version https://git-lfs", "weights"),
        ("model.safetensors", b"", "weights"),
    ],
)
@pytest.mark.usefixtures("release")
def test_an_artifact_that_cannot_be_read_is_said_to_be_so(
    hub: LocalHub, path: str, content: bytes, what: str
) -> None:
    edit(hub, TARGET, path, content)
    result = checked(hub)
    assert any(item.what == what and item.status == "unknown" for item in result.findings)
    assert path in {item.what for item in result.wrong}


@pytest.mark.usefixtures("release")
def test_a_source_that_is_gone_leaves_its_facts_uncheckable(hub: LocalHub) -> None:
    hub.store.delete(hub.repo(SOURCE))
    result = checked(hub)
    assert result.wrong == ()
    assert any("the source cannot be read: missing" in item.found for item in others(result))


@pytest.mark.parametrize("link", ["LICENSE", "https://example.com/licence"])
def test_a_source_that_was_renamed_is_the_source_still(hub: LocalHub, tmp_path: Path, link: str) -> None:
    readme = README.replace("apache-2.0", f"other\nlicense_name: lab-licence\nlicense_link: {link}")
    seed_source(hub, README__md=readme)
    make_release(hub, tmp_path).publish()
    hub.store.move(hub.repo(SOURCE), "lab/Renamed")
    result = checked(hub)
    assert result.wrong == ()
    assert [item.found for item in others(result)] == ["the source is now lab/Renamed"]


# --- other cards --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("release")
def test_a_card_of_another_version_is_said_to_be_that_and_its_figures_are_compared(hub: LocalHub) -> None:
    made = from_json(Provenance, hub.files(TARGET)["provenance.json"])
    old = card_of(hub).replace("## How to use it", "## Usage").replace("Tags never move, so", "So")
    old = old[: old.index("model-index")] + old[old.index("---\n\n# Tiny") :]
    assert "| 0.0123 nats |\n" in old
    # It had more digits, and other words.
    old = old.replace("| 0.0123 nats |\n", "| 0.01230 nats |\n", 1).replace("device |", "machine |")
    edit(hub, TARGET, "README.md", old.encode())
    edit(hub, TARGET, "provenance.json", to_json(replace(made, card=1)).encode())
    result = checked(hub)
    assert result.wrong == ()
    assert "the card is of version 1 of awq-bot's cards, and this is version 2" in {
        item.found for item in others(result)
    }
    edit(hub, TARGET, "README.md", old.replace("| 93.5 % |", "| 99.5 % |", 1).encode())
    [wrong] = checked(hub).wrong
    assert (wrong.what, "99.5 %" in wrong.found) == ("same most likely next token", True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x" * 10_000_000, "it has 10,000,000 bytes"),
        (b"---\n" + bytes(range(256)) * 4, "it is not UTF-8"),
        (b"---\n\0\n---\n", "it is not text"),
        (b"", "it has no metadata"),
        (b"# Tiny-awq\n", "it has no metadata"),
        (b"---\nlicense: mit\n", "its metadata has no end"),
        (b"---\nlicense: [\n---\n", "its metadata is not YAML in line"),
        (b"---\n- a\n---\n", "its metadata is no mapping"),
        (b"---\n---\n", "its metadata is no mapping"),
        (b"---\na: " + b"[" * 50_000 + b"\n---\n", "its metadata is not YAML"),
        (
            b"---\na: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
            b"d: [*c,*c,*c,*c,*c,*c,*c,*c]\n---\n",
            "more than 2,000 values",
        ),
        (b"---\na: &a [*a]\n---\n", "nested too deeply"),
        (b"---\na: 1\n---\n" + b"\n" * 10_000, "it has 10,0"),
    ],
)
@pytest.mark.usefixtures("release")
def test_what_is_no_card_is_one_line(hub: LocalHub, content: bytes, said: str) -> None:
    hub.seed(TARGET, {"README.md": content})
    wrong = [item for item in checked(hub).wrong if item.file == "README.md"]
    assert len(wrong) == 1
    assert said in wrong[0].found


@pytest.mark.parametrize(
    "text",
    [
        "| a |\n" * 4000,
        "`" * 100_000,
        "](" * 60_000,
        "a" * 150_000,
        "1," * 70_000,
        "```bash\n" + "\\\n" * 4000,
        "a/" * 70_000,
        "| size of the weights | | 1 |\n" * 4000,
    ],
)
def test_a_card_that_is_made_to_be_slow_is_checked_all_the_same(shared: tuple[LocalHub, str], text: str) -> None:
    hub, card = shared
    edit(hub, TARGET, "README.md", f"{card}\n{text}\n".encode())
    started = time.monotonic()
    assert checked(hub).repo_id == TARGET
    assert time.monotonic() - started < 20


def test_the_card_of_a_release_is_what_lint_expects_of_it(release: Release) -> None:
    made = release.state.provenance
    assert made is not None
    assert render_card(release.job, made, chat=False) == card_of(release.hub)
