"""What can be seen wrong in a model's small files from their content alone, without running a template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bot.checkpoint.config import parse_object
from bot.checkpoint.repo_files import CHAT_TEMPLATE, EDITED, TOKENIZER_CONFIG
from bot.errors import UpstreamError, untrusted_input

# Where a chat template may be, beside chat_template.jinja: vision-language models had it in the first.
TEMPLATE_SETTINGS = ("chat_template.json", TOKENIZER_CONFIG)
_LOOK = "It has to be corrected upstream."


def check_small_files(files: Mapping[str, bytes]) -> None:
    """files: content by path. Raises UpstreamError for the first that is no JSON or whose template is broken."""
    for path, content in sorted(files.items()):
        if path.endswith(".json"):
            settings = _settings(path, content)
            # Where both exist, transformers reads the template of chat_template.jinja alone.
            if CHAT_TEMPLATE not in files:
                for name, template in _templates(settings.get("chat_template"), where=path):
                    check_template(template, where=name)
        elif path.endswith(".jinja"):
            check_template(_text(path, content), where=path)


def has_chat_template(files: Mapping[str, bytes]) -> bool:
    """files: content by path. Raises UpstreamError for one that is no JSON."""
    settings = (_settings(path, files[path]) for path in TEMPLATE_SETTINGS if path in files)
    return CHAT_TEMPLATE in files or any(each.get("chat_template") for each in settings)


def template_warnings(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Two different chat templates: servers disagree about which one to use."""
    if not (CHAT_TEMPLATE in files and TOKENIZER_CONFIG in files):
        return ()
    inline = _settings(TOKENIZER_CONFIG, files[TOKENIZER_CONFIG]).get("chat_template")
    if inline in (None, files[CHAT_TEMPLATE].decode(errors="replace")):
        return ()
    return (f"{CHAT_TEMPLATE} and the template in {TOKENIZER_CONFIG} differ; {CHAT_TEMPLATE} is used",)


def check_template(text: str, *, where: str) -> None:
    """Raises UpstreamError when it has a syntax error. It is parsed only: compiling would run constant parts."""

    def broken(reason: str) -> UpstreamError:
        return UpstreamError(f"{where}: the chat template has a syntax error: {reason}", hint=_LOOK)

    with untrusted_input(broken):
        try:
            _ENVIRONMENT.parse(text)
        except TemplateSyntaxError as error:
            raise broken(f"line {error.lineno}: {error.message}") from error


class _Generation(Extension):
    """The tag `{% generation %}`, which marks what the assistant says.

    https://huggingface.co/docs/transformers/chat_templating_writing
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# As transformers sets it up, utils/chat_template_utils.py
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
)


def _settings(path: str, content: bytes) -> dict[str, Any]:
    # A key that occurs twice is read in two ways by different readers, and this file may be edited.
    if path == TOKENIZER_CONFIG or (path in EDITED and b"auto_map" in content):
        return parse_object(content, where=path)
    with untrusted_input(lambda reason: UpstreamError(f"{path}: not valid JSON: {reason}", hint=_LOOK)):
        value = json.loads(_text(path, content))
    if not isinstance(value, dict):
        raise UpstreamError(f"{path}: not a JSON object", hint=_LOOK)
    return value


def _templates(value: object, *, where: str) -> Iterator[tuple[str, str]]:
    """Where each is, and its text. value: of the key `chat_template`, one template or a list of named ones.

    https://huggingface.co/docs/transformers/chat_templating_multiple_templates
    """
    if value is None:
        return
    if isinstance(value, str):
        yield where, value
        return
    named = value if isinstance(value, list) else []
    found = {
        item["name"]: item["template"]
        for item in named
        if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
    }
    if not found or len(found) != len(named):
        raise UpstreamError(f"{where}: chat_template is neither a template nor a list of named ones", hint=_LOOK)
    if "default" not in found:
        names = ", ".join(found)
        raise UpstreamError(f"{where}: no chat template is named `default`, only {names}", hint=_LOOK)
    yield from ((f"{where}, template {name!r}", text) for name, text in found.items())


def _text(path: str, content: bytes) -> str:
    with untrusted_input(lambda reason: UpstreamError(f"{path}: not UTF-8 text: {reason}", hint=_LOOK)):
        return content.decode()
