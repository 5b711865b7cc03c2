"""Mistakes in small files that their content alone shows."""

from __future__ import annotations

import json

import pytest

from bot.checkpoint.small_files import check_small_files, template_warnings
from bot.errors import UpstreamError


def config(template: object) -> dict[str, bytes]:
    return {"tokenizer_config.json": json.dumps({"chat_template": template}).encode()}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"generation_config.json": b'{"a": 1, "a": NaN}', "processor_config.json": b'{"a": 1, "a": 1}'},
        {"chat_template.jinja": b"{% generation %}{{ 'x' * 2000000000 }}{% break %}{% endgeneration %}"},
        config(None),
        config("{{ messages }}"),
        config([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]),
        # Not read where there is a chat_template.jinja.
        config("{% broken") | {"chat_template.jinja": b"{{ messages }}"},
    ],
)
def test_files_that_transformers_reads_pass(files: dict[str, bytes]) -> None:
    check_small_files(files)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"generation_config.json": b"{"}, "generation_config.json: not valid JSON: Expecting property name"),
        ({"added_tokens.json": b"[1]"}, "added_tokens.json: not a JSON object"),
        ({"added_tokens.json": b"[" * 100_000}, "added_tokens.json: not valid JSON: RecursionError"),
        ({"added_tokens.json": b"\xff{}"}, "added_tokens.json: not UTF-8 text"),
        (
            {"tokenizer_config.json": b'{"a": 1, "a": 1}'},
            "tokenizer_config.json: not valid JSON: key 'a' occurs twice",
        ),
        (
            {"processor_config.json": b'{"auto_map": {}, "a": 1, "a": 1}'},
            "processor_config.json: not valid JSON: key 'a' occurs twice",
        ),
        (
            {"chat_template.jinja": b"a\n{% if %}"},
            "chat_template.jinja: the chat template has a syntax error: line 2",
        ),
        ({"chat_template.jinja": b"{{" + b"(" * 100_000}, "the chat template has a syntax error: RecursionError"),
        ({"chat_template.json": b'{"chat_template": "{% for %}"}'}, "chat_template.json: the chat template has"),
        (config("{% endif %}"), "tokenizer_config.json: the chat template has a syntax error: line 1"),
        (config(7), "tokenizer_config.json: chat_template is neither a template nor a list"),
        (config([]), "tokenizer_config.json: chat_template is neither a template nor a list"),
        (config([{"name": "rag", "template": ""}]), "no chat template is named `default`, only rag"),
        (config([{"name": "default", "template": "{%"}]), "tokenizer_config.json, template 'default': the chat"),
    ],
)
def test_the_first_mistake_is_named_with_its_file(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        check_small_files(files)
    assert caught.value.message.startswith(message) or message in caught.value.message


def test_two_templates_that_differ_are_a_warning() -> None:
    files = config("a") | {"chat_template.jinja": b"b"}
    assert template_warnings(files) == (
        "chat_template.jinja and the template in tokenizer_config.json differ; chat_template.jinja is used",
    )
    assert template_warnings(config("b") | {"chat_template.jinja": b"b"}) == ()
    assert template_warnings(config("a")) == ()
