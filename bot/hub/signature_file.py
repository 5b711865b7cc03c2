"""`model.sig`: made and checked by OpenSSF's library, which hashes a folder.

Here the hashes are known, from the provenance, so neither signing nor checking reads weights. Whoever has them
compares them with the provenance. Only `signing` imports this module, as the library is an extra.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sigstore.errors
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from model_signing import hashing, manifest, signing, verifying
from model_signing._hashing.hashing import Digest  # has no public name; the version is pinned
from OpenSSL import crypto
from sigstore.oidc import detect_credential

from bot.checkpoint.repo_files import GITATTRIBUTES, PUBLIC_KEY, SIGNATURE
from bot.errors import EnvironmentProblem
from bot.hub.signing import (
    CERTIFICATE,
    KEY,
    KEYLESS,
    SignatureRefusedError,
    SignatureUnknownError,
    SigningCredential,
)
from bot.records import Signer

# What a download has beside the repo's files, and what git and the signature itself are.
_IGNORED = (".cache/huggingface", ".git", GITATTRIBUTES, ".github", ".gitignore", SIGNATURE)
_MAX_SIGNATURE_BYTES = 5_000_000
# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
# What a key that is none, or a signature that anybody could have made, raises in the library and below it.
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    RecursionError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.ExtensionNotFound,
    crypto.Error,
    crypto.X509StoreContextError,
    sigstore.errors.VerificationError,
)
_OUT_OF_REACH = (sigstore.errors.Error, OSError)


# --- signing ------------------------------------------------------------------------------------------------


def sign(credential: SigningCredential, *, name: str, files: Mapping[str, str]) -> dict[str, bytes]:
    """The files to publish beside these: the signature, and the public key if there is one.

    files: path -> sha256. Raises EnvironmentProblem.
    """
    made: dict[str, bytes] = {}
    with TemporaryDirectory() as folder, _key_file(credential.key) as key:
        config = signing.Config()
        try:
            if not credential.key:
                config.use_sigstore_signer(identity_token=_identity_token())
            elif credential.certificate:
                chain = Path(credential.certificate)
                config.use_certificate_signer(
                    private_key=key, signing_certificate=chain, certificate_chain=[chain]
                )
            else:
                made[PUBLIC_KEY] = _public_key_of(key.read_bytes())
                config.use_elliptic_key_signer(private_key=key)
            files = {**files, **{path: hashlib.sha256(content).hexdigest() for path, content in made.items()}}
            config.set_hashing_config(_Known(files)).sign(Path(folder) / name, Path(folder) / SIGNATURE)
        except (*_UNREADABLE, *_OUT_OF_REACH) as error:
            what = f"{KEY} or {CERTIFICATE}" if credential.key else "Sigstore"
            raise EnvironmentProblem(
                f"the release cannot be signed: {what}: {type(error).__name__}",
                hint="A key is an EC private key (P-256, P-384 or P-521) in PEM without a password.",
            ) from None
        return made | {SIGNATURE: (Path(folder) / SIGNATURE).read_bytes()}


def _identity_token() -> str:
    """The workflow's. Without one the library would open a browser."""
    token = detect_credential()
    if token is None:
        raise EnvironmentProblem(
            f"{KEYLESS} is set, and this job has no OIDC identity",
            hint="Give the job `permissions: id-token: write` on GitHub Actions, or sign with a key.",
        )
    return str(token)


@contextmanager
def _key_file(key: str) -> Iterator[Path]:
    """The library reads a file. A key that is text is never on a disk: the file is in memory."""
    if "-----BEGIN" not in key:
        if key and not Path(key).is_file():
            raise EnvironmentProblem(f"{KEY} names no file", hint="Set it to a PEM file, or to its content.")
        yield Path(key)
        return
    if not sys.platform.startswith("linux"):
        raise EnvironmentProblem(f"{KEY} holds a key", hint="On this system, set it to the path of a PEM file.")
    descriptor = os.memfd_create("key")
    try:
        os.write(descriptor, key.encode() + b"\n")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _public_key_of(private: bytes) -> bytes:
    return _pem(load_pem_private_key(private, None).public_key())


def _pem(public: Any) -> bytes:
    """As the library writes a key to take its fingerprint."""
    content: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return content


# --- checking -----------------------------------------------------------------------------------------------


def check_signature(
    signature: bytes, files: Mapping[str, str], *, public_key: bytes | None, wanted: Signer | None
) -> Signer:
    """Who signed exactly these files. files: path -> sha256, of all but the signature and the key.

    wanted: who must have; without one, whoever it says. public_key: as it is published beside the signature.
    Raises SignatureRefusedError, and SignatureUnknownError where Sigstore is out of reach.
    """
    if len(signature) > _MAX_SIGNATURE_BYTES:
        raise SignatureRefusedError("it is too large")
    try:
        material = json.loads(signature)["verificationMaterial"]
        found = _claimed(material, public_key, wanted)
        if wanted is not None and not wanted.includes(found):
            raise SignatureRefusedError(f"it is by {found}, not by {wanted}")
        if found.kind == "key":
            assert public_key is not None
            files = {**files, PUBLIC_KEY: hashlib.sha256(public_key).hexdigest()}
        _verify(signature, found, material, files, public_key)
    except _UNREADABLE as error:
        raise SignatureRefusedError(_reason(error)) from None
    except _OUT_OF_REACH as error:
        raise SignatureUnknownError(f"Sigstore is out of reach ({type(error).__name__})") from None
    return found


# As model_signing.verifying writes it, with both digests as bytes.
_CHANGED = re.compile(r"Hash mismatch for '([^']{1,200})'")


def _reason(error: Exception) -> str:
    """Mismatched files are named by the library; what else fails, only by kind."""
    said = " ".join(str(error).split())
    if changed := _CHANGED.findall(said):
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return f"{changed[0]} is not the file that was signed{more}"
    said = said[:200]
    return said if isinstance(error, ValueError) and said else f"it does not hold ({type(error).__name__})"


def _claimed(material: Mapping[str, Any], public_key: bytes | None, wanted: Signer | None) -> Signer:
    """The signer that the signature names; whether it made it is still to be checked."""
    if "publicKey" in material:
        if public_key is None:
            raise SignatureRefusedError(f"there is no {PUBLIC_KEY} to check it with")
        fingerprint = hashlib.sha256(_canonical(public_key)).hexdigest()
        if material["publicKey"]["hint"] != fingerprint:
            raise SignatureRefusedError(f"it was not made with the key of {PUBLIC_KEY}")
        return Signer(kind="key", value=fingerprint)
    if "x509CertificateChain" in material:
        fingerprints = [hashlib.sha256(item).hexdigest() for item in _certificates(material)]
        # The signer is named by the authority, any of the chain.
        named = wanted.value if wanted is not None and wanted.value in fingerprints[1:] else fingerprints[-1]
        return Signer(kind="certificate", value=named)
    return _identity(base64.b64decode(material["certificate"]["rawBytes"], validate=True))


def _canonical(public_key: bytes) -> bytes:
    return _pem(load_pem_public_key(public_key))


def _certificates(material: Mapping[str, Any]) -> list[bytes]:
    listed = material["x509CertificateChain"]["certificates"]
    return [base64.b64decode(item["rawBytes"], validate=True) for item in listed]


def _identity(certificate: bytes) -> Signer:
    """As Sigstore's authority wrote it into the certificate."""
    extensions = x509.load_der_x509_certificate(certificate).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    issuer = extensions.get_extension_for_oid(_ISSUER).value
    assert isinstance(issuer, x509.UnrecognizedExtension)
    [identity] = [
        *names.get_values_for_type(x509.UniformResourceIdentifier),
        *names.get_values_for_type(x509.RFC822Name),
    ]
    return Signer(kind="identity", value=identity, issuer=issuer.value.decode())


def _verify(
    signature: bytes,
    signer: Signer,
    material: Mapping[str, Any],
    files: Mapping[str, str],
    public_key: bytes | None,
) -> None:
    with TemporaryDirectory() as folder:
        signed, trusted = Path(folder) / SIGNATURE, Path(folder) / "trusted.pem"
        signed.write_bytes(signature)
        config = verifying.Config()
        if signer.kind == "key":
            trusted.write_bytes(public_key or b"")
            config.use_elliptic_key_verifier(public_key=trusted)
        elif signer.kind == "certificate":
            chain = _certificates(material)
            trusted.write_bytes(_as_pem(next(x for x in chain if hashlib.sha256(x).hexdigest() == signer.value)))
            config.use_certificate_verifier(certificate_chain=[trusted])
        else:
            config.use_sigstore_verifier(identity=signer.value, oidc_issuer=signer.issuer)
        config.set_hashing_config(_Known(files)).verify(Path(folder), signed)


def _as_pem(certificate: bytes) -> bytes:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)


# --- hashes that are known ----------------------------------------------------------------------------------

_WAY = manifest.SerializationType.from_args(
    {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": _IGNORED}
)


class _Known(hashing.Config):  # type: ignore[misc]
    """The library's way to hash a folder, for hashes that are known."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__()
        self._files = files

    def hash(self, model_path: Path, *, files_to_hash: object = None) -> Any:
        items = [_WAY.new_item(path, Digest("sha256", bytes.fromhex(sha))) for path, sha in self._files.items()]
        return manifest.Manifest(Path(model_path).name, items, _WAY)
