"""New models of an author become a pull request, by the one job that can write to the repository."""

from __future__ import annotations

from tests.support.sandbox import ASSETS
from tests.workflows.deployment import ASSET, Deploy
from tests.workflows.interpreter.runs import steps_with_value

PROPOSE = "propose new models"
RULE = "discover:\n  - {author: lab, match: New-*}\n"


def test_a_run_opens_a_pull_request_for_what_a_rule_finds(deploy: Deploy) -> None:
    deployment = deploy(prepared=False)
    path = deployment.repository.checkout / "watchlist.yaml"
    path.write_text(path.read_text().replace("models:\n", "models: []\n") + RULE)
    deployment.api.git.push("main", watchlist__yaml=path.read_text())
    deployment.hub.seed("lab/New-A", ASSETS / ASSET)
    run = deployment.watch()
    assert run.results == {"plan": "success", PROPOSE: "success"}
    [pull] = deployment.api.git.pulls.values()
    assert "  - lab/New-A\n" in deployment.api.git.at(pull.head).files["watchlist.yaml"]
    assert {asked.status for asked in deployment.api.requests} <= {200, 201, 204, 404}
    # No token for the Hub, neither to read nor to write.
    for token in (deployment.read_token, deployment.write_token):
        assert PROPOSE not in {job for job, _ in steps_with_value(run.steps, token)}
    again = deployment.watch()
    assert again.results == {"plan": "success"}
