"""Every bad input of the tables: exit code 1 or 2, one line that names the culprit, nothing left behind."""

import importlib
import shlex

import pytest

from tests.bad_input import tables_arguments, tables_s0, tables_s1, tables_s2_s3, tables_s4, tables_s5
from tests.bad_input.world import copy_parts, snapshot

TABLES = (tables_s0, tables_s1, tables_s2_s3, tables_s4, tables_s5, tables_arguments)
KINDS = [kind for table in TABLES for kind in table.KINDS]
CASES = [
    pytest.param(kind, case, id=f"{kind.name}: {case.name}"[:90]) for kind in KINDS for case in kind.cases
]


def test_there_are_enough_kinds_and_cases_and_none_stands_twice():
    assert len(KINDS) >= 12
    assert all(3 <= len(kind.cases) <= 15 for kind in KINDS)
    assert sum(len(kind.cases) for kind in KINDS) >= 150
    names = [(kind.name, case.name) for kind in KINDS for case in kind.cases]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_bad_input_is_told_in_one_line_and_leaves_nothing(
    kind, case, world, tmp_path, monkeypatch, capsys, caplog
):
    copy_parts(world, tmp_path, kind.parts)
    if case.damage is not None:
        case.damage(tmp_path / kind.file)
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("run_pipeline.run_stage", None)  # it would run the stages in this very checkout
    main = importlib.import_module(kind.script).main
    try:
        code = main(shlex.split(case.arguments if case.arguments is not None else kind.arguments))
    except SystemExit as ended:
        code = ended.code
    errors = capsys.readouterr().err
    assert code == kind.exit_code, errors
    assert "error: " in errors.splitlines()[-1]
    assert errors.count("error: ") == 1, errors
    told = [line for line in caplog.messages if line.startswith("passed over: ")]
    message = "\n".join([*told, errors.splitlines()[-1]])
    for culprit in (kind.where, *case.culprits):
        assert culprit in message, message
    left = {path: value for path, value in snapshot(tmp_path).items() if path.split("/")[0] != kind.leaves}
    assert left == before
