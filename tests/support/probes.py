"""What hostile code in a child process would try. Runs by itself, with the standard library and bot.jobs.

python probes.py FOLDER     as the bot: makes the files and the listeners, and runs the probes in a child process
                            twice, unconfined and confined. Prints what each reached.
python probes.py --child FACTS
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECRET = "planted-secret"
LOOKS_LIKE_A_TOKEN = "hf_" + "planted" * 5

# By name, what keeps it from being done: a name of isolation.in_force().
PROBES = {
    "connects on this machine": "network",
    "connects beyond loopback": "network",
    "sends a datagram": "network",
    "connects to a Unix socket": "network",
    "reads the stored token": "files",
    "reads an ssh key": "files",
    "reads another job": "files",
    "writes into the home": "files",
    "writes into the bot": "files",
    "reads the parent's environment": "processes",
    "reads the parent's memory": "processes",
    "has rights to lose": "privileges",
    "outlives the run": "left over",
    "changes the source": "source",
    "sees a secret variable": "environment",
}


# --- as the child -------------------------------------------------------------------------------------------


def reached(facts: dict[str, Any]) -> list[str]:
    bot = facts["bot"]
    tries: dict[str, Callable[[], object]] = {
        "connects on this machine": lambda: socket.create_connection(("127.0.0.1", facts["port"]), 2),
        "connects beyond loopback": lambda: socket.create_connection((facts["address"], facts["port"]), 2),
        "sends a datagram": lambda: _datagram(facts["port"]),
        "connects to a Unix socket": lambda: socket.socket(socket.AF_UNIX).connect(facts["unix"]),
        "reads the stored token": lambda: Path(facts["token"]).read_text(),
        "reads an ssh key": lambda: Path(facts["key"]).read_text(),
        "reads another job": lambda: Path(facts["other_job"]).read_text(),
        "writes into the home": lambda: _write(Path(facts["home"]) / "planted"),
        "writes into the bot": lambda: _write(Path(facts["package"]) / ".planted"),
        "reads the parent's environment": _secret_of_any_process,
        "reads the parent's memory": lambda: Path(f"/proc/{bot}/mem").open("rb").close(),
        "has rights to lose": _has_rights,
        "outlives the run": lambda: _detach(Path(facts["alive"])),
        "changes the source": lambda: _write(Path(facts["source"]) / "planted"),
        "sees a secret variable": lambda: _true(
            SECRET in str(os.environ) or LOOKS_LIKE_A_TOKEN in str(os.environ)
        ),
    }
    return [name for name, attempt in tries.items() if _works(attempt)]


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _true(found: bool) -> None:
    if not found:
        raise OSError("not found")


def _datagram(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", port))


def _write(path: Path) -> None:
    path.write_text("planted")
    path.unlink()


def _secret_of_any_process() -> None:
    """Of any but this one, which has it where nothing is confined."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and SECRET.encode() in (folder / "environ").read_bytes():
                return
        except OSError:
            continue
    raise OSError("not found")


def _has_rights() -> None:
    status = Path("/proc/self/status").read_text()
    effective, no_new = re.findall(r"^(?:CapEff|NoNewPrivs):\s*(\w+)$", status, re.MULTILINE)
    # Root keeps CAP_DAC_OVERRIDE.
    _true(no_new == "0" or int(effective, 16) & ~2 != 0)


def _detach(alive: Path) -> None:
    """A daemon, as in every book: it writes for as long as it lives, for a minute at most."""
    if os.fork():
        time.sleep(0.3)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for descriptor in range(3):
        os.close(descriptor)
    for _ in range(600):
        if alive.with_name("end").exists():
            break
        with alive.open("a") as file:
            file.write(".")
        time.sleep(0.05)
    os._exit(0)


# --- as the bot ---------------------------------------------------------------------------------------------


def plant(folder: Path) -> dict[str, str]:
    """What there is to reach, by the names that the probes know."""
    import bot  # noqa: PLC0415 - the child does without

    home = folder / "home"
    planted = {
        "token": home / ".cache" / "huggingface" / "token",
        "key": home / ".ssh" / "id_ed25519",
        "other_job": folder / "work" / "other" / "job.json",
    }
    for path in planted.values():
        path.parent.mkdir(parents=True)
        path.write_text(SECRET)
    return {name: str(path) for name, path in planted.items()} | {
        "home": str(home),
        "package": str(Path(bot.__file__).parent),
        "address": _own_address(),
        "unix": str(folder / "agent"),
    }


def main(folder: Path) -> None:
    from bot.jobs.environment import child_environment  # noqa: PLC0415 - as above
    from bot.jobs.isolation import Confinement, in_force  # noqa: PLC0415

    job = folder / "work" / "job"
    for path in (job / "source", job / "hf_home" / "tmp"):
        path.mkdir(parents=True)
    with socket.create_server(("", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "agent"))
        unix.listen()
        facts = plant(folder) | {
            "bot": os.getpid(),
            "source": str(job / "source"),
            "alive": str(job / "alive"),
            "port": tcp.getsockname()[1],
        }
        (job / "facts.json").write_text(json.dumps(facts))
        (job / "probes.py").write_text(Path(__file__).read_text())
        command = [sys.executable, str(job / "probes.py"), "--child", str(job / "facts.json")]
        confinement = Confinement(
            write=(job,), sealed=(job / "source",), memory_bytes=1 << 30, cpu_s=60, file_bytes=1 << 20
        )
        answer = {
            "in force": in_force() | {"environment": ("allow-list",)},
            "unconfined": _outcome(command, dict(os.environ), job / "alive"),
            "confined": _outcome(confinement.around(command), child_environment(job / "hf_home"), job / "alive"),
        }
    print(json.dumps(answer))


def _outcome(command: list[str], environment: dict[str, str], alive: Path) -> list[str]:
    for path in (alive, alive.with_name("end")):
        path.unlink(missing_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    if "outlives the run" in found:
        before = alive.stat().st_size
        assert before > 0
        time.sleep(0.5)
        if alive.stat().st_size == before:
            found.remove("outlives the run")
        alive.with_name("end").touch()
        time.sleep(0.2)
    return found


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:  # this machine has no network
            return "127.0.0.2"
        return str(sender.getsockname()[0])


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        print(json.dumps(reached(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main(Path(sys.argv[1]))
