"""What our tokens may do on a Hub: the part of `doctor` that needs the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.errors import BotError
from bot.hub.session import Hub, call, status_of
from bot.records import Check


def check_access(hub: Hub, namespaces: tuple[str, ...], *, publishes: bool = True) -> Iterator[Check]:
    """Both tokens, and whether the write token may publish to each namespace.

    publishes: whether this is a machine that needs the write token at all.
    """
    if hub.read_token is None:
        fix = "Set HF_TOKEN; without one, limits are low and gated models cannot be read."
        yield Check(name="read token", status="warning", found="HF_TOKEN is not set", fix=fix)
    else:
        yield _check_token("read token", hub.reader)[0]
    if not publishes:
        return
    if hub.write_token is None:
        fix = "Set HF_WRITE_TOKEN to a token with write access."
        yield Check(name="write token", status="failed", found="HF_WRITE_TOKEN is not set", fix=fix)
        return
    check, account = _check_token("write token", hub.writer)
    yield check
    if account is not None:
        for namespace in namespaces:
            yield _check_namespace(account, namespace)


def check_endpoint(hub: Hub) -> Check:
    try:
        call(lambda: next(iter(hub.reader.list_models(limit=1)), None))
    except BotError as error:
        return Check(name="endpoint", status="failed", found=f"{hub.endpoint}: {error.message}", fix=error.hint)
    except HfHubHTTPError as error:
        found = f"{hub.endpoint} answers {status_of(error)}"
        return Check(name="endpoint", status="failed", found=found, fix="Check HF_ENDPOINT and HF_TOKEN.")
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
    fix = f"Let {account['name']} join {namespace} with write access, or change publish_to."
    return Check(name=name, status="failed", found=f"{account['name']} may not write there", fix=fix)
