"""Which browser the tests take, and that its absence is never silent."""

from pathlib import Path

import pytest

from tests.browser import NAMES, find_browser, give_up


def program(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CHROMIUM", raising=False)
    return tmp_path / "bin"


def test_the_variable_comes_before_known_names_and_these_before_playwrights_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = str(folder / "own")
    assert find_browser(own) is None
    own = program(folder, "own")
    assert find_browser(own) == own
    chrome = program(folder, NAMES[2])
    assert find_browser(own) == chrome
    chromium = program(folder, NAMES[0])
    assert find_browser(own) == chromium
    mine = program(folder, "mine")
    monkeypatch.setenv("CHROMIUM", mine)
    assert find_browser(own) == mine
    monkeypatch.setenv("CHROMIUM", "nowhere")
    assert find_browser(own) is None


def test_without_a_browser_the_tests_skip_or_fail_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        give_up("no browser")
    monkeypatch.setenv("REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="REQUIRE_BROWSER is set: no browser"):
        give_up("no browser")
