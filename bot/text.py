"""How figures and strangers' words are shown to people: sizes, durations, Markdown that cannot be injected."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LONGEST_TEXT = 200  # characters of somebody else's, unless told otherwise

# What Markdown, HTML and TeX read; and what makes an address a link: `https://` its colon, `www.` its dot, and
# `a@b.c` its at.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#!&~$]|:(?=//)|(?<=www)\.|@(?=[^\s@]*\.))", re.IGNORECASE)
# GitHub looks for people and issues in what was rendered, where backslashes are gone.
_REFERENCE = re.compile(r"(@|#|(?<=://)|(?<=GH-))(?=\w)", re.IGNORECASE)
_CODE = re.compile(r"(?<!`)`([^`|\\]+)`(?!`)")
_JOINER = "\N{WORD JOINER}"  # is not seen, and breaks no line


def size(size_bytes: int) -> str:
    """Bytes in the decimal units that disks and the Hub use."""
    value, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, _ = value / 1000, units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def gib(size_bytes: int) -> str:
    value = size_bytes / 2**30
    return f"{value:.2f} GiB" if value >= 0.1 else f"{size_bytes / 2**20:.2f} MiB"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def rounded(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}"


def one_line(text: object, longest: int = _LONGEST_TEXT) -> str:
    """Text from elsewhere on one line, without what cannot be printed, and not without end."""
    line = "".join(char for char in " ".join(str(text).split()) if char.isprintable())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def plain(text: object, longest: int = _LONGEST_TEXT) -> str:
    """Text from elsewhere on one line, unable to be markup or a link."""
    return _MARKUP.sub(r"\\\1", one_line(text, longest))


def quiet(text: object, longest: int = 1000) -> str:
    """As plain, and on GitHub it names nobody and refers to no issue."""
    return _silenced(one_line(text, longest))


def quiet_code(text: object) -> str:
    """As quiet, but the `code` of our own hints stays code; whatever is in it, it can be no more than that."""
    parts = _CODE.split(one_line(text, 1000))
    return "".join(f"`{part}`" if number % 2 else _silenced(part) for number, part in enumerate(parts))


def _silenced(text: str) -> str:
    return _MARKUP.sub(r"\\\1", _REFERENCE.sub(rf"\1{_JOINER}", text))


def render(template: str, **facts: object) -> str:
    """A file of templates/. Raises jinja2.UndefinedError when it names a fact that is not there."""
    return _environment().get_template(template).render(**facts)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_template_folder()),
        autoescape=_is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (gib, percent, plain, quiet, quiet_code, rounded, size, duration)
    environment.filters.update({item.__name__: item for item in filters})
    return environment


def _is_html(template: str | None) -> bool:
    return template is not None and template.endswith(".html.jinja")


def _template_folder() -> Path:
    """templates/ beside the package in a checkout, inside it once installed."""
    package = Path(str(resources.files("bot")))
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"
