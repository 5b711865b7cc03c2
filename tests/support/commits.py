"""Commits by the stock client, and the status codes of refused requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError


def push(api: HfApi, repo_id: str, files: Mapping[str, bytes | Path], **options: Any) -> CommitInfo:
    """One commit that adds these files. options: of `HfApi.create_commit`."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, **{"commit_message": "push"} | options)


def refused(call: Callable[[], object]) -> int:
    """The status code of the error that the client raises."""
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value.response.status_code
