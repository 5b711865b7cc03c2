"""What our tokens may do on a Hub, and the exchange of a workflow's identity for a token (Trusted Publishers)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from bot.errors import BotError, EnvironmentProblem, PublishError
from bot.hub.client import published_state
from bot.hub.session import Hub, call, status_of
from bot.records import Check, TargetState

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


def check_access(hub: Hub, namespaces: tuple[str, ...], *, runner: bool = False) -> Iterator[Check]:
    """Our tokens, what they may see, and whether publishing to each namespace will be allowed.

    runner: strangers' files run here, so nothing here should be able to write.
    """
    yield from _check_reading(hub, namespaces, runner=runner)
    if hub.create_token is not None:
        yield _check_token("create token", hub.creator)[0]
    if hub.by_identity:
        yield _check_identity(hub, str(hub.oidc_resource))
    elif runner and hub.write_token in (None, hub.read_token):
        yield Check(name="write token", status="ok", found="none here: publishing happens elsewhere")
    else:
        yield from _check_writing(hub, namespaces, runner=runner)


def check_may_publish(hub: Hub, target: str) -> None:
    """Before hours of work for nothing. What only the publication itself can find out is left to it.

    Raises PublishError when our credentials cannot write to the target, EnvironmentProblem when they are none.
    """
    exchange(hub, target)
    if hub.by_identity:
        return
    demand_write_token(hub)
    namespace = target.split("/", maxsplit=1)[0]
    try:
        account = call(hub.writer.whoami)
    except HfHubHTTPError:
        return
    if _role(account) == "read":
        raise PublishError(
            f"{target}: the token may only read", hint="Set HF_WRITE_TOKEN to a token with the role write."
        )
    if _role(account) != "fineGrained" and namespace not in _namespaces(account):
        name = account["name"]
        raise PublishError(f"{target}: {name} does not belong to {namespace}", hint=_join(name, namespace))


def demand_write_token(hub: Hub) -> None:
    if not (hub.by_identity or hub.write_token):
        raise PublishError("no token to publish with", hint="Set HF_WRITE_TOKEN, or HF_TOKEN with write access.")


def _check_reading(hub: Hub, namespaces: tuple[str, ...], *, runner: bool) -> Iterator[Check]:
    if hub.read_token is None:
        fix = "Set HF_TOKEN; without one, limits are low and gated models cannot be read."
        yield Check(name="read token", status="warning", found="HF_TOKEN is not set", fix=fix)
        return
    check, account = _check_token("read token", hub.reader)
    if runner and account is not None and _role(account) == "write":
        fix = "Strangers' files run on this machine: give it a token that only reads."
        check = replace(check, status="warning", fix=fix)
    yield check
    if account is not None:
        yield from (_check_sight(account, namespace) for namespace in namespaces)


def _check_writing(hub: Hub, namespaces: tuple[str, ...], *, runner: bool) -> Iterator[Check]:
    if hub.write_token is None:
        fix = "Set HF_WRITE_TOKEN to a token with write access."
        yield Check(name="write token", status="failed", found="HF_WRITE_TOKEN is not set", fix=fix)
        return
    check, account = _check_token("write token", hub.writer)
    if runner and account is not None:
        fix = (
            "Strangers' files run on this machine: publish from another one, or give the token to that step alone."
        )
        check = replace(check, status="warning", fix=fix)
    yield check
    if account is not None:
        yield from (_check_namespace(account, namespace) for namespace in namespaces)


def _check_identity(hub: Hub, target: str) -> Check:
    try:
        exchange(hub, target)
    except BotError as error:
        return Check(name="trusted publisher", status="failed", found=error.message, fix=error.hint)
    return Check(name="trusted publisher", status="ok", found=f"this workflow may publish {target}")


def check_endpoint(hub: Hub) -> Check:
    """One try: whoever asks is waiting, and huggingface_hub's own way to ask would take half a minute."""

    def ask() -> None:
        headers = build_hf_headers(token=hub.onlooker.token)
        answer = get_session().get(f"{hub.endpoint}/api/models", params={"limit": 1}, headers=headers)
        hf_raise_for_status(answer)
        answer.json()

    try:
        call(ask, attempts=1)
    except BotError as error:
        return Check(name="endpoint", status="failed", found=f"{hub.endpoint}: {error.message}", fix=error.hint)
    except HfHubHTTPError as error:
        found = f"{hub.endpoint} answers {status_of(error)}"
        return Check(name="endpoint", status="failed", found=found, fix="Check HF_ENDPOINT and HF_TOKEN.")
    except ValueError:
        found = f"{hub.endpoint} does not answer as a Hub does"
        return Check(name="endpoint", status="failed", found=found, fix="Check HF_ENDPOINT.")
    return Check(name="endpoint", status="ok", found=hub.endpoint)


def _check_token(name: str, api: HfApi) -> tuple[Check, dict[str, Any] | None]:
    try:
        account = call(api.whoami)
    except (BotError, HfHubHTTPError) as error:
        found = error.message if isinstance(error, BotError) else f"the Hub answers {status_of(error)}"
        fix = "Make a new token on the Hub's settings page and store it as the secret."
        return Check(name=name, status="failed", found=found, fix=fix), None
    return Check(name=name, status="ok", found=f"{account['name']}, role {_role(account)}"), account


def _role(account: dict[str, Any]) -> str:
    return str(account.get("auth", {}).get("accessToken", {}).get("role", "unknown"))


def _check_sight(account: dict[str, Any], namespace: str) -> Check:
    """A target is private until its first release is complete; who does not see it would quantize it again."""
    name = f"see {namespace}"
    if _role(account) == "fineGrained":
        fix = "Its rights are listed on the Hub's settings page; it must read private repos there."
        return Check(name=name, status="unknown", found="a fine-grained token", fix=fix)
    if namespace in _namespaces(account):
        return Check(name=name, status="ok", found=f"{account['name']} sees private repos there")
    fix = f"Use a token of a member of {namespace}: targets are private at first, and would seem to be missing."
    return Check(name=name, status="warning", found=f"{account['name']} sees only public repos there", fix=fix)


def _check_namespace(account: dict[str, Any], namespace: str) -> Check:
    name = f"write to {namespace}"
    role = _role(account)
    if role == "read":
        fix = "HF_WRITE_TOKEN is a read token: make one with the role write."
        return Check(name=name, status="failed", found="the token may only read", fix=fix)
    if role == "fineGrained":
        fix = "Its rights are listed on the Hub's settings page."
        return Check(name=name, status="unknown", found="a fine-grained token", fix=fix)
    organisations = {str(item.get("name")): item.get("roleInOrg") for item in account.get("orgs", [])}
    if namespace == account["name"] or organisations.get(namespace) in ("admin", "write", "contributor"):
        return Check(name=name, status="ok", found=f"{account['name']} may write there")
    fix = _join(account["name"], namespace)
    return Check(name=name, status="failed", found=f"{account['name']} may not write there", fix=fix)


def _namespaces(account: dict[str, Any]) -> set[str]:
    return {str(account["name"]), *(str(item.get("name")) for item in account.get("orgs", []))}


def _join(name: str, namespace: str) -> str:
    return f"Let {name} join {namespace} with write access, or change publish_to."
