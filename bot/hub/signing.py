"""Signed releases: what the publish step signs with, and what is raised where a signature shows nothing.

With OpenSSF model signing: https://github.com/sigstore/model-transparency
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from bot.errors import EnvironmentProblem
from bot.records import Signer

KEY, CERTIFICATE, KEYLESS = "AWQ_BOT_SIGNING_KEY", "AWQ_BOT_SIGNING_CERTIFICATE", "AWQ_BOT_SIGN_KEYLESS"


class SignatureRefusedError(Exception):
    """Why a signature shows nothing, on one line."""


class SignatureUnknownError(Exception):
    """Why a signature cannot be checked here, on one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningCredential:
    """What the publish step signs with. key: PEM of a private EC key, or its path; certificate: a path to PEM.

    certificate: the key's own first, then those that lead to its authority's, which is the last.
    """

    key: str = field(default="", repr=False)
    certificate: str = ""

    @classmethod
    def from_environment(cls) -> SigningCredential | None:
        """None: nothing is signed. Without a key, with the workflow's identity through Sigstore."""
        key, certificate = (os.environ.get(name, "").strip() for name in (KEY, CERTIFICATE))
        keyless = os.environ.get(KEYLESS, "").strip().lower() == "true"
        if key and keyless:
            raise EnvironmentProblem(f"{KEY} and {KEYLESS} are both set", hint="Sign with one of them.")
        if certificate and not key:
            raise EnvironmentProblem(f"{CERTIFICATE} is set without {KEY}", hint="Set both, or neither.")
        return cls(key=key, certificate=certificate) if key or keyless else None


def require_library() -> None:
    if find_spec("model_signing") is None:
        raise EnvironmentProblem(
            "model_signing is not installed, which signs and checks signatures",
            hint="In a checkout of awq-bot: pip install -c constraints.txt '.[sign]'",
        )


def sign(credential: SigningCredential, *, name: str, files: Mapping[str, str]) -> dict[str, bytes]:
    """The files to publish beside these: the signature, and the public key if there is one.

    name: of the model. files: path -> sha256. Raises EnvironmentProblem.
    """
    require_library()
    from bot.hub import signature_file  # noqa: PLC0415 - an extra

    return signature_file.sign(credential, name=name, files=files)


def check_signature(
    signature: bytes, files: Mapping[str, str], *, public_key: bytes | None, wanted: Signer | None
) -> Signer:
    """As the function of this name. Raises SignatureUnknownError, too, where the library is not installed."""
    if find_spec("model_signing") is None:
        raise SignatureUnknownError("model_signing is not installed: pip install -c constraints.txt '.[sign]'")
    from bot.hub import signature_file  # noqa: PLC0415 - an extra

    return signature_file.check_signature(signature, files, public_key=public_key, wanted=wanted)
