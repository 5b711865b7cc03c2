"""A model with random weights that takes a second to quantize, its sandboxes, and what is asserted about a run.

For tests that do not ask how well it is quantized.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from bot.localhub import Fault, HubError, LocalHub
from bot.localhub.store import Content
from tests.support import factories
from tests.support.sandbox import ASSETS, Sandbox, SandboxBefore, wait_for

Result = subprocess.CompletedProcess[str]
Tree = dict[str, bytes]  # what is published: path -> content

SOURCE, TARGET = "lab/small", "quantized/small-awq"
WEIGHTS = "model.safetensors"
CARD = "---\nlicense: mit\n---\nA small model.\n"
CONFIG: dict[str, Any] = factories.CONFIG | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "torch_dtype": "float16",
    "max_position_embeddings": 4096,
}
# A licence under another name, and code that is not needed, as transformers knows the type.
MORE: dict[str, Content] = {
    "README.md": CARD.replace("mit", "other\nlicense_name: lab\nlicense_link: docs/Agreement.md"),
    "docs/Agreement.md": "Do no harm.\n",
    "config.json": json.dumps(CONFIG | {"auto_map": {"AutoConfig": "modeling_own.OwnConfig"}}),
    "modeling_own.py": "raise RuntimeError('this code ran')\n",
}
# One calibration source of each kind; chats and texts are data sets on the same Hub.
# The gate accepts everything, as how much random weights lose is not known.
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
  evaluation:
    tokens: 8192
    sources:
      - builtin: stdlib
      - {{dataset: lab/chats, revision: {chats}, split: test_sft}}
  gate: {{max_kl: 100, min_top1: 0, max_perplexity_ratio: 100}}
models:
  - lab/small
"""
_OUTPUTS = {
    "pull": ("weights.json", "source"),
    "quantize": ("quantized.json", "quantized", "layers"),
    "evaluate": ("report.json", "card"),
    "card": ("card.json",),
}
_WORDS = Path(factories.__file__).read_text().split()


# --- the model ------------------------------------------------------------------------------------------------


def small_model(**changed: Content) -> dict[str, Content]:
    """A repo; a changed path is written with `__` for `.`."""
    carried: dict[str, Content] = {
        name: ASSETS / "qwen3-tiny" / name
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    }
    generated: dict[str, Content] = {
        "README.md": CARD,
        "config.json": json.dumps(CONFIG),
        WEIGHTS: save(small_weights(CONFIG)),
    }
    return generated | carried | {path.replace("__", "."): content for path, content in changed.items()}


def small_weights(config: dict[str, Any] = CONFIG) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        info.name: (np.ones(info.shape) if len(info.shape) == 1 else random.normal(0, 0.05, info.shape)).astype(
            "f2"
        )
        for info in factories.layer_tensors(config)
    }


# --- its sandboxes; their Hubs are not started yet ------------------------------------------------------------


def build_small_sandbox(root: Path) -> Sandbox:
    """Calibrated on every kind of source, and measured on two."""
    root.mkdir(parents=True)
    sandbox = Sandbox(LocalHub(root / "hub"), root)
    sandbox.hub.seed(SOURCE, small_model() | MORE)
    splits: dict[str, Content] = {
        f"data/{split}-00000-of-00001.jsonl": _conversations(range(first, first + 40))
        for split, first in (("train_sft", 1000), ("test_sft", 3000))
    }
    chats = sandbox.hub.seed("lab/chats", splits, repo_type="dataset")
    texts = sandbox.hub.seed("lab/texts", {"en/train/0000.parquet": _texts()}, repo_type="dataset")
    (root / "notes.txt").write_text("\n".join(_sentence(number) for number in range(60)))
    write_watchlist(sandbox, WATCHLIST.format(chats=chats, texts=texts))
    return sandbox


def prepare_once(root: Path) -> Sandbox:
    """A sandbox whose job is done except for publishing. The first caller makes it."""
    done = root / "done"
    if done.exists():
        return Sandbox(LocalHub(root / "sandbox" / "hub"), root / "sandbox")
    sandbox = build_small_sandbox(root / "sandbox")
    with sandbox.hub:
        result = sandbox.call("run", "--dry-run")
    assert result.returncode == 0, result.stderr
    done.touch()
    return sandbox


@contextmanager
def copies_before(ready: Sandbox, folder: Path) -> Iterator[SandboxBefore]:
    """Copies of a prepared sandbox in which these stages, and publishing, have not run; their Hubs are up."""
    with ExitStack() as hubs:

        def make(*stages: str) -> Sandbox:
            sandbox = ready.copy_to(folder / "sandbox")
            for path in (sandbox.jobs[0] / name for stage in stages for name in _OUTPUTS[stage]):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            hubs.enter_context(sandbox.hub)
            return sandbox

        yield make


def write_watchlist(sandbox: Sandbox, content: str | bytes) -> None:
    (sandbox.root / "watchlist.yaml").write_bytes(content.encode() if isinstance(content, str) else content)


def edit_watchlist(sandbox: Sandbox, old: str, new: str) -> str:
    """Returns the text before the edit."""
    before = (sandbox.root / "watchlist.yaml").read_text()
    assert old in before
    write_watchlist(sandbox, before.replace(old, new))
    return before


def _conversations(numbers: Iterable[int]) -> bytes:
    """jsonl of short conversations."""
    rows = [
        {"messages": [{"role": "user", "content": _sentence(n)}, {"role": "assistant", "content": _sentence(-n)}]}
        for n in numbers
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _texts() -> bytes:
    rows = [{"body": _sentence(number), "language": "en"} for number in range(2000, 2060)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def _sentence(number: int) -> str:
    """Forty words, the same for the same number."""
    return " ".join(Random(number).choices(_WORDS, k=40))


# --- runs -----------------------------------------------------------------------------------------------------


def run_during_pull(sandbox: Sandbox, act: Callable[[], object]) -> Result:
    """A run that is pulling weights while `act` happens."""
    # Only pull sends HEAD; the plan has read everything that it needs by then.
    sandbox.hub.faults.add(Fault(path=r"resolve/.*/model\.safetensors", method="HEAD", delay_s=3))
    with sandbox.start("run") as process:
        wait_for(lambda: not sandbox.hub.faults.pending or process.poll() is not None)
        act()
        out, err = process.communicate(timeout=120)
    return Result(("run",), process.returncode, out, err)


def quantized_again(result: Result) -> bool:
    return "quantizing:" in result.stderr


def assert_failed(result: Result, code: int, *words: str) -> str:
    """It ended with this code, one error that holds these words, a hint and no traceback. Returns the error."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (code, 1), result.stderr
    assert [word for word in words if word not in errors[0]] == [], errors[0]
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    return errors[0]


def assert_nothing_published(sandbox: Sandbox) -> None:
    """No target, or a private one."""
    for repo in sandbox.hub.store.repos("model"):
        assert repo.namespace != "quantized" or repo.settings().private


def assert_published(sandbox: Sandbox, result: Result) -> dict[str, Any]:
    """Complete and public. Returns its provenance."""
    assert result.returncode == 0, result.stderr
    provenance: dict[str, Any] = json.loads(sandbox.hub.files(TARGET)["provenance.json"])
    refs = sandbox.hub.refs(TARGET)
    assert refs[f"refs/tags/{provenance['tag']}"] == refs["refs/heads/main"]
    assert not sandbox.hub.repo(TARGET).settings().private
    return provenance


# --- interrupted runs -----------------------------------------------------------------------------------------


def finish(sandbox: Sandbox, expected: Tree) -> None:
    """Run an interrupted sandbox again: what is published then is what is expected, and nothing is left behind."""
    sandbox.hub.faults.clear()
    result = sandbox.call("run")
    assert result.returncode == 0, result.stderr
    assert sandbox.hub.files(TARGET) == expected
    assert is_public(sandbox)
    assert sandbox.plan()["jobs"] == []
    assert left_behind(sandbox) == []


def is_public(sandbox: Sandbox) -> bool:
    try:
        return not sandbox.hub.repo(TARGET).settings().private
    except HubError:
        return False


def left_behind(sandbox: Sandbox) -> list[str]:
    return [path.name for path in sandbox.jobs[0].rglob(".*") if path.is_file() and path.name != ".lock"]
