"""The embedded Hub: a loopback server that speaks the Hub's HTTP API over a folder on disk."""

from bot.hub.local.context import Limits
from bot.hub.local.errors import HubError
from bot.hub.local.faults import Fault, Faults
from bot.hub.local.records import Commit, FileEntry, RepoSettings
from bot.hub.local.repo import Repo
from bot.hub.local.requestlog import RequestRecord
from bot.hub.local.server import LocalHub, serve

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
