"""A secret of each kind, planted where the bot finds it, and a search for them in whatever was written."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests.support.sandbox import PATIENCE_S, Sandbox
from tests.support.signers import Signing, with_key

# What the local Hub itself keeps of its accounts, and where the search plants a stored token.
_KEEPERS = {"tokens.json", "trust.json", "signing.key", "stored_tokens", "token"}
STORED = "the stored token"
_MASK = "::add-mask::"


@dataclass(frozen=True)
class Canaries:
    """values: by kind. A key in PEM is one kind per line."""

    values: Mapping[str, str]

    def found_in(self, content: bytes) -> list[str]:
        """The kinds that are in it, as they are, quoted as in URLs, or in base64 or hex."""
        return [kind for kind, value in self.values.items() if any(one in content for one in _needles(value))]

    def echo(self) -> str:
        """What a server might answer: all that it was sent, and more, in every form."""
        said = ["Invalid credentials:", self.values[STORED]]  # which the bot does not use, and cannot know
        for value in (value for kind, value in self.values.items() if kind != STORED):
            basic = base64.b64encode(f"bot:{value}".encode()).decode()
            said += [f"Authorization: Bearer {value}", f"sent by {value}", quote(value, safe=""), basic]
            said.append(value.encode().hex())
        return " ".join(said)


def _needles(value: str) -> Iterator[bytes]:
    content = value.encode()
    yield from (content, quote(value, safe="").encode(), quote_plus(value).encode())
    yield from (content.hex().encode(), content.hex().upper().encode())
    for before in range(3):
        # The first and the last letters depend on what is beside it.
        inside = base64.b64encode(b"x" * before + content).rstrip(b"=")[4:-2]
        yield from (inside, inside.replace(b"+", b"-").replace(b"/", b"_"))


@dataclass
class Place:
    """A sandbox whose bot holds a secret of each kind, and what was searched and found there.

    more: variables beside the planted ones.
    """

    sandbox: Sandbox
    signing: Signing
    canaries: Canaries
    planted: dict[str, str]
    searched: int = 0
    found: list[str] = field(default_factory=list)
    more: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.sandbox.root

    def environment(self) -> dict[str, str]:
        return self.sandbox.environment() | self.planted | self.more

    def call(self, *words: str, code: int = 0, script: str = "") -> subprocess.CompletedProcess[str]:
        """`awq-bot WORDS`, which ends with this code; what it printed is searched. script: run in its place."""
        command = [sys.executable, *(("-c", script) if script else ("-m", "bot")), *words]
        with (
            subprocess.Popen(
                command,
                env=self.environment(),
                cwd=self.root,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
            self._watched(process.pid),
        ):
            out, err = process.communicate(timeout=PATIENCE_S)
        # The one line that may name a secret has GitHub hide it.
        log = "".join(line for line in out.splitlines(keepends=True) if not line.startswith(_MASK))
        self.search(f"stdout of {words}", log)
        self.search(f"stderr of {words}", err)
        assert process.returncode == code, (words, process.returncode, out, err)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def search(self, place: str, content: str | bytes) -> None:
        self.searched += 1
        kinds = self.canaries.found_in(content.encode() if isinstance(content, str) else content)
        self.found += [f"{kind} in {place}" for kind in kinds]

    def search_all(self) -> None:
        """Every file of the sandbox: logs, pages, jobs, caches, temporary files, and what the Hub has."""
        caches = Path(os.environ["XDG_CACHE_HOME"]) if "XDG_CACHE_HOME" in os.environ else self.root
        for path in sorted({*self.root.rglob("*"), *caches.rglob("*")}):
            if path.is_file() and path.name not in _KEEPERS:
                self.search(os.path.relpath(path, self.root), path.read_bytes())
                self.search(f"the name of {path.name}", str(path))

    @contextmanager
    def _watched(self, pid: int) -> Iterator[None]:
        """What other processes of this account can see meanwhile, each thing once."""
        seen: set[tuple[str, bytes]] = set()
        done = threading.Event()
        watching = threading.Thread(target=lambda: _watch(pid, self.root / "tmp", seen, done))
        watching.start()
        try:
            yield
        finally:
            done.set()
            watching.join()
        for place, content in seen:
            self.search(place, content)


def _watch(pid: int, temporary: Path, seen: set[tuple[str, bytes]], done: threading.Event) -> None:
    while not done.wait(0.03):
        own = _read(Path(f"/proc/{pid}/cmdline"))
        for one in (pid, *_descendants(pid)):
            name, line = (_read(Path(f"/proc/{one}/{what}")) for what in ("comm", "cmdline"))
            seen |= {("the name of a process", name), (f"the command line of {name!r}", line)}
            if (
                line != own
            ):  # the bot's environment holds the secrets, also in a child that is about to become another
                seen.add((f"the environment of {name!r}", _read(Path(f"/proc/{one}/environ"))))
        seen.update(
            (f"the temporary file {name}", _read(Path(folder, name)))
            for folder, _, names in os.walk(temporary)
            for name in names
        )


def _descendants(pid: int) -> list[int]:
    try:
        threads = [*Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # it has ended
        return []
    children = [int(word) for one in threads for word in _read(one / "children").split()]
    return [*children, *(below for child in children for below in _descendants(child))]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is not readable
        return b""


def plant(sandbox: Sandbox, **tokens: str) -> Place:
    """tokens: variables with other values than those made up here."""
    signing, password = with_key(), f"pass-{secrets.token_hex(12)}"
    stored = f"hf_{secrets.token_hex(17)}"
    home = sandbox.root / "home"
    token_file = home / ".cache" / "huggingface" / "token"
    token_file.parent.mkdir(parents=True)
    token_file.write_text(stored)
    (sandbox.root / "tmp").mkdir()
    held = {
        "HF_TOKEN": sandbox.hub.token("bot", role="read"),
        "HF_WRITE_TOKEN": sandbox.hub.token(),
        "HF_CREATE_TOKEN": sandbox.hub.add_token("bot"),
        "GITHUB_TOKEN": f"ghs_{secrets.token_hex(18)}",
        "GH_TOKEN": f"ghp_{secrets.token_hex(18)}",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": f"any/{secrets.token_hex(16)}+x",
        "SOME_SECRET": f'0/{secrets.token_hex(9)} "x"',
    } | tokens
    lines = signing.credential.key.splitlines()[1:-1]
    values = {**held, "proxy": password, STORED: stored}
    values |= {f"signing key, line {number}": line for number, line in enumerate(lines) if len(line) > 40}
    planted = held | {
        "AWQ_BOT_SIGNING_KEY": signing.credential.key,
        "HTTPS_PROXY": f"http://me:{password}@127.0.0.1:9",
        "HOME": str(home),
        "TMPDIR": str(sandbox.root / "tmp"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return Place(sandbox, signing, Canaries(values), planted)
