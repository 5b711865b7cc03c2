"""What the jobs of one run hand to each other: folders, with the rules of upload- and download-artifact."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tests.workflows.reading import WorkflowError


@dataclass(frozen=True, kw_only=True)
class Artifact:
    id: str
    name: str
    folder: Path


class Artifacts:
    """Names are unique in a run, and may be taken over by any of its jobs; ids never change hands."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_id: dict[str, Artifact] = {}
        self._count = 0

    def names(self) -> list[str]:
        return sorted(artifact.name for artifact in self._by_id.values())

    def named(self, name: str) -> Artifact:
        return next(artifact for artifact in self._by_id.values() if artifact.name == name)

    def upload(self, name: str, source: Path, *, overwrite: bool) -> Artifact | None:
        """A folder's content, without its hidden files. None: there was nothing."""
        inside = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
        files = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
        if not files:
            return None
        taken = [artifact for artifact in self._by_id.values() if artifact.name == name]
        if taken and not overwrite:
            raise WorkflowError(f"artifact {name}: there is one of that name already")
        if taken:
            self.delete(name)
        self._count += 1
        made = Artifact(id=str(self._count), name=name, folder=self._root / str(self._count))
        for path in files:
            (made.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, made.folder / path)
        self._by_id[made.id] = made
        return made

    def delete(self, name: str) -> None:
        del self._by_id[self.named(name).id]

    def has(self, artifact_id: str) -> bool:
        return artifact_id in self._by_id

    def download(self, artifact_id: str, destination: Path) -> None:
        """Its files right into the folder."""
        shutil.copytree(self._by_id[artifact_id].folder, destination, dirs_exist_ok=True)

    def download_pattern(self, pattern: str, destination: Path) -> None:
        """Each into a folder of its own name, one alone right into the folder; none is no error."""
        braces = re.fullmatch(r"\{(.*)\}", pattern)
        globs = braces[1].split(",") if braces else [pattern]
        found = [one for one in self._by_id.values() if any(fnmatchcase(one.name, glob) for glob in globs)]
        for artifact in found:
            folder = destination / artifact.name if len(found) > 1 else destination
            shutil.copytree(artifact.folder, folder, dirs_exist_ok=True)
