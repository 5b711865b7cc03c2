"""Found models become one pull request per author: opened, kept up to date, declined for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.github.notify import WEBHOOK
from bot.github.proposals import branch_of, pull_mark, read_pull_mark
from bot.localhub import Fault
from bot.records import Plan, from_json
from tests.github.conftest import Hook
from tests.support.github_api.repository import Pull
from tests.support.github_api.server import ACTIONS
from tests.support.repos import source_files
from tests.support.workflow_steps import StepResult
from tests.support.workspace import WEIGHTS, Workspace

BRANCH = "awq-bot/lab-new-models"
LIST = """\
# Ours.
publish_to: quantized
defaults: {calibration: {sources: [{builtin: prose}]}}
models:
  - {repo_id: lab/Listed, hold: later}   # the first
# What comes next.
discover:
  - {author: Lab, match: New-*, priority: 3}
"""
ADDED = "  - repo_id: lab/New-A\n    priority: 3\n"


@pytest.fixture
def lab(workspace: Workspace) -> Workspace:
    """A repository on GitHub with a rule, and one new model of its author."""
    seed(workspace, "New-A")
    commit(workspace, LIST)
    return workspace


def seed(workspace: Workspace, *names: str) -> None:
    for name in names:
        workspace.hub.seed(f"lab/{name}", source_files(model__safetensors=WEIGHTS))


def commit(workspace: Workspace, text: str) -> None:
    """A push to main, which the next run checks out."""
    workspace.api.git.push("main", watchlist__yaml=text)
    (workspace.root / "watchlist.yaml").write_text(text)


def run(workspace: Workspace) -> StepResult:
    """Both steps of a run; the second as the workflow starts it."""
    planned = workspace.plan()
    assert planned.code == 0, planned.err
    if planned.outputs["propose_count"] == "0":
        return planned
    ended = workspace.verb("propose")
    assert ended.code == 0, ended.err
    return ended


def pull_of(workspace: Workspace) -> Pull:
    [pull] = workspace.api.git.pulls.values()
    return pull


def on_branch(workspace: Workspace, branch: str = BRANCH) -> str:
    return workspace.api.git.at(branch).files["watchlist.yaml"]


def with_lines(lines: str) -> str:
    return LIST.replace("# the first\n", f"# the first\n{lines}")


def test_what_is_found_is_added_by_a_pull_request_and_every_other_character_stays(lab: Workspace) -> None:
    ended = run(lab)
    pull = pull_of(lab)
    assert f"pull request #{pull.number} is opened" in ended.out
    assert (pull.author, pull.head, pull.base, pull.state) == (ACTIONS, BRANCH, "main", "open")
    assert pull.title == "watchlist: add a new model of lab"
    assert on_branch(lab) == with_lines(ADDED)
    assert lab.api.git.at(BRANCH).parents == (lab.api.git.at("main").sha,)
    assert "Qwen3ForCausalLM, 2.1M parameters" in pull.body
    assert "quantized/New-A-awq" in pull.body
    assert on_branch(lab, "main") == LIST
    # Nothing is written while nothing changes.
    lab.api.requests.clear()
    assert lab.plan().outputs["propose_count"] == "0"
    assert {asked.method for asked in lab.api.requests if "/graphql" not in asked.path} == {"GET"}


def test_later_runs_keep_the_same_pull_request_up_to_date(lab: Workspace) -> None:
    run(lab)
    seed(lab, "New-B")
    assert "is updated" in run(lab).out
    both = "  - repo_id: lab/New-B\n    priority: 3\n" + ADDED
    assert on_branch(lab) == with_lines(both)
    assert pull_of(lab).title == "watchlist: add 2 new models of lab"
    changed = LIST.replace("# Ours.", "# Ours, and theirs.")
    commit(lab, changed)
    run(lab)
    assert on_branch(lab) == changed.replace("# the first\n", f"# the first\n{both}")
    assert lab.api.git.at(BRANCH).parents == (lab.api.git.at("main").sha,)
    assert lab.plan().outputs["propose_count"] == "0"


def test_what_others_pushed_to_the_branch_stays(lab: Workspace) -> None:
    run(lab)
    theirs = with_lines("  - lab/Own   # ours\n")
    pushed = lab.api.git.push(BRANCH, watchlist__yaml=theirs)
    commit(lab, LIST.replace("# Ours.", "# Ours, and theirs."))
    run(lab)
    assert on_branch(lab) == theirs
    seed(lab, "New-B")
    run(lab)
    assert on_branch(lab) == theirs.replace("# ours\n", "# ours\n  - repo_id: lab/New-B\n    priority: 3\n")
    assert lab.api.git.at(BRANCH).parents == (pushed.sha,)
    assert "Someone has pushed to this branch" in pull_of(lab).body
    assert lab.plan().outputs["propose_count"] == "0"


@pytest.mark.parametrize("merged", [False, True])
def test_what_was_in_a_closed_pull_request_is_never_proposed_again(lab: Workspace, merged: bool) -> None:
    run(lab)
    pull = pull_of(lab)
    if merged:
        lab.api.git.merge(pull.number)
    pull.state = "closed"
    planned = lab.plan()
    assert planned.outputs["propose_count"] == "0"
    assert "### Proposed" not in planned.summary
    assert "not proposed again, as its pull request was closed: lab/New-A" in planned.summary
    [left_out] = from_json(Plan, (lab.root / "plan" / "plan.json").read_bytes()).left_out
    assert (left_out.kind, left_out.reason) == (
        "declined",
        f"pull request #{pull.number}, which proposed it, was closed",
    )
    seed(lab, "New-B")
    run(lab)
    assert len(lab.api.git.pulls) == 2
    new = "  - repo_id: lab/New-B\n    priority: 3\n# What"
    assert on_branch(lab) == on_branch(lab, "main").replace("# What", new)


def test_pull_requests_of_others_do_not_count(lab: Workspace) -> None:
    mark = pull_mark("lab", ["lab/New-A"], base="0" * 40, head="0" * 40)
    lab.api.git.push(BRANCH, watchlist__yaml="models: []\n")
    lab.api.git.open_pull("someone", BRANCH, title="x", body=mark).state = "closed"
    run(lab)
    assert sorted(pull.author for pull in lab.api.git.pulls.values()) == [ACTIONS, "someone"]
    assert on_branch(lab) == with_lines(ADDED)


def test_when_nothing_is_left_to_propose_the_pull_request_is_closed(lab: Workspace) -> None:
    run(lab)
    number = pull_of(lab).number
    commit(lab, with_lines("  - {repo_id: lab/New-A, hold: later}\n"))
    assert f"pull request #{number} is closed: nothing is left to propose" in run(lab).out
    assert pull_of(lab).state == "closed"
    assert "No rule of the watchlist proposes these models any more." in lab.api.comments_on(number)
    assert lab.plan().outputs["propose_count"] == "0"
    # Only what a person closes is declined.
    commit(lab, LIST)
    assert "is opened" in run(lab).out
    assert on_branch(lab) == with_lines(ADDED)


def test_what_was_added_since_the_plan_is_not_proposed(lab: Workspace) -> None:
    assert lab.plan().outputs["propose_count"] == "1"
    commit(lab, with_lines("  - {repo_id: lab/New-A, hold: later}\n"))
    assert "all of it is on the watchlist by now" in lab.verb("propose").out
    assert not lab.api.git.pulls
    assert list(lab.api.git.refs) == ["heads/main"]


def test_an_open_pull_request_stays_while_its_author_cannot_be_listed(lab: Workspace) -> None:
    run(lab)
    lab.hub.faults.add(Fault(path="/api/models$", status=403, times=1))
    assert lab.plan().outputs["propose_count"] == "0"
    assert pull_of(lab).state == "open"


def test_settings_that_forbid_pull_requests_are_named_and_nothing_is_left_behind(lab: Workspace) -> None:
    lab.api.git.may_open_pulls = False
    lab.plan()
    ended = lab.verb("propose")
    assert ended.code == 8
    assert "GitHub does not let workflows of this repository open pull requests" in ended.err
    assert "Allow GitHub Actions to create and approve pull requests" in ended.err.replace("\n", " ")
    assert list(lab.api.git.refs) == ["heads/main"]


def test_nothing_is_proposed_by_a_dry_run_for_one_model_or_from_another_branch(lab: Workspace) -> None:
    assert lab.plan("--dry-run").outputs["propose_count"] == "0"
    assert lab.plan(AWQ_BOT_ONLY="lab/New-A").outputs["propose_count"] == "0"
    assert lab.plan(GITHUB_REF="refs/heads/try").outputs["propose_count"] == "0"
    lab.api.fail("/pulls", status=403)
    failed = lab.plan()
    assert failed.outputs["propose_count"] == "0"
    assert "No pull request proposes models this time." in failed.summary


def test_a_layout_that_cannot_be_edited_is_an_error_and_no_branch(lab: Workspace, tmp_path: Path) -> None:
    lab.plan()
    lab.api.git.push("main", watchlist__yaml="publish_to: quantized\nmodels: [nothing]\n")
    ended = lab.verb("propose")
    assert ended.code == 2
    assert not lab.api.git.pulls


def test_private_models_are_not_named_where_everyone_can_read(lab: Workspace) -> None:
    token = lab.hub.add_token("lab", role="read")
    lab.hub.repo("lab/New-A").update_settings(private=True)
    commit(lab, LIST.replace("priority: 3", "private: true"))
    event = lab.root / "event.json"
    for public, count in (("true", "1"), ("false", "0")):
        event.write_text(f'{{"repository": {{"private": {public}}}}}')
        planned = lab.plan(HF_TOKEN=token, GITHUB_EVENT_PATH=str(event))
        assert planned.outputs["propose_count"] == count
        assert ("New-A" in planned.summary) == (count == "1")


def test_a_mark_is_read_as_it_was_written_and_nothing_else_is() -> None:
    mark = pull_mark("Lab", ["lab/B", "lab/A"], base="a" * 40, head="b" * 40)
    read = read_pull_mark(f"Words.\r\n\r\n{mark}\r\n", number=7, is_open=True)
    assert read is not None
    assert (read.author, read.repos, read.base, read.head, read.number) == (
        "lab",
        ("lab/a", "lab/b"),
        "a" * 40,
        "b" * 40,
        7,
    )
    assert read_pull_mark(f"see {mark}", number=7, is_open=True) is None
    assert read_pull_mark("", number=7, is_open=True) is None
    assert branch_of("x.lock") == "awq-bot/x.lock-new-models"


def test_a_model_is_sent_to_the_webhook_once(lab: Workspace, hook: Hook) -> None:
    lab.plan()
    lab.verb("propose", **{WEBHOOK: hook.url})
    [sent] = hook.sent
    assert [(event["kind"], event["repo_id"]) for event in sent["events"]] == [("proposed", "lab/New-A")]
    commit(lab, LIST.replace("# Ours.", "# Ours, changed."))
    seed(lab, "New-B")
    lab.plan()
    lab.verb("propose", **{WEBHOOK: hook.url})
    assert [event["repo_id"] for event in hook.sent[1]["events"]] == ["lab/New-B"]
