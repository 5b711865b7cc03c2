"""The environment that the clients read at import, and a fresh local Hub with the real client to talk to it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

# Read when huggingface_hub is imported: without it the client insists on a protocol that the local Hub lacks.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# What the developer's own shell says of a Hub is not what is tested.
os.environ.pop("HF_ENDPOINT", None)
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_WRITE_TOKEN", None)
os.environ.pop("HF_CREATE_TOKEN", None)
os.environ.pop("HF_OIDC_RESOURCE", None)
os.environ.pop("HF_OIDC_ID_TOKEN", None)
os.environ.pop("HF_HUB_OFFLINE", None)
# Typer takes it for a terminal with colours.
os.environ.pop("GITHUB_ACTIONS", None)
# Read when torch is imported: test processes run side by side, and on models this small threads only wait for each
# other, which costs most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Planning caches its answers there: one cache for all processes of a test run, and none from an earlier run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="awq-bot-cache-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# Under nohup, and in the background of some shells, Ctrl-C is ignored. Children inherit that, and some of them are
# started to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import HfApi
from huggingface_hub.utils import close_session

from bot.hub import session
from bot.localhub import LocalHub
from tests.support.sandbox import Quantized, Sandbox, SandboxBefore, quantize_once
from tests.support.workspace import Workspace, open_workspace

# In this order before all others: with a file per worker, a long file that starts last is waited for.
LONG_FILES = (
    "jobs/test_pipeline.py",
    "cli/test_plain_folders.py",
    "jobs/test_interruptions.py",
    "github/test_workflow_run.py",
    "workflows/test_watch_failures.py",
    "jobs/test_trusted_publishing.py",
    "bad_input/test_recovery.py",
    "bad_input/test_cases.py",
    "workflows/test_watch.py",
    "workflows/test_ways_to_publish.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How the cases that are counted ended; workers report them with the same properties."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    called = [report for report in reports if isinstance(report, pytest.TestReport) and report.when == "call"]
    found = Counter(item for report in called for item in report.user_properties)
    if cases := sum(number for (name, _), number in found.items() if name == "input"):
        ended = ", ".join(
            f"{found['input', end]} {words}"
            for end, words in {
                "refused": "refused by name",
                "accepted": "accepted",
                "traceback": "tracebacks",
            }.items()
        )
        terminalreporter.write_line(f"inputs: {cases} cases, {ended}")
    for line, kind, unit in (("faults", "fault", " cells"), ("full", "full", " writes"), ("races", "race", "")):
        if tried := sum(number for (name, _), number in found.items() if name == kind):
            ended = ", ".join(f"{found[f'{kind}_left', wrong]} {wrong}" for wrong in ("mixed", "lost", "unnamed"))
            terminalreporter.write_line(f"{line}: {tried}{unit}, {ended}")
    if kills := sum(number for (name, _), number in found.items() if name == "kill"):
        changed = sum(
            report.failed for report in called if any(name == "kill" for name, _ in report.user_properties)
        )
        terminalreporter.write_line(f"kills: {kills}, {changed} changed")
    if probes := sum(number for (name, _), number in found.items() if name == "probe"):
        ended = f"{found['probe', 'blocked']} blocked, {found['probe', 'not possible']} not possible here"
        terminalreporter.write_line(f"isolation: {probes} probes, {ended}")
    if forgeries := [report for report in called if "forgery" in report.keywords]:
        refused = sum(report.passed for report in forgeries)
        terminalreporter.write_line(f"forgeries: {len(forgeries)}, {refused} refused")
    if linted := sum(number for (name, _), number in found.items() if name == "lint"):
        wrong = sum(int(str(value)) * number for (name, value), number in found.items() if name == "lint")
        terminalreporter.write_line(f"lint: {linted} repos, {wrong} facts not borne out")
    searched, hits = (
        sum(int(str(value)) * number for (name, value), number in found.items() if name == f"secrets_{what}")
        for what in ("searched", "found")
    )
    if searched:
        terminalreporter.write_line(f"secrets: {searched:,} searched, {hits:,} found")


@pytest.fixture(autouse=True)
def closed_connections() -> Iterator[None]:
    """huggingface_hub keeps its connections while the process lives; a test's Hub does not live as long."""
    yield
    close_session()
    session.outage.end()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def quantized(shared: Path) -> Quantized:
    """Trained models, quantized and measured once for all tests of what comes after."""

    def made(name: str) -> Path:
        with FileLock(shared / f"quantized-{name}.lock"):
            return quantize_once(name, shared / f"quantized-{name}")

    return made


@pytest.fixture(scope="session")
def small_sandbox(shared: Path) -> Sandbox:
    """A small model's sandbox, done except for publishing; to be copied. Its Hub is not running."""
    from tests.support.small_sandbox import prepare_once  # noqa: PLC0415 - there is no numpy where only planning is tested

    with FileLock(shared / "small.lock"):
        return prepare_once(shared / "small")


@pytest.fixture(scope="module")
def expected(small_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the small sandbox's job publishes when nothing interrupts it: path -> content."""
    sandbox = small_sandbox.copy_to(tmp_path_factory.mktemp("expected") / "sandbox")
    with sandbox.hub:
        result = sandbox.call("run")
        assert result.returncode == 0, result.stderr
        return sandbox.hub.files("quantized/small-awq")


@pytest.fixture
def sandbox_before(small_sandbox: Sandbox, tmp_path: Path) -> Iterator[SandboxBefore]:
    from tests.support.small_sandbox import copies_before  # noqa: PLC0415 - as above

    with copies_before(small_sandbox, tmp_path) as make:
        yield make


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A repository with a watchlist, a Hub and GitHub's API, for the verbs that workflows call."""
    # GitHub asks for pauses between writes; its stand-in does not.
    monkeypatch.setattr("bot.github.client.WRITE_PAUSE_S", 0.0)
    with open_workspace(tmp_path) as workspace:
        yield workspace


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    """As `bot`, who may write to the organisation `quantized`."""
    return HfApi(endpoint=hub.endpoint, token=hub.token("bot"))


@pytest.fixture
def reader(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token("reader", role="read"))


@pytest.fixture
def anonymous(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)
