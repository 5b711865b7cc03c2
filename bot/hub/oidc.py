"""Publishing without a stored token: the workflow's identity is exchanged for a token of its one target.

huggingface_hub does the exchange, keeps the token and renews it before its hour is over (`HF_OIDC_RESOURCE`). Here
it is asked for early, and what can go wrong is put in words.
"""

from __future__ import annotations

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError

from bot.errors import BotError, EnvironmentProblem, PublishError
from bot.hub.client import published_state
from bot.hub.session import Hub, call, status_of
from bot.records import TargetState

_EXCHANGE = "/oauth/token"


def exchange(hub: Hub, target: str) -> None:
    """Does nothing where a token publishes.

    Raises PublishError when this workflow may not publish the target, EnvironmentProblem when it has no identity.
    """
    if not hub.by_identity:
        return
    _check_resource(hub, target)
    try:
        call(get_token)
    except HfHubHTTPError as error:
        raise _refused(hub, target, error) from None
    except (KeyError, ValueError):
        raise _no_id_token("its issuer answers something else") from None


def is_exchange(error: HfHubHTTPError) -> bool:
    return error.response is not None and error.response.url.path.endswith(_EXCHANGE)


def not_trusted(target: str, settings: str) -> PublishError:
    return PublishError(
        f"{target}: this workflow is not one of its trusted publishers",
        hint=f"Add it under Trusted Publishers in {settings}: repository, branch and workflow file, each exactly.",
    )


def _check_resource(hub: Hub, target: str) -> None:
    """A token is for one repo, and HF_OIDC_RESOURCE says which."""
    if hub.oidc_resource != target:
        raise PublishError(
            f"HF_OIDC_RESOURCE is {hub.oidc_resource}, and this job publishes {target}",
            hint="Set HF_OIDC_RESOURCE to the target, for each job anew.",
        )


def _refused(hub: Hub, target: str, error: HfHubHTTPError) -> BotError:
    status = status_of(error)
    if not is_exchange(error):
        return _no_id_token(f"its issuer answers {status}")
    if status != 400:
        return PublishError(
            f"{target}: the Hub answers {status} to the exchange of the workflow's identity",
            hint="Run it again later, or publish with HF_WRITE_TOKEN.",
        )
    # The Hub says the same of a repo that is not there.
    if published_state(hub.onlooker, target).state is TargetState.ABSENT:
        return PublishError(
            f"{target}: it is not there, or HF_TOKEN may not see it; a workflow's identity cannot create it",
            hint=f"Run `awq-bot create-target {target}` first, then add the trusted publisher in its settings.",
        )
    return not_trusted(target, f"{hub.endpoint}/{target}/settings")


def _no_id_token(why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"HF_OIDC_RESOURCE is set, and this job gets no id-token: {why}",
        hint="Run the job again; if it repeats, publish with HF_WRITE_TOKEN and without HF_OIDC_RESOURCE.",
    )
