"""Whether a published release is signed, by whom, and whether its files are those that were signed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from bot.checkpoint.repo_files import GITATTRIBUTES, PROVENANCE, PUBLIC_KEY, SIGNATURE
from bot.errors import EnvironmentProblem, PublishError
from bot.hub.fetch import files_at, read_small_file, remote_sha256, side_by_side
from bot.hub.provenance import ProvenanceError, read_provenance
from bot.hub.session import Hub, HubFailsError, status_of
from bot.hub.signing import (
    CERTIFICATE,
    KEY,
    KEYLESS,
    SignatureRefusedError,
    SignatureUnknownError,
    SigningCredential,
    check_signature,
    require_library,
    sign,
)
from bot.records import Check, HubFile, Provenance, Published, Signer, WatchEntry, to_json

# What publishing adds beside the files that a provenance lists.
ADDED = frozenset({PROVENANCE, SIGNATURE, PUBLIC_KEY, GITATTRIBUTES})


def check_may_sign(hub: Hub, entry: WatchEntry) -> None:
    """Fail before hours of work. Raises EnvironmentProblem when a release has to be signed and cannot be."""
    if hub.signing is not None:
        require_library()
    elif entry.signed_by is not None:
        hint = f"Set {KEY}, with {CERTIFICATE} if need be, or {KEYLESS}, where releases are published."
        raise EnvironmentProblem(f"{entry.target}: `signed_by` is set, and nothing to sign with", hint=hint)


def with_signatures(
    hub: Hub, entries: Sequence[WatchEntry], targets: Sequence[Published]
) -> tuple[Published, ...]:
    """The targets, each with why its release is not what `signed_by` signed. Downloads small files alone."""
    if any(entry.signed_by is not None for entry in entries):
        require_library()

    def checked(item: tuple[WatchEntry, Published]) -> Published:
        entry, target = item
        return replace(target, distrust=distrust(hub.reader, target, entry.signed_by))

    return side_by_side(checked, zip(entries, targets, strict=True))


def demand_signature(api: HfApi, state: Published, wanted: Signer | None) -> None:
    """Raises PublishError when the release on the head is not what `wanted` signed."""
    if problem := distrust(api, state, wanted):
        hint = f"If it is yours: `awq-bot verify {state.repo_id}`, then `awq-bot sign {state.repo_id}`."
        raise PublishError(f"{state.repo_id}: {problem}", hint=hint)


def distrust(api: HfApi, state: Published, wanted: Signer | None) -> str | None:
    """Why the release on the head is not what `wanted` signed; None if it is, or if no signature is required."""
    if wanted is None or state.provenance is None:
        return None
    try:
        signer = signer_of(api, state.repo_id, state.head, wanted=wanted)
        if signer is None:
            return f"it is not signed, and should be by {wanted}"
        return _difference(api, state.repo_id, state.head, state.provenance)
    except SignatureRefusedError as error:
        return f"its signature is refused: {error}"
    except SignatureUnknownError as error:
        return f"its signature cannot be checked: {error}"
    except (HfHubHTTPError, HubFailsError) as error:
        said = f"the Hub answers {status_of(error)}" if isinstance(error, HfHubHTTPError) else error.message
        return f"its signature cannot be checked: {said}"


def signer_of(api: HfApi, repo_id: str, commit: str, *, wanted: Signer | None) -> Signer | None:
    """Who signed the provenance at this commit and the hashes that it lists; None without a signature.

    Raises SignatureRefusedError, SignatureUnknownError, and HfHubHTTPError.
    """
    signature = _content(api, repo_id, commit, SIGNATURE)
    if signature is None:
        return None
    content = read_small_file(api, repo_id, PROVENANCE, revision=commit)
    try:
        made = read_provenance(content)
    except ProvenanceError as error:
        raise SignatureRefusedError(f"{PROVENANCE} {error}") from None
    public_key = _content(api, repo_id, commit, PUBLIC_KEY)
    return check_signature(signature, signed_hashes(made, content), public_key=public_key, wanted=wanted)


def signed_hashes(made: Provenance, content: bytes) -> dict[str, str]:
    """path -> sha256 of every published file but the signature and its key. content: of provenance.json."""
    return {file.path: file.sha256 for file in made.files} | {PROVENANCE: hashlib.sha256(content).hexdigest()}


def sealed(
    signing: SigningCredential | None, made: Provenance, *, target: str, wanted: Signer | None
) -> list[CommitOperationAdd]:
    """The provenance as it will be published and, with `signing`, the signature over it and all that it lists.

    Raises PublishError when that is not a signature by `wanted`.
    """
    content = to_json(made).encode()
    files = {PROVENANCE: content}
    if signing is not None:
        hashes = signed_hashes(made, content)
        files |= sign(signing, name=target.partition("/")[2], files=hashes)
        try:
            check_signature(files[SIGNATURE], hashes, public_key=files.get(PUBLIC_KEY), wanted=wanted)
        except (SignatureRefusedError, SignatureUnknownError) as error:
            raise PublishError(
                f"{target}: what was signed here is not published: {error}",
                hint=f"`signed_by` names another signer than {KEY}, {CERTIFICATE} or {KEYLESS} of this job.",
            ) from None
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def check_signer(api: HfApi, repo_id: str, commit: str, *, wanted: Signer | None) -> Check:
    """As `verify` shows it. Without `wanted`, who signed is said, and nothing demanded."""
    asked = f", and {wanted} is required" if wanted is not None else ""
    otherwise: Literal["failed", "unknown"] = "failed" if wanted is not None else "unknown"
    try:
        signer = signer_of(api, repo_id, commit, wanted=wanted)
    except SignatureRefusedError as error:
        fix = "Do not use it, and report it to its publisher."
        return Check(name="signature", status="failed", found=f"refused: {error}", fix=fix)
    except SignatureUnknownError as error:
        return Check(name="signature", status=otherwise, found=f"not checked: {error}{asked}")
    except HfHubHTTPError as error:
        return Check(name="signature", status=otherwise, found=f"answers {status_of(error)}{asked}")
    if signer is None:
        return Check(name="signature", status=otherwise, found=f"not signed{asked}")
    if wanted is not None:
        return Check(name="signature", status="ok", found=f"by {signer}, as required")
    fix = f"Ask its publisher whether that is theirs; then pass it: --require-signature '{signer}'"
    return Check(name="signature", status="ok", found=f"by {signer}; whose that is was not checked", fix=fix)


def _content(api: HfApi, repo_id: str, commit: str, path: str) -> bytes | None:
    try:
        return read_small_file(api, repo_id, path, revision=commit)
    except RemoteEntryNotFoundError:
        return None
    except ValueError:
        raise SignatureRefusedError(f"{path} is too large") from None


def _difference(api: HfApi, repo_id: str, commit: str, made: Provenance) -> str | None:
    """The first file that is not as it was signed. The Hub lists the sha256 of large ones; small ones are read."""
    listed = {file.path: file for file in files_at(api, repo_id, revision=commit)}
    signed = {file.path: file.sha256 for file in made.files}
    if other := sorted((signed.keys() ^ listed.keys()) - ADDED):
        return f"{other[0]} {'was added to' if other[0] in listed else 'is missing from'} what was signed"

    def differs(path: str) -> bool:
        return _sha256_of(api, repo_id, commit, listed[path]) != signed[path]

    paths = sorted(signed)
    return next(
        (
            f"{path} is not the file that was signed"
            for path, is_other in zip(paths, side_by_side(differs, paths), strict=True)
            if is_other
        ),
        None,
    )


def _sha256_of(api: HfApi, repo_id: str, commit: str, file: HubFile) -> str | None:
    is_git_blob = len(file.content_hash) == 40
    return remote_sha256(api, repo_id, file.path, revision=commit) if is_git_blob else file.content_hash
