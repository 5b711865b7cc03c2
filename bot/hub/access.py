"""What our tokens may do on a Hub, errors when they may not, and the OIDC identities of workflows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from bot.errors import BotError, EnvironmentProblem, PublishError
from bot.hub.session import Hub, call, status_of
from bot.hub.targets import published_state
from bot.records import Check, TargetState

_EXCHANGE = "/oauth/token"
_RIGHTS = "The Hub's settings page lists its permissions"
_UNTRUSTED = "This machine works on untrusted files"

Result = TypeVar("Result")


# --- what doctor checks -------------------------------------------------------------------------------------


def check_endpoint(hub: Hub) -> Check:
    """One request without retries: a person waits, and huggingface_hub's own check can take half a minute."""

    def ask() -> None:
        headers = build_hf_headers(token=hub.token_reader.token)
        answer = get_session().get(f"{hub.endpoint}/api/models", params={"limit": 1}, headers=headers)
        hf_raise_for_status(answer)
        answer.json()

    try:
        call(ask, attempts=1)
    except BotError as error:
        found = error.message if hub.endpoint in error.message else f"{hub.endpoint}: {error.message}"
        return Check(name="endpoint", status="failed", found=found, fix=error.hint)
    except HfHubHTTPError as error:
        found = f"{hub.endpoint} answers {status_of(error)}"
        return Check(name="endpoint", status="failed", found=found, fix="Check HF_ENDPOINT and HF_TOKEN.")
    return Check(name="endpoint", status="ok", found=hub.endpoint)


def check_access(hub: Hub, namespaces: tuple[str, ...], *, runner: bool = False) -> Iterator[Check]:
    """Our tokens, what they can read, and whether publishing to each namespace will be allowed.

    runner: untrusted files are processed here, so no token here should be able to write.
    """
    yield from _check_reading(hub, namespaces, runner=runner)
    if hub.create_token is not None:
        yield _check_token("create token", hub.creator)[0]
    if hub.trusted_publishing:
        yield _check_trusted_publisher(hub, str(hub.oidc_resource))
    elif runner and hub.write_token in (None, hub.read_token):
        yield Check(name="write token", status="ok", found="not set: another machine publishes")
    else:
        yield from _check_writing(hub, namespaces, runner=runner)


def _check_reading(hub: Hub, namespaces: tuple[str, ...], *, runner: bool) -> Iterator[Check]:
    if hub.read_token is None:
        yield _no_read_token()
        return
    check, account = _check_token("read token", hub.reader)
    if runner and account is not None and _role(account) == "write":
        fix = f"{_UNTRUSTED}: give it a token that can only read."
        check = replace(check, status="warning", fix=fix)
    yield check
    if account is not None:
        yield from (_check_private_targets(account, namespace) for namespace in namespaces)


def _no_read_token() -> Check:
    found = "HF_TOKEN is not set"
    fix = "Set HF_TOKEN; without a token, rate limits are low and gated models cannot be read."
    if _has_stored_token():
        found = f"{found}, and the token stored by `hf auth login` is not used"
        fix = "To use it: export HF_TOKEN=$(hf auth token)"
    return Check(name="read token", status="warning", found=found, fix=fix)


def _has_stored_token() -> bool:
    """https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables"""
    try:
        return bool(Path(constants.HF_TOKEN_PATH).read_text().strip())
    except (OSError, ValueError):
        return False


def _check_writing(hub: Hub, namespaces: tuple[str, ...], *, runner: bool) -> Iterator[Check]:
    if hub.write_token is None:
        fix = "Set HF_WRITE_TOKEN to a token with write access."
        yield Check(name="write token", status="failed", found="HF_WRITE_TOKEN is not set", fix=fix)
        return
    check, account = _check_token("write token", hub.writer)
    if runner and account is not None:
        fix = f"{_UNTRUSTED}: publish from another one, or give the token only to the step that publishes."
        check = replace(check, status="warning", fix=fix)
    yield check
    if account is not None:
        yield from (_check_namespace(account, namespace) for namespace in namespaces)


def _check_trusted_publisher(hub: Hub, target: str) -> Check:
    try:
        exchange(hub, target)
    except BotError as error:
        return Check(name="trusted publisher", status="failed", found=error.message, fix=error.hint)
    return Check(name="trusted publisher", status="ok", found=f"this workflow may publish {target}")


def _check_token(name: str, api: HfApi) -> tuple[Check, dict[str, Any] | None]:
    try:
        account = call(api.whoami)
    except (BotError, HfHubHTTPError) as error:
        found = error.message if isinstance(error, BotError) else f"the Hub answers {status_of(error)}"
        fix = "Create a new token at https://huggingface.co/settings/tokens and store it as the secret."
        return Check(name=name, status="failed", found=found, fix=fix), None
    return Check(name=name, status="ok", found=f"{account['name']}, role {_role(account)}"), account


def _check_private_targets(account: dict[str, Any], namespace: str) -> Check:
    """Targets are private until their first release; a token that cannot read them would plan them again."""
    name = f"read {namespace}"
    if _role(account) == "fineGrained":
        fix = f"{_RIGHTS}; it must be able to read private repos there."
        return Check(name=name, status="unknown", found="a fine-grained token", fix=fix)
    if namespace in _namespaces(account):
        return Check(name=name, status="ok", found=f"{account['name']} can read private repos there")
    fix = f"Use a token of a member of {namespace}: targets are private at first, and would seem to be missing."
    return Check(name=name, status="warning", found=f"{account['name']} can read only public repos there", fix=fix)


def _check_namespace(account: dict[str, Any], namespace: str) -> Check:
    name = f"write to {namespace}"
    role = _role(account)
    if role == "read":
        fix = "HF_WRITE_TOKEN is a read token: create one with the role write."
        return Check(name=name, status="failed", found="the token can only read", fix=fix)
    if role == "fineGrained":
        return Check(name=name, status="unknown", found="a fine-grained token", fix=f"{_RIGHTS}.")
    organisations = {str(item.get("name")): item.get("roleInOrg") for item in account.get("orgs", [])}
    if namespace == account["name"] or organisations.get(namespace) in ("admin", "write", "contributor"):
        return Check(name=name, status="ok", found=f"{account['name']} can write there")
    fix = _join(account["name"], namespace)
    return Check(name=name, status="failed", found=f"{account['name']} cannot write there", fix=fix)


# --- before a job starts ------------------------------------------------------------------------------------


def check_may_publish(hub: Hub, target: str) -> None:
    """Fail before hours of work, for what can be known before publishing.

    Raises PublishError when our credentials cannot write to the target, EnvironmentProblem when there are none.
    """
    exchange(hub, target)
    if hub.trusted_publishing:
        return
    demand_write_token(hub)
    namespace = target.split("/", maxsplit=1)[0]
    try:
        account = call(hub.writer.whoami)
    except HfHubHTTPError:
        return
    if _role(account) == "read":
        raise PublishError(
            f"{target}: the token can only read", hint="Set HF_WRITE_TOKEN to a token with the role write."
        )
    if _role(account) != "fineGrained" and namespace not in _namespaces(account):
        name = account["name"]
        raise PublishError(f"{target}: {name} does not belong to {namespace}", hint=_join(name, namespace))


def demand_write_token(hub: Hub) -> None:
    if not (hub.trusted_publishing or hub.write_token):
        raise PublishError("no token to publish with", hint="Set HF_WRITE_TOKEN, or HF_TOKEN with write access.")


def _role(account: dict[str, Any]) -> str:
    return str(account.get("auth", {}).get("accessToken", {}).get("role", "unknown"))


def _namespaces(account: dict[str, Any]) -> set[str]:
    return {str(account["name"]), *(str(item.get("name")) for item in account.get("orgs", []))}


def _join(name: str, namespace: str) -> str:
    return f"Add {name} to {namespace} with write access, or change publish_to."


# --- requests that a token may not make ---------------------------------------------------------------------


def request_or_raise(target: str, what: str, request: Callable[[], Result]) -> Result:
    try:
        return call(request)
    except HfHubHTTPError as error:
        raise request_error(target, what, error) from None


def request_error(target: str, what: str, error: HfHubHTTPError) -> PublishError:
    status = status_of(error)
    if is_exchange(error) and status == 400:
        return not_trusted(target, "its settings")
    said = " ".join((error.server_message or "").split())
    answer = f"{status}: {said}" if said else f"{status}"
    if status in (401, 403, 404):
        return PublishError(f"{target}: the token is not permitted to {what} ({answer})", hint=write_hint(target))
    return PublishError(f"{target}: cannot {what} ({answer})", hint="Run it again: it resumes.")


def write_hint(target: str) -> str:
    return f"HF_WRITE_TOKEN needs write access to {target.split('/', maxsplit=1)[0]!r}."


# --- Trusted Publishers: https://huggingface.co/docs/hub/trusted-publishers ---------------------------------


def exchange(hub: Hub, target: str) -> None:
    """Exchange the workflow's OIDC identity for a token. Does nothing when a stored token publishes.

    Raises PublishError when this workflow may not publish the target, EnvironmentProblem when it has no identity.
    """
    if not hub.trusted_publishing:
        return
    # A token is for one repo, and HF_OIDC_RESOURCE names it.
    if hub.oidc_resource != target:
        raise PublishError(
            f"HF_OIDC_RESOURCE is {hub.oidc_resource}, and this job publishes {target}",
            hint="Set HF_OIDC_RESOURCE to the target of each job.",
        )
    try:
        call(get_token)
    except HfHubHTTPError as error:
        raise _refused(hub, target, error) from None
    except (KeyError, ValueError):
        raise _no_id_token("its issuer's answer has another format") from None


def is_exchange(error: HfHubHTTPError) -> bool:
    return error.response is not None and error.response.url.path.endswith(_EXCHANGE)


def not_trusted(target: str, settings: str) -> PublishError:
    return PublishError(
        f"{target}: this workflow is not one of its trusted publishers",
        hint=f"Add it under Trusted Publishers in {settings}: repository, branch and workflow file, each exactly.",
    )


def _refused(hub: Hub, target: str, error: HfHubHTTPError) -> BotError:
    status = status_of(error)
    if not is_exchange(error):
        return _no_id_token(f"its issuer answers {status}")
    if status != 400:
        return PublishError(
            f"{target}: the Hub answers {status} to the exchange of the workflow's OIDC identity",
            hint="Run it again later, or publish with HF_WRITE_TOKEN.",
        )
    # The Hub gives the same answer for a repo that does not exist.
    if published_state(hub.token_reader, target).state is TargetState.ABSENT:
        return PublishError(
            f"{target}: it does not exist, or HF_TOKEN cannot read it; Trusted Publishers cannot create it",
            hint=f"Run `awq-bot create-target {target}` first, then add the trusted publisher in its settings.",
        )
    return not_trusted(target, f"{hub.endpoint}/{target}/settings")


def _no_id_token(why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"HF_OIDC_RESOURCE is set, and this job gets no id-token: {why}",
        hint="Run the job again; if it fails again, publish with HF_WRITE_TOKEN and without HF_OIDC_RESOURCE.",
    )
