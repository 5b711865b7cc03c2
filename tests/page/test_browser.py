"""The status page in Chromium, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page.browser import NODE, chromium, look


@pytest.mark.slow
def test_axe_finds_nothing_and_the_table_filters_and_sorts(tmp_path: Path) -> None:
    browser = chromium()
    if browser is None:
        pytest.skip("no Chromium: install one, or name it with CHROMIUM")
    if not (NODE / "node_modules").exists():
        pytest.skip("no playwright-core and axe-core: `make check-page` installs them")
    seen = look(browser, tmp_path)
    assert (seen.violations, seen.faults) == ((), ())
    assert str(seen) == "page: pages=5 violations=0 widths=2 schemes=2"
