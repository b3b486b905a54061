"""A real browser for the tests: where it is found, how it is started, and when its absence is a failure."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REQUIRED = "REQUIRE_BROWSER"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def find_browser(own: str) -> str | None:
    """The browser's program: the variable CHROMIUM, then well-known names, then Playwright's own.

    Args:
        own: where Playwright would have put its own.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or (own if Path(own).is_file() else None)


def give_up(reason: str) -> None:
    """Skip, or fail where the environment says that the browser must be there."""
    if os.environ.get(REQUIRED, "") not in ("", "0"):
        pytest.fail(f"{REQUIRED} is set: {reason}")
    pytest.skip(reason)


def started_browser() -> Iterator[object]:
    """Start the browser for a session of tests, and close it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        give_up("playwright is not installed; pip install --group dev")
        return
    with sync_playwright() as playwright:
        program = find_browser(playwright.chromium.executable_path)
        if program is None:
            give_up("no browser: install chromium, or name its program in the variable CHROMIUM")
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()
