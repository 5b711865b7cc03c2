"""The commands and links of a card, and whether they lead to its own repo."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from jinja2.utils import url_quote

from bot.card.parts import Element
from bot.text import one_line

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LINK = re.compile(r"(?<!\\)\]\(([^)\s]{0,500})\)")
_IN_PYTHON = re.compile(r"""(revision\s*=\s*)?(["'])([\w./-]+)\2""", re.ASCII)
_SHELLS = ("bash", "sh", "shell", "console", "zsh")
# Programs whose first argument, or whose option, names a model on the Hub.
_BY_ARGUMENT = {("vllm", "serve"), ("hf", "download"), ("huggingface-cli", "download")}
_BY_OPTION = ("--model-path", "--model", "--model-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What commands and links may name. options: of each command of awq-bot; None: they are not checked."""

    target: str
    source: str
    source_sha: str
    tags: Collection[str]
    paths: Collection[str]
    options: Mapping[str, Collection[str]] | None = field(default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """line: of the card."""

    line: int
    found: str
    expected: str


def command_faults(block: Element, around: Surroundings) -> Iterator[Fault]:
    """In a block of code: other repos than this one, revisions that it does not have, options that nothing has."""
    lines = block.text.splitlines()
    language = lines[0].strip("`~ ").lower()
    if language in ("python", "py"):
        for number, line in enumerate(lines[1:-1], block.line + 1):
            yield from _python_faults(line, number, around)
    elif language in _SHELLS:
        for number, words in _commands(lines[1:-1], block.line + 1):
            yield from _shell_faults(words, number, around)


def link_faults(element: Element, around: Surroundings) -> Iterator[Fault]:
    """Files that the repo does not have; its own tags and the source's commits that do not exist."""
    files = {url_quote(path) for path in around.paths} | set(around.paths)
    for link in _LINK.findall(element.text):
        parts = link.split("/", 4)
        if not link.startswith(("/", "#")) and "://" not in link and link not in files:
            yield Fault(line=element.line, found=one_line(link), expected="a file of this repo")
        if not link.startswith("/") or len(parts) < 3:
            continue
        repo, page = f"{parts[1]}/{parts[2]}", parts[3] if len(parts) > 3 else ""
        revision = parts[4].partition("/")[0] if len(parts) > 4 else ""
        if (
            page in ("tree", "blob", "resolve", "commit")
            and repo == around.target
            and not _known(revision, around)
        ):
            yield Fault(line=element.line, found=one_line(link), expected="a tag of this repo")
        if page and repo == around.source and revision != around.source_sha and _is_own(around, element, revision):
            yield Fault(line=element.line, found=one_line(link), expected=around.source_sha)


def _is_own(around: Surroundings, element: Element, revision: str) -> bool:
    """Rows of the changelog link to earlier commits of the source, which the row's own tag begins with."""
    return not any(f"upstream-{revision[:8]}-" in tag and tag in element.text for tag in around.tags)


def _known(revision: str, around: Surroundings) -> bool:
    return revision in around.tags or revision == "main" or _COMMIT.fullmatch(revision) is not None


def _commands(lines: list[str], first: int) -> Iterator[tuple[int, list[str]]]:
    """Joined where a line ends with a backslash. What no shell could split is left out."""
    joined, start = "", first
    for number, line in enumerate(lines, first):
        start = start if joined else number
        joined += line.strip().removeprefix("$ ").removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            try:
                words = shlex.split(joined, comments=True)
            except ValueError:
                words = []
            if words:
                yield start, words
            joined = ""


def _shell_faults(words: list[str], line: int, around: Surroundings) -> Iterator[Fault]:
    given = _option_values(words)
    repos = [given[name] for name in _BY_OPTION if name in given]
    if words[0] == "awq-bot" and len(words) > 1:
        yield from _unknown_options(words, line, around)
        repos += [word for word in words[2:3] if words[1] in ("verify", "lint")]
    elif tuple(words[:2]) in _BY_ARGUMENT:
        repos += words[2:3]
    elif not repos:
        return
    for repo in repos:
        if repo.lower() != around.target.lower() and _REPO.fullmatch(repo):
            yield Fault(line=line, found=one_line(repo), expected=around.target)
    revision = given.get("--revision")
    if revision is not None and not _known(revision, around):
        yield Fault(line=line, found=one_line(revision), expected="a tag of this repo")


def _option_values(words: list[str]) -> dict[str, str]:
    pairs = zip(words, [*words[1:], ""], strict=True)
    apart = {word: after for word, after in pairs if word.startswith("--") and "=" not in word}
    return apart | {name: value for name, _, value in (word.partition("=") for word in words) if value}


def _unknown_options(words: list[str], line: int, around: Surroundings) -> Iterator[Fault]:
    if around.options is None:
        return
    if words[1] not in around.options:
        yield Fault(line=line, found=one_line(f"awq-bot {words[1]}"), expected="a command of awq-bot")
        return
    for word in words[2:]:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in around.options[words[1]]:
            yield Fault(line=line, found=one_line(name), expected=f"an option of `awq-bot {words[1]}`")


def _python_faults(line: str, number: int, around: Surroundings) -> Iterator[Fault]:
    for revision, _, text in _IN_PYTHON.findall(line):
        if revision and not _known(text, around):
            yield Fault(line=number, found=text[:200], expected="a tag of this repo")
        named = "repo" in line or "from_pretrained" in line or "model" in line.partition("=")[0]
        if not revision and named and _REPO.fullmatch(text) and text.lower() != around.target.lower():
            yield Fault(line=number, found=text[:200], expected=around.target)
