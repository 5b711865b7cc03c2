"""The embedded Hub: a loopback server that speaks the Hub's HTTP API over a folder on disk."""

from bot.localhub.context import Limits
from bot.localhub.middleware import Fault, Faults, RequestRecord
from bot.localhub.protocol import HubError
from bot.localhub.records import Commit, FileEntry, RepoSettings
from bot.localhub.repo import Repo
from bot.localhub.server import LocalHub, serve

__all__ = [
    "Commit",
    "Fault",
    "Faults",
    "FileEntry",
    "HubError",
    "Limits",
    "LocalHub",
    "Repo",
    "RepoSettings",
    "RequestRecord",
    "serve",
]
