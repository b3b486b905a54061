import argparse
import logging
import subprocess
import sys

import pytest

from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    correlation,
    count,
    fraction,
    index_ranges,
    positive_int,
    settings_line,
)
from pipeline_common.provenance import library_versions


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("0", [0]),
        ("0-5", [0, 1, 2, 3, 4, 5]),
        ("0,3,7", [0, 3, 7]),
        ("0-2,8,10-12", [0, 1, 2, 8, 10, 11, 12]),
        ("7,3,3,2-4", [2, 3, 4, 7]),
        (" 1 , 2 - 3 ", [1, 2, 3]),
        ("4-4", [4]),
    ],
)
def test_index_ranges(text, indices):
    assert index_ranges(text) == indices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' in '' is neither a number nor a range like 0-5"),
        ("1,,2", "'' in '1,,2' is neither"),
        ("1,", "'' in '1,' is neither"),
        ("a", "'a' in 'a' is neither"),
        ("-1", "'-1' in '-1' is neither"),
        ("1-", "'1-' in '1-' is neither"),
        ("0..5", "'0..5' in '0..5' is neither"),
        ("1-2-3", "'1-2-3' in '1-2-3' is neither"),
        ("1.5", "'1.5' in '1.5' is neither"),
        ("5-2", "range '5-2' runs backwards; write 2-5"),
    ],
)
def test_index_ranges_say_what_is_wrong(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{message}"):
        index_ranges(text)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive_int, "1", 1),
        (count, "0", 0),
        (fraction, "0", 0.0),
        (fraction, "1", 1.0),
        (correlation, "-1", -1.0),
        (correlation, ".4", 0.4),
    ],
)
def test_numbers_within_their_range(kind, text, value):
    result = kind(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive_int, "0", "0 is not at least 1"),
        (positive_int, "2.5", "'2.5' is not an integer"),
        (count, "-1", "-1 is not at least 0"),
        (count, "ten", "'ten' is not an integer"),
        (fraction, "1.01", "1.01 is not between 0 and 1"),
        (fraction, "nan", "nan is not between 0 and 1"),
        (fraction, "half", "'half' is not a number"),
        (correlation, "-1.1", "-1.1 is not between -1 and 1"),
        (correlation, "inf", "inf is not between -1 and 1"),
    ],
)
def test_numbers_outside_their_range(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{message}$"):
        kind(text)


def test_a_bad_value_is_a_usage_error_that_names_the_flag(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=index_ranges)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--layers", "5-2"])
    assert ended.value.code == 2
    assert "argument --layers: range '5-2' runs backwards; write 2-5" in capsys.readouterr().err


def test_help_shows_defaults_that_say_something_and_keeps_line_breaks():
    parser = argparse.ArgumentParser(description="One.\n\n  two --three\n", formatter_class=HelpFormatter)
    parser.add_argument("--top-n", type=int, default=10, help="how many")
    parser.add_argument("--resume", action="store_true", help="go on")
    parser.add_argument("--root", help="a folder")
    parser.add_argument("--zero", type=int, default=0, help="from nothing")
    text = parser.format_help()
    assert "One.\n\n  two --three\n" in text
    assert "how many (default: 10)" in text
    assert "from nothing (default: 0)" in text
    assert "go on\n" in text
    assert "a folder\n" in text


def test_the_settings_line_leaves_out_what_is_hidden():
    arguments = argparse.Namespace(top_n=10, key="secret")
    assert settings_line(arguments) == "settings: top_n=10, key=secret"
    assert settings_line(arguments, frozenset({"key"})) == "settings: top_n=10"


def test_logging_shows_our_messages_and_only_the_warnings_of_others():
    code = """
import logging
from pipeline_common.command_line import configure_logging
configure_logging("s9_stage")
for name in ("s9_stage.module", "__main__", "library"):
    logging.getLogger(name).debug("%s detail", name)
    logging.getLogger(name).info("%s note", name)
    logging.getLogger(name).warning("%s warning", name)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    assert run.stderr.splitlines() == [
        "s9_stage.module note",
        "s9_stage.module warning",
        "__main__ note",
        "__main__ warning",
        "library warning",
    ]
    assert logging.getLogger("s9_stage").level == logging.NOTSET  # this process was left alone


def test_the_stopwatch_counts_up():
    watch = Stopwatch()
    first = watch.seconds
    assert 0 <= first <= watch.seconds < 60


def test_library_versions_are_sorted_and_honest():
    versions = library_versions(["numpy", "no-such-library", "numpy"])
    assert list(versions) == ["no-such-library", "numpy", "python", "sae-concept-features"]
    assert versions["no-such-library"] == "not installed"
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["numpy"] == __import__("numpy").__version__
    assert versions["sae-concept-features"] != "not installed"
