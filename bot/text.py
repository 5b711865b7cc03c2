"""Text for people: sizes, durations, templates, and untrusted text escaped so that it cannot become markup."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_CHARS = 200  # of an untrusted text

# What Markdown, HTML and TeX treat as markup, and the character that turns an address into a link: the colon of
# `https://`, the dot of `www.`, the @ of `a@b.c`. See https://github.github.com/gfm/#autolinks-extension-
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#!&~$]|:(?=//)|(?<=www)\.|@(?=[^\s@]*\.))", re.IGNORECASE)
# GitHub looks for mentions and issue numbers after rendering, when backslashes are gone. See
# https://docs.github.com/en/get-started/writing-on-github/working-with-advanced-formatting/autolinked-references-and-urls
_REFERENCE = re.compile(r"(@|#|(?<=://)|(?<=GH-))(?=\w)", re.IGNORECASE)
_CODE = re.compile(r"(?<!`)`([^`|\\]+)`(?!`)")
_JOINER = "\N{WORD JOINER}"  # invisible, and allows no line break
_KEPT = "\n\t" + _JOINER
# A command begins a line with `::`, or has `##[` anywhere.
_COMMAND = re.compile(r"^[^\S\n]*:(?=:)|##(?=\[)", re.MULTILINE)


def size(size_bytes: int) -> str:
    """Bytes in the decimal units that disks and the Hub use."""
    value, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, _ = value / 1000, units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def count(number: int) -> str:
    """A large number as the Hub shows it: 8.2B."""
    value, units = float(number), ["", "K", "M", "B", "T"]
    while value >= 1000 and len(units) > 1:
        value, _ = value / 1000, units.pop(0)
    return f"{value:.1f}{units[0]}" if units[0] else f"{number}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def method_text(method: str) -> str:
    """How a recipe's method quantizes, as cards and pictures say it."""
    return {
        # AWQ: https://arxiv.org/abs/2306.00978. GPTQ: https://arxiv.org/abs/2210.17323
        "awq+gptq": "AWQ scaling and clipping, then GPTQ-style error-compensated rounding",
        "awq": "AutoAWQ's own search",
    }[method]


def closer(kl: float, kl_rounding: float | None) -> str:
    """How an artifact compares with plain rounding; empty where that was not measured."""
    if kl_rounding is None or kl <= 0 or kl_rounding <= 0:
        return ""
    if kl > kl_rounding:
        return f"{kl / kl_rounding:.1f} times farther from the source"
    return f"{kl_rounding / kl:.1f} times closer to the source"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def rounded(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def printable(text: object) -> str:
    """Untrusted text with its line breaks, without control characters and what changes the order of a line."""
    return "".join(char for char in str(text) if char.isprintable() or char in _KEPT)


def without_commands(text: str) -> str:
    """Text that a runner of GitHub Actions prints and does not carry out: it reads commands from all output.

    https://github.com/actions/runner/blob/main/src/Runner.Common/ActionCommand.cs
    """
    return _COMMAND.sub(r"\g<0> ", text)


def one_line(text: object, max_chars: int = _MAX_CHARS) -> str:
    """Untrusted text on one line, without unprintable characters, cut to max_chars."""
    words = "".join(char for char in str(text) if char.isprintable() or char.isspace()).split()
    line = " ".join(words)
    return line if len(line) <= max_chars else f"{line[: max_chars - 1]}…"


def escape_markdown(text: object, max_chars: int = _MAX_CHARS) -> str:
    """Untrusted text on one line that cannot become markup or a link."""
    return _MARKUP.sub(r"\\\1", one_line(text, max_chars))


def escape_github(text: object, max_chars: int = 1000) -> str:
    """Like escape_markdown, and on GitHub it mentions no account and links to no issue."""
    return _escape_references(one_line(text, max_chars))


def escape_github_hint(text: object) -> str:
    """Like escape_github, but `code` stays code, as in the hints of our own errors."""
    parts = _CODE.split(one_line(text, 1000))
    return "".join(f"`{part}`" if number % 2 else _escape_references(part) for number, part in enumerate(parts))


def _escape_references(text: str) -> str:
    return _MARKUP.sub(r"\\\1", _REFERENCE.sub(rf"\1{_JOINER}", text))


def render(template: str, **facts: object) -> str:
    """Render a file of templates/. Raises jinja2.UndefinedError when it uses a fact that was not given."""
    return _environment().get_template(template).render(**facts)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_template_folder()),
        autoescape=_is_markup,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalized,
    )
    filters = (closer, duration, escape_github, escape_github_hint, escape_markdown, percent, rounded, size)
    environment.filters.update({item.__name__: item for item in filters})
    return environment


def _finalized(value: object) -> object:
    """What a template inserts, whatever its filters. Markup, which is a str, stays what it is."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def _is_markup(template: str | None) -> bool:
    return template is not None and template.endswith((".html.jinja", ".xml.jinja"))


def _template_folder() -> Path:
    """templates/ beside the package in a checkout, inside it once installed."""
    package = Path(str(resources.files("bot")))
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"
