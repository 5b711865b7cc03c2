"""A machine's clock that is wrong, or jumps: what is made and published is the same, and errors name the clock."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bot.errors import EnvironmentProblem
from bot.hub.pull import pull_source
from bot.hub.session import WORKER, Hub, call
from bot.localhub import LocalHub
from bot.records import no_progress
from tests.support.repos import SOURCE, as_bot, release_job, source_files
from tests.trust.faults import KINDS

YEAR = timedelta(days=365)
LONGEST_S = 120.0  # of what takes a second


@pytest.fixture
def jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes back by a year, or forward, each time that the bot looks at it. The Hub has its own."""
    clock = time.time
    # No two are the same, so that no two looks fit together by chance.
    offsets = ((-1) ** number * (YEAR + number * timedelta(days=1)).total_seconds() for number in count())

    def jumped() -> float:
        here = threading.current_thread()
        ours = here is threading.main_thread() or here.name.startswith(WORKER)
        return clock() + (next(offsets) if ours else 0.0)

    monkeypatch.setattr(time, "time", jumped)


@pytest.mark.usefixtures("jumps")
@pytest.mark.parametrize("kind", KINDS)
def test_a_publication_does_not_care(hub: LocalHub, tmp_path: Path, kind: str) -> None:
    _, release = KINDS[kind](hub, tmp_path)
    publication = release.publish()
    assert release.complete
    assert hub.files(publication.repo_id).keys() == release.paths
    assert 0 <= publication.duration_s < LONGEST_S


@pytest.mark.usefixtures("jumps")
def test_a_pull_does_not_care(hub: LocalHub, tmp_path: Path) -> None:
    hub.seed(SOURCE, source_files())
    job = release_job(hub)
    weights = pull_source(as_bot(hub), job, tmp_path / "source", no_progress)
    assert 0 <= weights.duration_s < LONGEST_S
    hub.clear_requests()
    assert pull_source(as_bot(hub), job, tmp_path / "source", no_progress).files == weights.files
    assert hub.requests == ()


@pytest.mark.parametrize(("valid_from", "valid_to"), [(YEAR, 2 * YEAR), (-2 * YEAR, -YEAR)])
def test_a_certificate_of_another_time_points_at_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valid_from: timedelta, valid_to: timedelta
) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(_certificate(valid_from, valid_to))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with _tls_server(certificate) as port, pytest.raises(EnvironmentProblem, match="certificate") as caught:
        call(Hub(f"https://localhost:{port}", "hf_x").reader.whoami, attempts=1)
    assert f"Check this machine's clock, which says {datetime.now(UTC):%Y-%m-%d}" in caught.value.hint


def _certificate(valid_from: timedelta, valid_to: timedelta) -> bytes:
    """PEM of a certificate for localhost that signed itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + valid_from)
        .not_valid_after(now + valid_to)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + made.public_bytes(Encoding.PEM)


@contextmanager
def _tls_server(certificate: Path) -> Iterator[int]:
    """Its port. It shakes hands, as far as the other side wants to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve() -> None:
        try:
            with context.wrap_socket(listening, server_side=True) as serving:
                serving.accept()
        except OSError:  # the certificate was refused
            pass

    with socket.create_server(("localhost", 0)) as listening:
        port = int(listening.getsockname()[1])
        thread = threading.Thread(target=serve)
        thread.start()
        yield port
        thread.join()
