"""Every command, link and make target that the documentation prints exists. Nothing is executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bot.cli.app import app

ROOT = Path(__file__).parents[1]


def files(*patterns: str) -> list[str]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    found = {path for path in found if path.suffix != ".png"}
    return sorted(str(path.relative_to(ROOT)) for path in found)


MARKDOWN = files("README.md", "CONTRIBUTING.md", "SECURITY.md", ".github/**/*.md", "tests/*/README.md")
TEMPLATES = files("templates/*.jinja")
CODE = files("bot/**/*.py")
SCRIPTS = sorted({*files("Makefile", "watchlist.yaml", ".pre-commit-hooks.yaml", ".github/**/*")} - {*MARKDOWN})
FENCE = re.compile(r"^ *```(?P<kind>[a-z]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
BOLD = re.compile(r"\[bold\](.*?)\[/\]", re.DOTALL)
# At the start, or after what may precede a command in a shell; up to the end of that command.
COMMAND = re.compile(
    r"(?:^|exec |/bin/|\(BIN\)/|&& |\w+=\S+ |\$RUNNER_EXEC\" )awq-bot"
    r"(?P<words>(?: [^|;&<>]*?)?)(?= \d?[<>]|[|;&<>]|$)"
)
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
# What stands for a verb.
PLACEHOLDER = re.compile(r"VERB|…|[${].*")


def read(path: str | Path) -> str:
    return (ROOT / path).read_text()


def code_in(text: str) -> Iterator[str]:
    """Contents of code blocks and code spans; of a console session only what is typed."""
    for block in FENCE.finditer(text):
        lines = re.sub(r"\\\n\s*", "", block["text"]).splitlines()
        typed = [line.split("$ ", 1)[1] for line in lines if line.lstrip().startswith("$ ")]
        yield from typed if block["kind"] == "console" else lines
    yield from SPAN.findall(FENCE.sub("", text))


def printed_commands() -> Iterator[tuple[str, list[str]]]:
    """Where, and the words after `awq-bot`."""
    for path in (*MARKDOWN, *TEMPLATES, *CODE, *SCRIPTS):
        text = re.sub(r"{{.*?}}", "VALUE", read(path))
        if path in SCRIPTS:
            pieces = [line.strip() for line in text.replace("\\\n", "").splitlines()]
        elif path in CODE:
            pieces = [*SPAN.findall(text), *BOLD.findall(text)]
        else:
            pieces = [*code_in(text)]
        for piece in pieces:
            yield from ((path, shlex.split(found["words"], comments=True)) for found in COMMAND.finditer(piece))


def problem_with(words: list[str]) -> str | None:
    """Why the command line refuses these words, except for what placeholders stand for."""
    command: Any = typer.main.get_command(app)
    positional = 0
    words = [*words]
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            name, _, value = word.partition("=")
            takes_value = {
                option: not getattr(param, "is_flag", False)
                for param in command.params
                for option in (*param.opts, *param.secondary_opts)
            } | {"-h": False, "--help": False}
            if name not in takes_value:
                return f"no option {name}"
            if takes_value[name] and not value and (not words or words.pop(0).startswith("--")):
                return f"{name} needs a value"
        elif hasattr(command, "commands"):
            if PLACEHOLDER.fullmatch(word):
                return None
            if word not in command.commands:
                return f"no verb {word}"
            command = command.commands[word]
        else:
            positional += 1
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    if positional and not arguments:
        return "takes no arguments"
    return None


def test_enough_commands_are_found() -> None:
    """The patterns above still match how commands are written."""
    found = [*printed_commands()]
    verbs = {words[0] for _, words in found if words}
    assert {"check", "plan", "run", "quantize", "verify", "doctor", "hub", "demo", "actions"} <= verbs
    for path in ("README.md", "Makefile", ".github/workflows/watch.yml", "templates/model_card.md.jinja"):
        assert path in {where for where, _ in found}


def test_every_printed_command_is_accepted_by_the_command_line() -> None:
    problems = [(path, shlex.join(words), problem_with(words)) for path, words in printed_commands()]
    assert [each for each in problems if each[2] is not None] == []


def heading_anchors(text: str) -> set[str]:
    """As GitHub makes them of a Markdown file's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MARKDOWN)
def test_links_lead_to_files_and_headings_that_exist(path: str) -> None:
    text = read(path)
    for link in LINK.finditer(FENCE.sub("", text)):
        target = (ROOT / path).parent / link["path"] if link["path"] else ROOT / path
        assert target.exists(), f"{path}: {link[0]}"
        if link["anchor"]:
            assert link["anchor"] in heading_anchors(target.read_text()), f"{path}: {link[0]}"


def test_every_make_target_that_is_printed_exists() -> None:
    makefile = read("Makefile")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    printed = [piece for path in MARKDOWN for piece in code_in(read(path))]
    printed += [line.partition("run: ")[2] for path in SCRIPTS for line in read(path).splitlines()]
    used = {found for piece in printed for found in re.findall(r"(?:^|&& )make ([a-z][a-z-]*)", piece)}
    assert {"demo", "test", "check"} <= used
    assert used <= targets


def test_repository_variables_of_the_workflows_are_documented() -> None:
    used = {name for path in files(".github/**/*.yml") for name in re.findall(r"vars\.(\w+)", read(path))}
    documented = {name for path in MARKDOWN for name in re.findall(r"`(\w+)`", read(path))}
    assert used
    assert used <= documented


def test_each_test_that_the_threat_table_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)", read("SECURITY.md")))
    defined = set(re.findall(r"^def (test_\w+)", "".join(map(read, files("tests/**/test_*.py"))), re.MULTILINE))
    assert named
    assert named - defined == set()
