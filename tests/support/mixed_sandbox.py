"""A small model's sandbox with every kind of calibration source, and what happens to it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bot.localhub import Fault, LocalHub
from tests.support.outcomes import Result
from tests.support.sandbox import Sandbox, wait_for
from tests.support.small_model import SOURCE, conversations, sentence, small_model

Before = Callable[[str], Sandbox]

# One source of each kind; chats and texts are data sets on the same Hub.
WATCHLIST = """\
publish_to: quantized
defaults:
  calibration:
    samples: 16
    seq_len: 64
    sources:
      - builtin: stdlib
      - {{file: notes.txt, weight: 2}}
      - {{dataset: lab/chats, revision: {chats}, split: train_sft, weight: 2}}
      - {{dataset: lab/texts, revision: {texts}, split: en/train, column: body, weight: 3}}
  gate: {{max_kl: 100, min_top1: 0, max_perplexity_ratio: 100}}
models:
  - lab/small
"""

# Only pull asks with HEAD; the plan has read all that it needs by then.
AT_PULL = Fault(path=r"resolve/.*/model\.safetensors", method="HEAD", delay_s=3)


def build_mixed_sandbox(root: Path) -> Sandbox:
    """A small model calibrated on every kind of source. Its Hub is not started yet."""
    root.mkdir(parents=True)
    sandbox = Sandbox(LocalHub(root / "hub"), root)
    sandbox.hub.seed(SOURCE, small_model())
    chats = sandbox.hub.seed(
        "lab/chats", {"data/train_sft-00000-of-00001.jsonl": conversations()}, repo_type="dataset"
    )
    texts = sandbox.hub.seed("lab/texts", {"en/train/0000.parquet": _texts()}, repo_type="dataset")
    (root / "notes.txt").write_text("\n".join(sentence(number) for number in range(60)))
    write_watchlist(sandbox, WATCHLIST.format(chats=chats, texts=texts))
    return sandbox


def write_watchlist(sandbox: Sandbox, content: str | bytes) -> None:
    (sandbox.root / "watchlist.yaml").write_bytes(content.encode() if isinstance(content, str) else content)


def edit_watchlist(sandbox: Sandbox, old: str, new: str) -> str:
    """Returns what it was."""
    before = (sandbox.root / "watchlist.yaml").read_text()
    assert old in before
    write_watchlist(sandbox, before.replace(old, new))
    return before


def _texts() -> bytes:
    rows = [{"body": sentence(number), "language": "en"} for number in range(2000, 2060)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def meanwhile(sandbox: Sandbox, fault: Fault, act: Callable[[], object], *words: str) -> Result:
    """A run during whose held-back request something else happens."""
    sandbox.hub.faults.add(fault)
    with sandbox.start(*words) as process:
        wait_for(lambda: not sandbox.hub.faults.pending or process.poll() is not None)
        act()
        out, err = process.communicate(timeout=120)
    return Result(words, process.returncode, out, err)
