from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.sandbox import Quantized
from tests.workflows.deployment import ASSET, Deploy, Deployment, open_deployment
from tests.workflows.interpreter.parser import WorkflowParser


@pytest.fixture(scope="session")
def parser() -> Iterator[WorkflowParser]:
    with WorkflowParser() as started:
        yield started


@pytest.fixture
def deploy(parser: WorkflowParser, quantized: Quantized, tmp_path: Path) -> Iterator[Deploy]:
    """prepared: what quantizing takes its minutes for lies on the runner's disk already."""
    with ExitStack() as stack:

        def make(*names: str, prepared: bool = True) -> Deployment:
            made = quantized(ASSET) if prepared else None
            return stack.enter_context(open_deployment(parser, tmp_path / "d", *names, quantized=made))

        yield make
