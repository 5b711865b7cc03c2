"""transformers and gptqmodel, in the environment that `serve:` has for them, read what we publish.

Nothing of this project is installed there. It takes some 2 GB, and minutes the first time.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.errors import EnvironmentProblem
from bot.records import Engine, no_progress
from bot.serve.engines import engine_python, last_line
from tests.support.real_model import NotAvailableError

ENGINE = Engine(name="gptqmodel", version="7.6.0")
_SCRIPT = Path(__file__).with_name("independent_reader.py")


def reader_python() -> Path:
    """The Python of the environment, made by the first call. Raises NotAvailableError when pip cannot."""
    try:
        return engine_python(ENGINE, no_progress)
    except EnvironmentProblem as error:
        raise NotAvailableError(error.message, hint=error.hint) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads from a Hub, with nothing of our environment. home: where it keeps what it downloads."""

    endpoint: str
    home: Path

    def perplexity(self, repo_id: str, revision: str, tokens: Path) -> float:
        return float(self._ask("perplexity", repo_id, revision, str(tokens)))

    def answers(self, repo_id: str, revision: str, *questions: str) -> list[str]:
        return [str(answer) for answer in self._ask("answers", repo_id, revision, *questions)]

    def _ask(self, what: str, *words: str) -> Any:
        """Raises EnvironmentProblem when it fails."""
        environment = {"PATH": os.environ["PATH"], "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [str(reader_python()), str(_SCRIPT), what, *words],
            env=environment | {"HF_ENDPOINT": self.endpoint},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EnvironmentProblem(f"{words[0]}: the reader failed: {last_line(done.stderr)}")
        return json.loads(done.stdout.splitlines()[-1])[what]
