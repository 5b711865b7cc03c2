"""The local Hub: a loopback server with the Hub's HTTP API over a folder on disk.

https://huggingface.co/docs/hub/api
"""

from bot.localhub.context import Limits
from bot.localhub.middleware import Fault, Faults, RequestRecord
from bot.localhub.protocol import Commit, FileEntry, HubError, RepoSettings
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
