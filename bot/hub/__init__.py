"""The client side of the Hub. The only importer of huggingface_hub."""

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from bot.hub import environment


def is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


# huggingface_hub reads these once, at import, and ends with a traceback for some:
# https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
UNUSABLE = environment.take_out(os.environ)
# The local Hub has no Xet storage, and the Xet client does not fall back to LFS.
if is_loopback(os.environ.get("HF_ENDPOINT", "")):
    os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# awq-bot shows one progress bar for all files together.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
