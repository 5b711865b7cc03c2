"""Collections on the Hub: after a release, its repo is added to those that the watchlist names.

https://huggingface.co/docs/hub/collections
"""

from __future__ import annotations

from functools import partial

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bot.errors import BotError
from bot.hub.session import Hub, call, status_of
from bot.records import Job, Publication


def add_to_collections(hub: Hub, job: Job, publication: Publication) -> tuple[str, ...]:
    """Creates each collection where there is none of this title, and keeps those that are there.

    Returns a note for each that the repo was not added to: a release that is complete does not fail for it.
    """
    titles = job.entry.collections
    if titles and publication.private:
        return ("not added to its collections: the repo is private",)
    if titles and hub.trusted_publishing:
        return ("not added to its collections: a Trusted Publisher cannot change them",)
    return tuple(note for title in titles if (note := _added(hub.writer, publication.repo_id, title)))


def _added(api: HfApi, repo_id: str, title: str) -> str:
    owner = repo_id.partition("/")[0]
    try:
        collection = call(partial(api.create_collection, title, namespace=owner, exists_ok=True))
        call(partial(api.add_collection_item, collection.slug, repo_id, "model", exists_ok=True))
    except HfHubHTTPError as error:
        return f"not added to the collection {title!r}: the Hub answers {status_of(error)}"
    except BotError as error:
        return f"not added to the collection {title!r}: {error.message}"
    return ""
