"""A workflow on GitHub Actions whose identity a local Hub knows: its environment, and what it may publish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _auth

from bot.localhub import LocalHub
from tests.support.github_api.id_token import ISSUER, IdTokens, public_key
from tests.support.github_api.server import REPOSITORY
from tests.support.repos import TARGET

PUBLISHER = {"repository": REPOSITORY, "branch": "main", "workflow": "watch.yml"}


@contextmanager
def running_workflow(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[IdTokens]:
    """This process as a publishing job for TARGET, which may read as `bot`."""
    # As at the start of a process: the client reads the endpoint once, and keeps its token.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(_auth, "_OIDC_TOKEN_CACHE", None)
    hub.trust_issuer(ISSUER, public_key())
    with IdTokens() as tokens:
        read = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token("bot", role="read"), "HF_OIDC_RESOURCE": TARGET}
        for name, value in (tokens.environment | read).items():
            monkeypatch.setenv(name, value)
        yield tokens


def trust(hub: LocalHub, target: str = TARGET) -> None:
    """What a person does on the target's settings page."""
    hub.trust_publisher(target, issuer=ISSUER, claims=PUBLISHER)
