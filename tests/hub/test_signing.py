"""Signed releases on a local Hub: signed where they are published, checked by us and by OpenSSF's own command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from huggingface_hub import snapshot_download

from bot.errors import EnvironmentProblem, PublishError
from bot.hub.republish import sign_release
from bot.hub.session import Hub
from bot.hub.signatures import check_may_sign, sealed
from bot.hub.signing import SigningCredential
from bot.hub.verify import verify
from bot.jobs import pipeline
from bot.jobs.environment import child_environment
from bot.localhub import LocalHub
from bot.records import Check, Provenance, Signer, Skip, from_json, no_progress, read_signer, to_json
from tests.support import factories
from tests.support.release import Release
from tests.support.repos import TARGET, as_bot, described, writes
from tests.support.signers import Signing, private_pem, with_certificate, with_key


@pytest.fixture(scope="module")
def ours() -> Signing:
    return with_key()


def signed_release(hub: LocalHub, folder: Path, by: Signing) -> Release:
    """Ready to be published by whoever has the key."""
    caller = replace(as_bot(hub), signing=by.credential)
    return Release.of(hub, folder, caller=caller, signed_by=by.signer)


@pytest.fixture
def published(hub: LocalHub, tmp_path: Path, ours: Signing) -> Release:
    release = signed_release(hub, tmp_path, ours)
    release.publish()
    return release


def signature(hub: LocalHub, required: Signer | None = None, revision: str | None = None) -> Check:
    outsider = Hub(hub.endpoint, hub.token("reader", role="read"))
    checks = verify(outsider, TARGET, revision=revision, progress=no_progress, signer=required)
    return next(check for check in checks if check.name == "signature")


def failed(hub: LocalHub, required: Signer | None = None, revision: str | None = None) -> set[str]:
    outsider = Hub(hub.endpoint, hub.token("reader", role="read"))
    checks = verify(outsider, TARGET, revision=revision, progress=no_progress, signer=required)
    return {check.name for check in checks if check.status == "failed"}


def planned(release: Release) -> Skip:
    [skip] = pipeline.plan(as_bot(release.hub), [release.job.entry]).skipped
    return skip


def download(hub: LocalHub, folder: Path, revision: str | None = None) -> Path:
    token = hub.token("reader", role="read")
    snapshot_download(TARGET, revision=revision, local_dir=folder, endpoint=hub.endpoint, token=token)
    return folder


def stock_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """OpenSSF's `model_signing`, as a card has it."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stock_verify(folder: Path) -> subprocess.CompletedProcess[str]:
    keys = ("--signature", folder / "model.sig", "--public_key", folder / "model.pub")
    return stock_tool("verify", "key", folder, *keys)


# --- signed -------------------------------------------------------------------------------------------------


def test_signed_release_is_verified_and_up_to_date(hub: LocalHub, published: Release, ours: Signing) -> None:
    assert set(hub.files(TARGET)) == published.paths | {"model.sig", "model.pub"}
    assert failed(hub, ours.signer, published.job.tag) == set()
    assert signature(hub, ours.signer).found == f"by {ours.signer}, as required"
    said = signature(hub)
    assert (said.status, said.found) == ("ok", f"by {ours.signer}; whose that is was not checked")
    assert f"--require-signature '{ours.signer}'" in said.fix
    assert planned(published).reason == "up to date"


def test_stock_tool_verifies_a_download_and_refuses_a_flipped_byte(
    hub: LocalHub, published: Release, tmp_path: Path
) -> None:
    folder = download(hub, tmp_path / "model", published.job.tag)
    assert (folder / ".cache" / "huggingface").is_dir()
    done = stock_verify(folder)
    assert done.returncode == 0, done.stderr
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    refused = stock_verify(folder)
    assert refused.returncode != 0
    assert "model.safetensors" in refused.stderr + refused.stdout


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name))
def test_other_curves_sign_as_well(hub: LocalHub, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    by = with_key(curve)
    signed_release(hub, tmp_path, by).publish()
    assert failed(hub, by.signer) == set()


def test_certificate_of_an_authority_signs_and_is_checked(hub: LocalHub, tmp_path: Path) -> None:
    by, other = with_certificate(tmp_path / "pki"), with_certificate(tmp_path / "other")
    release = signed_release(hub, tmp_path, by)
    release.publish()
    assert "model.pub" not in hub.files(TARGET)
    assert failed(hub, by.signer) == set()
    assert failed(hub, other.signer) == {"signature"}
    assert planned(release).reason == "up to date"
    folder = download(hub, tmp_path / "model")
    sig, chain = folder / "model.sig", tmp_path / "pki" / "authority.pem"
    done = stock_tool("verify", "certificate", folder, "--signature", sig, "--certificate_chain", chain)
    assert done.returncode == 0, done.stderr


def test_update_is_signed_anew_and_both_stay_verified(
    hub: LocalHub, published: Release, tmp_path: Path, ours: Signing
) -> None:
    newer = published.next(tmp_path, {"config.json": b'{"n": 2}', "tokenizer.json": b"{}"}, signed_by=ours.signer)
    newer.publish()
    for release in (published, newer):
        assert failed(hub, ours.signer, release.job.tag) == set()


def test_damaged_update_is_reverted_to_a_signed_release(
    hub: LocalHub, published: Release, tmp_path: Path, ours: Signing
) -> None:
    new = published.next(tmp_path, {"config.json": b"{}", "model.safetensors": b"b" * 9000}, signed_by=ours.signer)
    sha256 = next(file.sha256 for file in new.artifact.files if file.path == "model.safetensors")

    def damage(what: str, done: int, total: int, unit: str) -> None:
        if what.startswith("read back"):
            hub.repo(TARGET).object_path(sha256).write_bytes(b"?" * 9000)

    new.fails("the previous release was restored as", progress=damage)
    assert failed(hub, ours.signer) == set()


# --- forged -------------------------------------------------------------------------------------------------


def commit_and_move_tag(
    hub: LocalHub, tag: str, files: dict[str, bytes | str], delete: tuple[str, ...] = ()
) -> None:
    head = hub.seed(TARGET, files, delete=delete)
    hub.repo(TARGET).delete_ref(f"refs/tags/{tag}")
    hub.repo(TARGET).create_ref(f"refs/tags/{tag}", head)


def _other_weights(made: Provenance) -> tuple[Provenance, bytes]:
    """Weights and provenance changed together: consistent in itself."""
    content = b"evil" * 5000
    forged = described("model.safetensors", content)
    files = tuple(forged if file.path == forged.path else file for file in made.files)
    return replace(made, files=files), content


def _weights_and_provenance(release: Release) -> None:
    forged, content = _other_weights(current(release))
    commit_and_move_tag(
        release.hub, release.job.tag, {"model.safetensors": content, "provenance.json": to_json(forged)}
    )


def _and_no_signature(release: Release) -> None:
    forged, content = _other_weights(current(release))
    files: dict[str, bytes | str] = {"model.safetensors": content, "provenance.json": to_json(forged)}
    commit_and_move_tag(release.hub, release.job.tag, files, delete=("model.sig", "model.pub"))


def _signed_by_the_forger(release: Release) -> None:
    """The same, signed with another key, which lies beside it."""
    forged, content = _other_weights(current(release))
    added = sealed(with_key().credential, forged, target=TARGET, wanted=None)
    files: dict[str, bytes | str] = {item.path_in_repo: bytes(item.path_or_fileobj) for item in added}  # type: ignore[arg-type]
    commit_and_move_tag(release.hub, release.job.tag, files | {"model.safetensors": content})


def _only_weights(release: Release) -> None:
    commit_and_move_tag(release.hub, release.job.tag, {"model.safetensors": b"evil" * 5000})


def _only_a_small_file(release: Release) -> None:
    commit_and_move_tag(release.hub, release.job.tag, {"tokenizer.json": '{"evil": 1}'})


def _only_provenance(release: Release) -> None:
    forged = replace(current(release), device="a better one")
    commit_and_move_tag(release.hub, release.job.tag, {"provenance.json": to_json(forged)})


def _file_added(release: Release) -> None:
    commit_and_move_tag(release.hub, release.job.tag, {"modeling_evil.py": "import os"})


def _file_removed(release: Release) -> None:
    commit_and_move_tag(release.hub, release.job.tag, {}, delete=("tokenizer.json",))


def _other_key(release: Release) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    commit_and_move_tag(release.hub, release.job.tag, {"model.pub": public})


def _broken(**changes: object) -> Callable[[Release], None]:
    def change(release: Release) -> None:
        bundle = json.loads(release.hub.files(TARGET)["model.sig"])
        commit_and_move_tag(release.hub, release.job.tag, {"model.sig": json.dumps(bundle | changes)})

    return change


def _deep(release: Release) -> None:
    commit_and_move_tag(release.hub, release.job.tag, {"model.sig": "[" * 100_000})


FORGERIES: dict[str, Callable[[Release], None]] = {
    "weights and provenance": _weights_and_provenance,
    "weights and provenance, signature taken away": _and_no_signature,
    "weights and provenance, signed by the forger": _signed_by_the_forger,
    "weights": _only_weights,
    "a small file": _only_a_small_file,
    "provenance": _only_provenance,
    "a file added": _file_added,
    "a file removed": _file_removed,
    "another public key": _other_key,
    "signature without material": _broken(verificationMaterial={}),
    "signature without an envelope": _broken(dsseEnvelope=None),
    "signature that claims an identity": _broken(verificationMaterial={"certificate": {"rawBytes": "AAAA"}}),
    "signature with an empty chain": _broken(verificationMaterial={"x509CertificateChain": {"certificates": []}}),
    "signature that is no JSON": _deep,
}


def current(release: Release) -> Provenance:
    return from_json(Provenance, release.hub.files(TARGET)["provenance.json"])


@pytest.mark.forgery
@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_refused_by_verify_and_by_the_plan(
    hub: LocalHub, published: Release, ours: Signing, name: str
) -> None:
    """The tag is moved along, so without a signature most of these are consistent in themselves."""
    FORGERIES[name](published)
    for revision in (None, published.job.tag):
        assert failed(hub, ours.signer, revision) != set()
    skip = planned(published)
    assert skip.exit_code == PublishError.exit_code
    assert "signature" in skip.reason or "sign" in skip.reason
    assert "awq-bot verify" in skip.hint
    before = writes(hub)
    published.fails(TARGET)
    assert writes(hub) == before


def test_what_is_not_as_it_was_signed_is_named(published: Release) -> None:
    _only_weights(published)
    assert "model.safetensors is not the file that was signed" in planned(published).reason


@pytest.mark.forgery
def test_forged_repo_is_refused_by_the_stock_tool(hub: LocalHub, published: Release, tmp_path: Path) -> None:
    _weights_and_provenance(published)
    assert stock_verify(download(hub, tmp_path / "model", published.job.tag)).returncode != 0


@pytest.mark.forgery
def test_moved_tag_is_refused_though_what_it_leads_to_is_signed(
    hub: LocalHub, published: Release, tmp_path: Path, ours: Signing
) -> None:
    newer = published.next(tmp_path, {"config.json": b'{"n": 2}'}, signed_by=ours.signer)
    newer.publish()
    old = published.job.tag
    hub.repo(TARGET).delete_ref(f"refs/tags/{old}")
    hub.repo(TARGET).create_ref(f"refs/tags/{old}", hub.history(TARGET)[0].sha)
    assert failed(hub, ours.signer, old) == {"tag", "log"}


@pytest.mark.forgery
def test_release_under_a_forged_one_is_not_signed_when_an_update_fails(
    hub: LocalHub, published: Release, tmp_path: Path, ours: Signing
) -> None:
    """A restored release gets our signature, so it has to have it already."""
    _weights_and_provenance(published)
    update = published.next(tmp_path, {"config.json": b'{"n": 2}'}, signed_by=ours.signer)
    update.fails("its signature is refused")


# --- not signed ---------------------------------------------------------------------------------------------


def test_unsigned_release_is_said_to_be_and_can_be_signed_later(
    hub: LocalHub, release: Release, ours: Signing
) -> None:
    release.publish()
    assert (signature(hub).status, signature(hub).found) == ("unknown", "not signed")
    assert signature(hub, ours.signer).found == f"not signed, and {ours.signer} is required"
    assert failed(hub, ours.signer) == {"signature"}
    asked = replace(release, job=replace(release.job, entry=replace(release.job.entry, signed_by=ours.signer)))
    assert f"awq-bot sign {TARGET}" in planned(asked).hint
    tag = sign_release(replace(as_bot(hub), signing=ours.credential), TARGET, progress=no_progress)
    assert tag.startswith(f"{release.job.tag}-signed-")
    assert failed(hub, ours.signer, tag) == set()
    assert failed(hub, None, release.job.tag) == set()
    assert planned(asked).reason == "up to date"


@pytest.mark.forgery
def test_damaged_release_is_not_signed_later(hub: LocalHub, release: Release, ours: Signing) -> None:
    release.publish()
    _only_weights(release)
    head = hub.history(TARGET)[0].sha
    with pytest.raises(PublishError, match=r"model\.safetensors: .* published was") as caught:
        sign_release(replace(as_bot(hub), signing=ours.credential), TARGET, progress=no_progress)
    assert "Nothing was signed" in caught.value.hint
    assert hub.history(TARGET)[0].sha == head


def test_key_that_is_not_the_one_of_the_watchlist_publishes_nothing(
    hub: LocalHub, tmp_path: Path, ours: Signing
) -> None:
    release = signed_release(hub, tmp_path, ours).by(replace(as_bot(hub), signing=with_key().credential))
    assert "`signed_by` names another signer" in release.fails("what was signed here is not published").hint
    assert release.private
    assert len(hub.history(TARGET)) == 1


def test_entry_with_signed_by_and_no_key_fails_before_the_work(hub: LocalHub, ours: Signing) -> None:
    with pytest.raises(EnvironmentProblem, match="nothing to sign with") as caught:
        check_may_sign(as_bot(hub), factories.entry(signed_by=ours.signer))
    assert "AWQ_BOT_SIGNING_KEY" in caught.value.hint


def _rsa() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _wrong_curve() -> str:
    return private_pem(ec.generate_private_key(ec.SECP256K1())).decode()


@pytest.mark.parametrize(
    "key", [_rsa, _wrong_curve, lambda: "-----BEGIN PRIVATE KEY-----\nx\n", lambda: "no/such/file.pem"]
)
def test_key_that_cannot_sign_is_named_and_never_shown(
    hub: LocalHub, release: Release, key: Callable[[], str]
) -> None:
    secret = key()
    caller = replace(as_bot(hub), signing=SigningCredential(key=secret))
    error = release.by(caller).fails("AWQ_BOT_SIGNING_KEY", EnvironmentProblem)
    assert "BEGIN" not in error.message
    assert secret not in repr(caller)


def test_credential_comes_from_the_environment_and_reaches_no_child(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: Signing
) -> None:
    assert SigningCredential.from_environment() is None
    monkeypatch.setenv("AWQ_BOT_SIGNING_KEY", ours.credential.key)
    monkeypatch.setenv("AWQ_BOT_SIGNING_CERTIFICATE", "chain.pem")
    assert SigningCredential.from_environment() == SigningCredential(
        key=ours.credential.key.strip(), certificate="chain.pem"
    )
    assert not [name for name in child_environment(tmp_path) if name.startswith("AWQ_BOT_SIGN")]
    monkeypatch.setenv("AWQ_BOT_SIGN_KEYLESS", "true")
    with pytest.raises(EnvironmentProblem, match="both set"):
        SigningCredential.from_environment()
    monkeypatch.delenv("AWQ_BOT_SIGNING_KEY")
    with pytest.raises(EnvironmentProblem, match="without AWQ_BOT_SIGNING_KEY"):
        SigningCredential.from_environment()


# --- with an identity: what can be tried without Sigstore ---------------------------------------------------


def test_signing_with_an_identity_outside_of_a_workflow_opens_no_browser(
    hub: LocalHub, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GITHUB_ACTIONS", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    release.by(replace(as_bot(hub), signing=SigningCredential())).fails("no OIDC identity", EnvironmentProblem)


@pytest.mark.parametrize(
    ("text", "signer"),
    [
        (f"key:{'ab' * 32}", Signer(kind="key", value="ab" * 32)),
        (f"certificate:{'ab' * 32}", Signer(kind="certificate", value="ab" * 32)),
        (
            "https://github.com/you/bot/.github/workflows/model.yml@refs/heads/main",
            Signer(
                kind="identity",
                value="https://github.com/you/bot/.github/workflows/model.yml@refs/heads/main",
                issuer="https://token.actions.githubusercontent.com",
            ),
        ),
        (
            "me@example.org from https://accounts.example.org",
            Signer(kind="identity", value="me@example.org", issuer="https://accounts.example.org"),
        ),
        (
            "https://github.com/you/bot/.github/workflows/*@refs/heads/main",
            Signer(
                kind="identity",
                value="https://github.com/you/bot/.github/workflows/*@refs/heads/main",
                issuer="https://token.actions.githubusercontent.com",
            ),
        ),
        ("https://github.com/*/*@refs/heads/main", None),
        ("https://github.com/you/bot/.github/workflows/model.yml@*", None),
        ("key:ab", None),
        (f"key:{'AB' * 32}", None),
        (f"key:{'ab' * 32}\n", None),
        ("me@example.org", None),
        ("https://github.com/you/bot", None),
        ("https://github.com/you/$(id)@main", None),
        ("'x'@y from https://z", None),
        ("", None),
    ],
)
def test_signers_have_one_spelling(text: str, signer: Signer | None) -> None:
    assert read_signer(text) == signer
    if signer is not None:
        assert str(signer) == text


@pytest.mark.parametrize(
    ("identity", "issuer", "included"),
    [
        ("https://github.com/you/bot/.github/workflows/model.yml@refs/heads/main", "", True),
        ("https://github.com/you/bot/.github/workflows/watch.yml@refs/heads/main", "", True),
        ("https://github.com/you/bot/.github/workflows/model.yml@refs/heads/other", "", False),
        ("https://github.com/you/bot/.github/workflows/x/model.yml@refs/heads/main", "", False),
        ("https://github.com/you/bot/.github/workflows/m.yml@refs/heads/main.yml@refs/heads/main", "", False),
        ("https://github.com/you/bot2/.github/workflows/model.yml@refs/heads/main", "", False),
        ("https://github.com/you/bot/.github/workflows/model.yml@refs/heads/main", "https://evil.example", False),
        ("https://github.com/you/bot/.github/workflows/@refs/heads/main", "", False),
    ],
)
def test_workflows_of_one_repository_are_included_by_a_star(identity: str, issuer: str, included: bool) -> None:
    """A release and a refresh are published by different workflows."""
    wanted = read_signer("https://github.com/you/bot/.github/workflows/*@refs/heads/main")
    assert wanted is not None
    assert wanted.includes(Signer(kind="identity", value=identity, issuer=issuer or wanted.issuer)) == included
