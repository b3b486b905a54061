"""A clock that jumps, and files dated anywhere, change no decision and no result."""

import ast
import os
import time

import pytest

from tests.faults.stages import contents, quietly, start_over
from tests.source_rules import modules_of_the_project

CLOCKS = {"st_mtime", "st_ctime", "st_atime", "st_mtime_ns", "getmtime", "getctime", "getatime"}
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
ALLOWED = {
    "s0_dataset_generation.llm_connection": "time.time",  # a server's Retry-After may be a date
    "s5_classifier_training.framework.checkpoint": "datetime.now",  # put down in version.json
    "s5_classifier_training.framework.new_experiment": "datetime.now",  # heads the note
}


def clocks_in(source: str) -> set[str]:
    """Dates of files and wall clocks that a module asks for."""
    names = [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {name for name in names if name in WALL_CLOCKS or name.rsplit(".", 1)[-1] in CLOCKS}


def test_no_module_asks_for_the_date():
    found = {module: clocks_in(source) for module, source in modules_of_the_project().items()}
    assert {module: names for module, names in found.items() if names} == {
        module: {name} for module, name in ALLOWED.items()
    }


def test_a_module_that_asks_would_be_seen():
    source = "import time\nage = time.time() - path.stat().st_mtime\n"
    assert clocks_in(source) == {"time.time", "path.stat().st_mtime"}


@pytest.mark.parametrize(
    "seconds",
    [315532800, pytest.param(4102444800, marks=pytest.mark.slow)],
    ids=["1980", "2100"],
)
def test_another_clock_and_other_dates_give_the_same_result(
    stage, seconds, world, undisturbed, tmp_path, monkeypatch
):
    whole, _ = undisturbed.of(stage)
    before = {path: path.stat() for path in world.folder.rglob("*")}
    for path in before:
        os.utime(path, (seconds, seconds))
    try:
        command = start_over(stage, world, tmp_path / "out")
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: float(seconds))
            assert quietly(stage, command) == (0, "")
        assert contents(stage, tmp_path / "out") == whole
    finally:
        for path, status in before.items():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("seconds", [0, 4102444800], ids=["1970", "2100"])
def test_a_complete_store_stays_complete_whatever_its_dates(seconds, world, tmp_path):
    from tests.faults.stages import STAGES

    stage = next(stage for stage in STAGES if stage.name == "s1")
    command = start_over(stage, world, tmp_path / "out")
    assert quietly(stage, command) == (0, "")
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (seconds, seconds))
    dates = {path: path.stat().st_mtime for path in (tmp_path / "out" / "store").rglob("*.npz")}
    assert quietly(stage, [*command, "--verify"]) == (0, "")
    assert {path: path.stat().st_mtime for path in dates} == dates  # nothing was written again
