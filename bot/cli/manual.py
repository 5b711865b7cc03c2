"""The command line as a section of the README: `python -m bot.manual README.md` writes it anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

from bot.cli.app import app

BEGIN, END = "<!-- commands: made by `make readme` -->", "<!-- /commands -->"


def commands() -> str:
    """Markdown of every verb that people type: what it does, its options, an example."""
    group: Any = typer.main.get_command(app)
    shown = [command for command in group.commands.values() if not command.hidden]
    head = "`-v` / `--verbose` and `--log-file FILE` come before the verb, and hold for all of them.\n"
    return "\n".join([head, *(text for command in shown for text in _section(command, "awq-bot"))])


def with_commands(readme: str) -> str:
    """The README with the section between its two marks made anew."""
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{commands()}\n{END}{rest.split(END, 1)[1]}"


def _section(command: Any, parent: str) -> list[str]:
    """A verb, or a group of verbs with what it says of itself first."""
    name = f"{parent} {command.name}"
    if not hasattr(command, "commands"):
        return [_command(command, name)]
    about = f"#### `{name} …`\n\n{_plain(command.help)}\n"
    return [about, *(text for verb in command.commands.values() for text in _section(verb, name))]


def _command(command: Any, name: str) -> str:
    arguments = " ".join(param.metavar for param in command.params if param.param_type_name == "argument")
    text = _plain(command.help)
    rows = [_option(param) for param in command.params if param.param_type_name == "option"]
    table = ["| option | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([f"#### `{name}{' ' + arguments if arguments else ''}`", "", text, "", *table])


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts) if name != "--help")
    default = param.default
    shown = f" Default: `{default}`." if default not in (None, False, "", ()) and not callable(default) else ""
    required = " Required." if param.required else ""
    variable = f" Or `{param.envvar}`." if param.envvar else ""
    return f"| {names} | {_plain(param.help)}{required}{variable}{shown} |"


def _plain(text: str | None) -> str:
    """Help texts carry rich's markup; Markdown has its own."""
    return re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", " ".join((text or "").split())).replace(
        " Example:", "\n\nExample:"
    )


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_commands(path.read_text()))
