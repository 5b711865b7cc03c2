"""`awq-bot actions plan` with rules that find models: what it starts, shows and closes."""

from __future__ import annotations

import pytest

from bot.github.issues import mark
from bot.localhub import Fault
from bot.records import Attempts
from tests.support.github_api.server import ACTIONS
from tests.support.repos import source_files
from tests.support.workspace import WEIGHTS, Workspace, rows


@pytest.fixture
def lab(workspace: Workspace) -> Workspace:
    """A lab with two models, of which a rule publishes one and another proposes one."""
    for name in ("New", "Other"):
        workspace.hub.seed(f"lab/{name}", source_files(model__safetensors=WEIGHTS))
    workspace.discover("{author: lab, match: New, mode: publish}", "{author: lab}")
    return workspace


def test_what_a_rule_publishes_is_started_and_what_another_finds_is_shown(lab: Workspace) -> None:
    ended = lab.plan()
    assert ended.code == 0, ended.err
    assert [row["target"] for row in rows(ended)] == ["quantized/New-awq"]
    page = ended.summary
    assert "1 to quantize, 1 proposed." in page.replace("**", "")
    assert "first release (found by the rule on line 5)" in page
    assert "### Proposed" in page
    assert "Qwen3ForCausalLM, 2.1M parameters, created" in page
    assert "- discover lab (line 6): 1 found, 1 taken by another rule" in page


def test_an_issue_stays_open_while_its_author_cannot_be_listed(lab: Workspace) -> None:
    tried = Attempts(target="quantized/New-awq", content="0" * 64, count=1, next_try=None)
    issue = lab.api.open_issue(ACTIONS, "awq-bot: it failed", f"Words.\n\n{mark(tried)}\n")
    # The lists of the lab, and of the owner of the targets.
    lab.hub.faults.add(Fault(path="/api/models$", status=403, times=2))
    ended = lab.plan()
    assert (ended.code, ended.outputs["quantize_count"], issue.state) == (0, "0", "open")
    assert "its repos could not be listed" in ended.summary
    assert lab.plan().outputs["quantize_count"] == "1"
    assert issue.state == "open"
    lab.discover("{author: lab, match: Nothing}")
    lab.plan()
    assert issue.state == "closed"


def test_one_model_that_a_rule_finds_can_be_planned_alone(lab: Workspace) -> None:
    lab.hub.seed("lab/Newer", source_files(model__safetensors=WEIGHTS))
    lab.discover("{author: lab, match: New*, mode: publish}")
    assert [row["target"] for row in rows(lab.plan(AWQ_BOT_ONLY="lab/Newer"))] == ["quantized/Newer-awq"]
    assert lab.plan(AWQ_BOT_ONLY="lab/Nothing").code == 2


def test_releases_that_have_to_be_signed_are_not_published_on_a_gpu_runner(lab: Workspace) -> None:
    lab.discover(f"{{author: lab, signed_by: 'key:{'0' * 64}'}}")
    ended = lab.plan(AWQ_BOT_PUBLISH_ON="runner")
    assert ended.code == 2
    assert "discover lab: `signed_by` is set" in ended.err
