"""What the Hub's API says about a repo, computed from the files of one commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bot.localhub import card, git
from bot.localhub.protocol import Commit, FileEntry, RepoSettings, bad_request
from bot.localhub.repo import HEADS, Repo

_MAX_HEADER_BYTES = 100_000_000
_SHORT = "createdAt downloads library_name likes pipeline_tag private tags"
_FULL = f"{_SHORT} author disabled gated lastModified sha siblings"
_DATASET = f"{_FULL} cardData usedStorage"
_MODEL = f"{_DATASET} config safetensors spaces transformersInfo"
# Keys that the Hub knows; always empty here.
_EMPTY = """
childrenModelCount citation description evalResults gguf inference inferenceProviderMapping mainSize mask_token
model-index paperswithcode_id resourceGroup widgetData
"""
_TOKENIZER = "bos_token chat_template eos_token pad_token unk_token use_default_system_prompt"


class RepoFacts:
    """Computes each fact on demand: a list of names does not read the headers of weights."""

    def __init__(self, repo: Repo, settings: RepoSettings, commit: Commit, *, blobs: bool = False) -> None:
        self._repo = repo
        self._settings = settings
        self._commit = commit
        self._blobs = blobs
        self._card = self._card_data() or {}
        self._config = self._json("config.json")
        self._facts: dict[str, Callable[[], Any]] = {
            "author": lambda: repo.namespace,
            "baseModels": self._base_models,
            "cardData": self._card_data,
            "config": self._config_stub,
            "createdAt": lambda: settings.created_at,
            "disabled": lambda: settings.disabled,
            "downloads": lambda: settings.downloads,
            "downloadsAllTime": lambda: settings.downloads,
            "gated": lambda: settings.gated,
            "lastModified": lambda: repo.commit_at(HEADS + "main").date,
            "library_name": self._library_name,
            "likes": lambda: 0,
            "pipeline_tag": self.pipeline_tag,
            "private": lambda: settings.private,
            "safetensors": self._safetensors,
            "sha": lambda: commit.sha,
            "siblings": self._siblings,
            "spaces": list,
            "tags": self.tags,
            "transformersInfo": self._transformers_info,
            "trendingScore": lambda: 0,
            "usedStorage": lambda: sum(e.size_bytes for e in commit.files.values() if e.is_lfs),
            **dict.fromkeys(_EMPTY.split(), lambda: None),
        }

    def whole(self) -> dict[str, Any]:
        return self._answer((_MODEL if self._repo.repo_type == "model" else _DATASET).split())

    def expanded(self, keys: Iterable[str]) -> dict[str, Any]:
        """These keys and the id; raises 400 for a key that the Hub does not know."""
        unknown = sorted(set(keys) - self._facts.keys())
        if unknown:
            raise bad_request(f"Invalid expand: {', '.join(unknown)}")
        return self._answer(keys)

    def listed(self, *, full: bool, card_data: bool, config: bool) -> dict[str, Any]:
        asked = [name for name, wanted in (("cardData", card_data or full), ("config", config)) if wanted]
        return self._answer({*(_FULL if full else _SHORT).split(), *asked})

    def tags(self) -> list[str]:
        found: list[str] = []
        if library := self._library_name():
            found.append(library)
        if any(path.endswith(".safetensors") for path in self._commit.files):
            found.append("safetensors")
        if isinstance(self._config.get("model_type"), str):
            found.append(self._config["model_type"])
        if task := self.pipeline_tag():
            found.append(task)
        found += card.strings(self._card.get("tags", []))
        found += card.strings(self._card.get("language", []))
        found += [f"dataset:{name}" for name in card.strings(self._card.get("datasets", []))]
        found += [f"base_model:{name}" for name in self._base_ids()]
        found += [f"base_model:{self._relation()}:{name}" for name in self._base_ids()]
        found += [f"license:{name}" for name in card.strings(self._card.get("license", []))]
        if isinstance(quantization := self._config.get("quantization_config"), dict):
            found += [f"{quantization['bits']}-bit"] if "bits" in quantization else []
            found += card.strings(quantization.get("quant_method", []))
        return [*dict.fromkeys(found), "region:us"]

    def _answer(self, keys: Iterable[str]) -> dict[str, Any]:
        repo_id = self._repo.repo_id
        # The Hub's database id. Clients need the key, not the value.
        record = git.object_id("repo", f"{self._repo.repo_type}s/{repo_id}".encode())[:24]
        answer = {"_id": record, "id": repo_id, **{key: self._facts[key]() for key in sorted(keys)}}
        if self._repo.repo_type == "model":
            answer["modelId"] = repo_id
        return {key: value for key, value in answer.items() if value is not None or key == "cardData"}

    def _json(self, path: str) -> dict[str, Any]:
        entry = self._commit.files.get(path)
        if entry is None or entry.size_bytes > _MAX_HEADER_BYTES:
            return {}
        try:
            content = json.loads(self._repo.read(entry))
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _card_data(self) -> dict[str, Any] | None:
        entry = self._commit.files.get("README.md")
        if entry is None:
            return None
        try:
            return card.front_matter(self._repo.read(entry).decode("utf-8", "replace"))
        except card.CardError:
            return None

    def _config_stub(self) -> dict[str, Any] | None:
        """A few keys, as on the real Hub: shapes are only in `config.json` itself."""
        stub: dict[str, Any] = {
            key: self._config[key] for key in ("architectures", "model_type") if key in self._config
        }
        tokenizer = self._json("tokenizer_config.json")
        if bits := {key: tokenizer[key] for key in _TOKENIZER.split() if key in tokenizer}:
            stub["tokenizer_config"] = bits
        return stub or None

    def _library_name(self) -> str | None:
        name = self._card.get("library_name")
        if isinstance(name, str):
            return name
        return "transformers" if "model_type" in self._config else None

    def pipeline_tag(self) -> str | None:
        tag = self._card.get("pipeline_tag")
        if isinstance(tag, str):
            return tag
        architectures = card.strings(self._config.get("architectures", []))
        return "text-generation" if any(name.endswith("ForCausalLM") for name in architectures) else None

    def _transformers_info(self) -> dict[str, Any] | None:
        if self._library_name() != "transformers":
            return None
        return {
            "auto_model": "AutoModelForCausalLM",
            "pipeline_tag": self.pipeline_tag(),
            "processor": "AutoTokenizer",
        }

    def _base_ids(self) -> list[str]:
        return card.strings(self._card.get("base_model", []))

    def _relation(self) -> str:
        relation = self._card.get("base_model_relation")
        if isinstance(relation, str):
            return relation
        if "adapter_config.json" in self._commit.files:
            return "adapter"
        if len(self._base_ids()) > 1:
            return "merge"
        return "quantized" if "quantization_config" in self._config else "finetune"

    def _base_models(self) -> dict[str, Any] | None:
        ids = self._base_ids()
        return {"relation": self._relation(), "models": [{"id": name} for name in ids]} if ids else None

    def _siblings(self) -> list[dict[str, Any]]:
        if not self._blobs:
            return [{"rfilename": path} for path in self._commit.files]
        return [_sibling(path, entry) for path, entry in self._commit.files.items()]

    def _safetensors(self) -> dict[str, Any] | None:
        """Numbers of stored values by dtype, over the files that a loader reads."""
        index = self._json("model.safetensors.index.json").get("weight_map")
        names = sorted({*card.strings(list(index.values()))}) if isinstance(index, dict) else ["model.safetensors"]
        parameters: dict[str, int] = {}
        for name in names:
            entry = self._commit.files.get(name)
            counts = None if entry is None else _count_parameters(self._repo.object_path(entry.sha256))
            if counts is None:
                return None
            for dtype, count in counts.items():
                parameters[dtype] = parameters.get(dtype, 0) + count
        return {"parameters": parameters, "total": sum(parameters.values())}


def _sibling(path: str, entry: FileEntry) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path, "size": entry.size_bytes, "blobId": entry.blob_id}
    if entry.is_lfs:
        pointer = git.lfs_pointer(entry.sha256, entry.size_bytes)
        sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size_bytes, "pointerSize": len(pointer)}
    return sibling


@lru_cache(maxsize=4096)
def _count_parameters(path: Path) -> Mapping[str, int] | None:
    """dtype → number of values, from the header; None for other files.

    https://huggingface.co/docs/safetensors/index#format
    """
    counts: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                return None
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for side in tensor["shape"]:
                    count *= side
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + count
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return counts


def tree_items(
    files: Mapping[str, FileEntry], *, folder: str = "", recursive: bool = False
) -> list[dict[str, Any]]:
    """The files and folders below `folder` (its direct children, or all of them), sorted by path."""
    prefix = f"{folder}/" if folder else ""
    folder_ids = git.tree_ids({path: entry.blob_id for path, entry in files.items()})
    items = [_file_item(path, entry) for path, entry in files.items()]
    items += [
        {"type": "directory", "oid": tree_id, "size": 0, "path": path}
        for path, tree_id in folder_ids.items()
        if path
    ]
    below = [item for item in items if item["path"].startswith(prefix)]
    if not recursive:
        below = [item for item in below if "/" not in item["path"][len(prefix) :]]
    return sorted(below, key=lambda item: str(item["path"]))


def last_changes(history: Iterable[Commit], paths: Sequence[str]) -> dict[str, Commit]:
    """For each path, file or folder, the latest commit that changed it. history: newest first."""
    changed: dict[str, Commit] = {}
    newer: Commit | None = None
    current: dict[str, str] = {}
    for commit in history:
        ids = _ids(commit)
        if newer is not None:
            for path in paths:
                if path not in changed and ids.get(path) != current.get(path):
                    changed[path] = newer
        newer, current = commit, ids
        if len(changed) == len(set(paths)):
            break
    if newer is not None:
        for path in paths:
            changed.setdefault(path, newer)
    return changed


def _ids(commit: Commit) -> dict[str, str]:
    blob_ids = {path: entry.blob_id for path, entry in commit.files.items()}
    return {**blob_ids, **git.tree_ids(blob_ids)}


def _file_item(path: str, entry: FileEntry) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "oid": entry.blob_id, "size": entry.size_bytes, "path": path}
    if entry.is_lfs:
        pointer = git.lfs_pointer(entry.sha256, entry.size_bytes)
        item["lfs"] = {"oid": entry.sha256, "size": entry.size_bytes, "pointerSize": len(pointer)}
    return item
