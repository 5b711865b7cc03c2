"""The metadata of a README, as the server checks it before a commit."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import HfApi

from bot.localhub import LocalHub
from bot.localhub.card import body, check_card, front_matter
from tests.support.commits import push


@pytest.mark.parametrize(
    "metadata",
    [
        "license: apache-2.0",
        "license: other\nlicense_name: tiny-license\nlicense_link: LICENSE",
        "base_model: org/name\nbase_model_relation: quantized",
        "base_model:\n- org/name\n- other/name",
        "language:\n- en\n- no\n- zh-Hans\n- multilingual",
        "tags: [awq, 4-bit]\npipeline_tag: text-generation\nlibrary_name: transformers",
        "inference: false\nquantized_by: someone",
        "date: 2024-01-01",
    ],
)
def test_good_metadata(metadata: str) -> None:
    assert check_card(f"---\n{metadata}\n---\n# Title\n") == ([], [])


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ("license: apache2", "license"),
        ("license: Apache-2.0", "license"),
        ("license: other", "license"),
        ("license: other\nlicense_name: Not A Name", "license_name"),
        ("base_model: https://huggingface.co/org/name", "base_model"),
        ("base_model: 5", "base_model"),
        ("base_model: a/b\nbase_model_relation: distilled", "base_model_relation"),
        ("base_model_relation: quantized", "base_model_relation"),
        ("language: English", "language"),
        ("language: [en, 5]", "language"),
        ("license: [{a: b}]", "license"),
        ("pipeline_tag: [text-generation]", "pipeline_tag"),
        ("tags: awq", "tags"),
        ("tags: [1]", "tags"),
        ("pipeline_tag: making-tea", "pipeline_tag"),
        ("library_name: [transformers]", "library_name"),
    ],
)
def test_bad_metadata_names_the_key(metadata: str, key: str) -> None:
    errors, _ = check_card(f"---\n{metadata}\n---\n# Title\n")
    assert [error.split()[0] for error in errors] == [f'"{key}"']


@pytest.mark.parametrize("metadata", ["a: [", "- a\n- b", "just text"])
def test_metadata_that_is_no_mapping_is_an_error(metadata: str) -> None:
    assert len(check_card(f"---\n{metadata}\n---\n")[0]) == 1


@pytest.mark.parametrize("readme", ["# Title\n", "", "---\n---\n# Title\n", "text\n---\nlicense: nothing\n---\n"])
def test_missing_metadata_is_a_warning(readme: str) -> None:
    assert check_card(readme) == ([], ["empty or missing yaml metadata in repo card"])


@pytest.mark.parametrize(
    ("readme", "metadata", "text"),
    [
        ("---\na: x---y\nb: 1\n---\n---\n", {"a": "x---y", "b": 1}, "---\n"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\nText", {"license": "mit"}, "Text"),
        ("# Title\n---\na: 1\n---\n", None, "# Title\n---\na: 1\n---\n"),
    ],
)
def test_metadata_ends_at_the_second_marker(readme: str, metadata: dict[str, Any] | None, text: str) -> None:
    assert front_matter(readme) == metadata
    assert body(readme) == text


def test_client_refuses_to_commit_a_bad_card(hub: LocalHub, api: HfApi) -> None:
    api.create_repo("quantized/x")
    with pytest.raises(ValueError, match='"license" must be one of'):
        push(api, "quantized/x", {"README.md": b"---\nlicense: nonsense\n---\n"})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(api, "quantized/x", {"README.md": b"# Hi"})
    assert hub.files("quantized/x")["README.md"] == b"# Hi"
