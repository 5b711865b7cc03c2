"""`lint`: whether a published card says what its artifact and its provenance bear out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from bot.cli.console import JsonOption, model_reference, out, print_json
from bot.cli.terminal import shown
from bot.errors import PublishError
from bot.hub.session import Hub
from bot.jobs.lint import lint_repo
from bot.records import Finding, LintResult

_WORDS = {"ok": "[green]ok[/]", "wrong": "[red]WRONG[/]", "unknown": "[dim]?[/]"}


def lint(
    context: typer.Context,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="A repo that awq-bot published, or its URL.")],
    revision: Annotated[str | None, typer.Option(help="A tag or commit. Default: the head of main.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every number, link and command of a published card against its artifact, provenance and source.

    Works on any repo that awq-bot published. Reads small files and the headers of the weights, in about ten
    requests; `verify` compares the files themselves. Exits with 7 when something on the card is wrong. What a
    person wrote, and what cannot be read, is listed as not checkable.

    Example: [bold]awq-bot lint your-namespace/Qwen3-4B-awq[/]
    """
    repo = model_reference(repo_id)
    options = _options(context.find_root().command)
    result = lint_repo(Hub.from_environment(), repo.repo_id, revision=revision or repo.revision, options=options)
    if as_json:
        print_json(result)
    else:
        out.print(_table(result))
        out.print(_summary(result), markup=False)
    if result.wrong:
        raise typer.Exit(PublishError.exit_code)


def _options(command: Any) -> Mapping[str, frozenset[str]]:
    """name -> its options, of each command of awq-bot; a group has those of all its commands."""
    return {name: frozenset({*_names(verb), "-h", "--help"}) for name, verb in command.commands.items()}


def _names(verb: Any) -> Iterator[str]:
    for param in verb.params:
        yield from (*param.opts, *param.secondary_opts)
    for below in getattr(verb, "commands", {}).values():
        yield from _names(below)


def _table(result: LintResult) -> Table:
    """A row for each fact that is wrong or not checkable, and one for all others of a file."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "where", "what", "found", "expected"):
        table.add_column(name, overflow="fold")
    for file in dict.fromkeys(item.file for item in result.findings):
        found = [item for item in result.findings if item.file == file]
        borne_out = sum(item.status == "ok" for item in found)
        if borne_out:
            table.add_row(_WORDS["ok"], shown(file), _count(borne_out, "fact"), "", "")
        for item in found:
            if item.status != "ok":
                cells = (_place(item), item.what, item.found, item.expected)
                table.add_row(_WORDS[item.status], *map(shown, cells))
    return table


def _place(item: Finding) -> str:
    return f"{item.file}:{item.line}" if item.line else item.file


def _summary(result: LintResult) -> str:
    unknown = sum(item.status == "unknown" for item in result.findings)
    borne_out = len(result.findings) - unknown - len(result.wrong)
    return (
        f"{result.repo_id} at {result.tag}: {_count(borne_out, 'fact')} borne out, {len(result.wrong)} wrong, "
        f"{unknown} not checkable"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
