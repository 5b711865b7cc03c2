"""Everything that talks to a Hub. The only importer of huggingface_hub."""

import os
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


# huggingface_hub reads these once, at import. The Xet client skips LFS and fails on a server without it.
if is_loopback(os.environ.get("HF_ENDPOINT", "")):
    os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Progress is ours to show, once, for all files together.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
