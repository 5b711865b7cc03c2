"""A hub as an object: starting and stopping it, its accounts, and its repos without HTTP."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from bot.errors import EnvironmentProblem
from bot.localhub import store
from bot.localhub.access import Accounts, Publisher, Role, Signer, TrustedPublishers
from bot.localhub.app import Connections, Server, files_app, hub_app
from bot.localhub.context import Context, Limits
from bot.localhub.middleware import Faults, Middleware, RequestLog, RequestRecord
from bot.localhub.protocol import Commit, Gated, RepoType
from bot.localhub.repo import Repo
from bot.localhub.store import Content, Store

TOKENS = "tokens.json"
_OTHER_ROOT = "Give another folder with --root."


class LocalHub:
    """The Hub's HTTP API over a folder. Use as a context manager, or call start() and stop().

    port, files_port: 0 takes a free port. Raises EnvironmentProblem when the folder holds other files, another
    process serves it, or a port is in use.
    """

    def __init__(self, root: Path, *, port: int = 0, files_port: int = 0, limits: Limits | None = None) -> None:
        _check_root(root)
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self.store = Store(self.root)
        self.accounts = Accounts(self.root / TOKENS)
        self.faults = Faults()
        self._log = RequestLog(self.root / "requests.jsonl")
        self._limits = limits or Limits()
        self.trust = TrustedPublishers(self.root / "trust.json", token_s=self._limits.exchanged_token_s)
        self._ports = (port, files_port)
        self._endpoint = ""
        self._resources = contextlib.ExitStack()

    @property
    def endpoint(self) -> str:
        """Scheme, host and port, as HF_ENDPOINT takes it. Empty before start()."""
        return self._endpoint

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        return self._log.records

    def clear_requests(self) -> None:
        self._log.clear()

    # -- running

    def start(self) -> LocalHub:
        with contextlib.ExitStack() as stack:
            server, sockets = self._prepare(stack)
            stack.callback(server.stop)
            server.start(sockets)
            self._resources = stack.pop_all()
        return self

    def stop(self) -> None:
        self._resources.close()

    def run(self, *, on_start: Callable[[LocalHub], None] | None = None) -> None:
        """Serves in this thread until SIGINT or SIGTERM; only for the main thread.

        on_start: called once the endpoint is known.
        """
        with contextlib.ExitStack() as stack:
            server, sockets = self._prepare(stack)
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after shutting down
                if on_start is not None:
                    on_start(self)
                server.run(sockets=sockets)

    def __enter__(self) -> LocalHub:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _prepare(self, stack: contextlib.ExitStack) -> tuple[Server, list[socket.socket]]:
        _own(stack.enter_context((self.root / "server.lock").open("ab")))
        self.store.clean()
        port, files_port = self._ports
        hub_sockets = _listen(stack, port)
        files_sockets = _listen(stack, files_port)
        files_port = files_sockets[0].getsockname()[1]
        self._endpoint = f"http://127.0.0.1:{hub_sockets[0].getsockname()[1]}"
        context = Context(
            store=self.store,
            accounts=self.accounts,
            trust=self.trust,
            signer=Signer(self.root / "signing.key"),
            faults=self.faults,
            log=self._log,
            limits=self._limits,
            endpoint=self._endpoint,
            files_endpoint=f"http://localhost:{files_port}",
        )
        connections = Connections()
        middleware = Middleware(
            hub=hub_app(context),
            files=files_app(context),
            files_port=files_port,
            faults=self.faults,
            log=self._log,
            hang_up=connections.hang_up,
        )
        return Server(middleware, connections), [*hub_sockets, *files_sockets]

    # -- accounts

    def add_token(self, user: str, *, role: Role = "write", orgs: Mapping[str, str] | Iterable[str] = ()) -> str:
        """A new token. Creates the user if missing, and adds it to `orgs` (name → role, `write` by default)."""
        return self.accounts.add_token(user, role=role, orgs=orgs)

    def token(self, user: str = "bot", *, role: Role = "write") -> str:
        """An existing token; raises KeyError. `bot` (in the organisation `quantized`) and `reader` have one."""
        return self.accounts.token_of(user, role=role)

    def revoke_token(self, token: str) -> None:
        self.accounts.revoke_token(token)

    def grant_access(self, repo_id: str, user: str, *, repo_type: RepoType = "model") -> None:
        """Lets a user read the files of a gated repo, as if they had accepted its terms."""
        self.repo(repo_id, repo_type=repo_type).grant(user)

    # -- trusted publishers

    def trust_issuer(self, issuer: str, public_key: str) -> None:
        """Accepts the issuer's id-tokens; the real Hub accepts GitHub's. public_key: PEM."""
        self.trust.add_issuer(issuer, public_key)

    def trust_publisher(self, resource: str, *, issuer: str, claims: Mapping[str, str]) -> None:
        """Add a Trusted Publisher, as the settings of a repo (`namespace/name`) or of an account (its name) do."""
        self.trust.add_publisher(resource, Publisher(issuer=issuer, claims=claims))

    # -- repos, without HTTP

    def seed(
        self,
        repo_id: str,
        files: Path | Mapping[str, Content],
        *,
        repo_type: RepoType = "model",
        private: bool | None = None,
        gated: Gated | None = None,
        message: str = "Upload files",
        delete: Iterable[str] = (),
        replace_all: bool = False,
        revision: str = "main",
        author: str | None = None,
    ) -> str:
        """See `store.seed`: one commit as an upstream author would push it; returns its sha."""
        return store.seed(
            self.store,
            repo_id,
            files,
            repo_type=repo_type,
            private=private,
            gated=gated,
            message=message,
            delete=delete,
            replace_all=replace_all,
            revision=revision,
            author=author,
        )

    def rename(self, old_id: str, new_id: str) -> None:
        """Rename a model repo, as in its settings: requests for the old name are redirected from now on."""
        self.store.move(self.repo(old_id), new_id)

    def repo(self, repo_id: str, *, repo_type: RepoType = "model") -> Repo:
        """Raises HubError (404) when there is none."""
        return self.store.repo(repo_id, repo_type=repo_type)

    def files(self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model") -> dict[str, bytes]:
        """path → content of everything at a revision."""
        repo = self.repo(repo_id, repo_type=repo_type)
        return {path: repo.read(entry) for path, entry in repo.commit_at(revision).files.items()}

    def refs(self, repo_id: str, *, repo_type: RepoType = "model") -> dict[str, str]:
        """full name (`refs/tags/v1`) → commit."""
        return self.repo(repo_id, repo_type=repo_type).refs()

    def history(
        self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model"
    ) -> tuple[Commit, ...]:
        """Newest first."""
        repo = self.repo(repo_id, repo_type=repo_type)
        return tuple(repo.history(repo.resolve(revision)))

    def disable(self, repo_id: str, *, disabled: bool = True, repo_type: RepoType = "model") -> None:
        """Disable a repo, as the Hub does when it breaks the rules: every request for it gets 403."""
        self.repo(repo_id, repo_type=repo_type).update_settings(disabled=disabled)


def serve(root: Path, port: int = 0, *, on_start: Callable[[LocalHub], None] | None = None) -> None:
    """Blocks until SIGINT or SIGTERM. on_start: called once the endpoint is known."""
    LocalHub(root, port=port).run(on_start=on_start)


def _check_root(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise EnvironmentProblem(f"{root}: is a file", hint=_OTHER_ROOT)
    # start() empties the folder `tmp` in it, so it must not be anyone else's.
    if root.is_dir() and any(root.iterdir()) and not (root / TOKENS).is_file():
        raise EnvironmentProblem(f"{root}: the folder exists and is not a local Hub", hint=_OTHER_ROOT)


def _own(lock: BinaryIO) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        folder = Path(lock.name).parent
        raise EnvironmentProblem(f"{folder}: another process serves this folder", hint=_OTHER_ROOT) from None


def _listen(stack: contextlib.ExitStack, port: int) -> list[socket.socket]:
    """Listen on 127.0.0.1, and on ::1 with the same port if possible: `localhost` can resolve to either."""
    try:
        first = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=512))
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno else str(error)
        raise EnvironmentProblem(f"port {port}: {problem}", hint="`--port 0` takes a free port.") from None
    sockets = [first]
    with contextlib.suppress(OSError):
        second = socket.create_server(("::1", first.getsockname()[1]), family=socket.AF_INET6, backlog=512)
        sockets.append(stack.enter_context(second))
    return sockets
