"""The status page in a browser: `make check-page`. Sites of 0, 3 and 300 models, at two widths in both schemes.

Without a Chromium it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bot.page.site import MODELS, page_of, site_files
from tests.support.status import many

NODE = Path(__file__).parent / "node"
COUNTS = (0, 3, 300)
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Seen:
    """violations: as axe finds them; faults: of layout, script and requests. Each with its place."""

    pages: int
    violations: tuple[str, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"page: pages={self.pages} violations={len(self.violations)} widths=2 schemes=2"


def chromium() -> str | None:
    """The one that CHROMIUM names, or the first on the PATH."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)


def look(browser: str, folder: Path, shots: Path | None = None) -> Seen:
    """folder: an empty one for the sites. shots: one for pictures of all pages."""
    pages = [page for count in COUNTS for page in _site(count, folder)]
    asked = {
        "chromium": browser,
        "root": str(folder.resolve()),
        "pages": pages,
        "large": f"{COUNTS[-1]}/index.html",
        "shots": str(shots.resolve()) if shots else "",
    }
    node = shutil.which("node", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert node is not None
    done = subprocess.run(
        [node, str(NODE / "check.mjs"), json.dumps(asked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return Seen(found["pages"], tuple(found["violations"]), tuple(found["faults"]))


def _site(count: int, folder: Path) -> Iterator[str]:
    """The pages to look at: the index, and that of the model with the most releases."""
    made, site = many(count), folder / str(count)
    for path, content in site_files(made).items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    yield f"{count}/index.html"
    if (site / MODELS).exists():
        yield f"{count}/{page_of(max(made.models, key=lambda model: len(model.releases)))}"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shots", type=Path, help="a folder for pictures of all pages")
    shots: Path | None = options.parse_args().shots
    browser = chromium()
    if browser is None:
        print("page: no Chromium here, nothing was looked at. Name one with CHROMIUM=/path/to/chromium")
        return 0
    if shots is not None:
        shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        seen = look(browser, Path(folder), shots)
    for line in (*seen.violations, *seen.faults):
        print(line)
    print(seen)
    return 1 if seen.violations or seen.faults else 0


if __name__ == "__main__":
    sys.exit(main())
