"""`card` and `publish` on a job's folder, as a person types them after looking at what was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sandbox import House
from tests.support.small_model import TARGET

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \d+ (INFO|DEBUG) \S.*")


@pytest.fixture
def house(small_house: House, tmp_path: Path) -> Iterator[House]:
    """Done but for publishing; its Hub is up."""
    house = small_house.copy_to(tmp_path / "house")
    with house.hub:
        yield house


def test_card_is_written_anew_as_it_was(house: House) -> None:
    [job] = house.jobs
    card = job / "card" / "README.md"
    before = card.read_bytes()
    card.unlink()
    (job / "card.json").unlink()
    result = house.call("card", "--job", str(job))
    assert (result.returncode, result.stdout.strip()) == (0, str(card)), result.stderr
    assert card.read_bytes() == before


def test_dry_run_lists_what_would_be_published_and_writes_nothing(house: House) -> None:
    [job] = house.jobs
    house.hub.clear_requests()
    result = house.call("publish", "--job", str(job), "--dry-run")
    assert result.returncode == 0, result.stderr
    recorded = json.loads((job / "card.json").read_text())["record"]["files"]
    assert [line.split()[-1] for line in result.stdout.splitlines()] == [file["path"] for file in recorded]
    assert {"README.md", "config.json", "model.safetensors", "provenance.json"} <= {
        file["path"] for file in recorded
    }
    assert not house.hub.store.exists(TARGET)
    assert not [request for request in house.hub.requests if request.method != "GET"]


def test_job_is_published_once_and_logged_with_times(house: House) -> None:
    [job] = house.jobs
    first = house.call("--log-file", "bot.log", "publish", "--job", str(job))
    assert first.returncode == 0, first.stderr
    tag = json.loads((job / "job.json").read_text())["record"]["tag"]
    assert first.stdout.strip() == f"{house.hub.endpoint}/{TARGET} at {tag}"
    assert house.hub.refs(TARGET)[f"refs/tags/{tag}"] == house.hub.refs(TARGET)["refs/heads/main"]
    assert not house.hub.repo(TARGET).settings().private
    head = house.hub.history(TARGET)[0].sha

    lines = (house.root / "bot.log").read_text().splitlines()
    assert lines
    assert [line for line in lines if not LOG_LINE.fullmatch(line)] == []

    again = house.call("publish", "--job", str(job))
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip().endswith("(was there already)")
    assert house.hub.history(TARGET)[0].sha == head
