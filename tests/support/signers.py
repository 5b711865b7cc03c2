"""Keys and certificates, and what signs with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from bot.hub.signing import SigningCredential
from bot.records import Signer


@dataclass(frozen=True)
class Signing:
    """credential: what it signs with; signer: what `signed_by` calls that."""

    credential: SigningCredential
    signer: Signer


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def with_key(curve: ec.EllipticCurve | None = None) -> Signing:
    """A key that is given as text."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    credential = SigningCredential(key=private_pem(key).decode())
    return Signing(credential, Signer(kind="key", value=hashlib.sha256(public).hexdigest()))


def with_certificate(folder: Path) -> Signing:
    """A certificate of an authority of its own, both in files."""
    folder.mkdir()
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("Authority", authority, "Authority", authority, is_authority=True)
    leaf = _certificate("Releases", key, "Authority", authority, is_authority=False)
    (folder / "key.pem").write_bytes(private_pem(key))
    (folder / "chain.pem").write_bytes(leaf.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    (folder / "authority.pem").write_bytes(root.public_bytes(Encoding.PEM))
    credential = SigningCredential(key=str(folder / "key.pem"), certificate=str(folder / "chain.pem"))
    fingerprint = root.fingerprint(hashes.SHA256()).hex()
    return Signing(credential, Signer(kind="certificate", value=fingerprint))


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, by: str, signed: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = {
        "digital_signature": not is_authority,
        "key_cert_sign": is_authority,
        "crl_sign": is_authority,
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False),
        "encipher_only": False,
        "decipher_only": False,
    }
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .sign(signed, hashes.SHA256())
    )
