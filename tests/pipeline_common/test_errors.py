import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline_common.errors import UserError, exit_codes, on_interrupt, when_main_ends


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_code_of_main_is_kept(code):
    @exit_codes
    def main(argv=None):
        return code

    assert main([]) == code


def test_main_gets_the_arguments_and_keeps_its_name():
    @exit_codes
    def main(argv=None):
        """Say how many."""
        return len(argv) if argv is not None else 100

    assert main(["a", "b"]) == 2
    assert main() == 100
    assert (main.__name__, main.__doc__) == ("main", "Say how many.")


def test_a_user_error_is_one_line_on_stderr_and_exit_1(capsys):
    @exit_codes
    def main(argv=None):
        print("so far")
        raise UserError("a.csv: line 3:\n   expected 0-3,\tfound 7")

    assert main([]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: a.csv: line 3: expected 0-3, found 7\n"
    assert captured.out == "so far\n"


def test_ctrl_c_is_exit_130_and_says_how_to_go_on(capsys):
    @exit_codes
    def main(argv=None):
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted: no file is half-written; run the same command again\n"


def test_sigterm_is_exit_143_and_what_is_open_is_closed(capsys):
    before, closed = signal.getsignal(signal.SIGTERM), []

    @exit_codes
    def main(argv=None):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            closed.append(True)
        return 0

    assert main([]) == 143
    assert closed == [True]
    assert capsys.readouterr().err == "terminated: no file is half-written; run the same command again\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_script_may_say_how_to_go_on(number, word, capsys, monkeypatch):
    @exit_codes
    @on_interrupt("add --resume")
    def main(argv=None):
        """Say how."""
        signal.raise_signal(number)
        return 0

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main([]) == 128 + number
    signal.signal(signal.SIGINT, previous)
    assert capsys.readouterr().err == f"{word}: add --resume\n"
    assert (main.__name__, main.__doc__) == ("main", "Say how.")


def test_somebody_elses_handler_of_sigterm_stays():
    caught = []

    @exit_codes
    def main(argv=None):
        signal.raise_signal(signal.SIGTERM)
        return 0

    previous = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        assert main([]) == 0
        assert caught == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_dies_of_sigterm():
    reading, writing = os.pipe()

    @exit_codes
    def main(argv=None):
        child = os.fork()
        if child == 0:
            os.write(writing, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(reading, 1)  # a signal that comes within the fork itself would be lost
        os.kill(child, signal.SIGTERM)
        return os.WTERMSIG(os.waitpid(child, 0)[1])

    assert main([]) == signal.SIGTERM


@pytest.mark.parametrize("ending", [None, UserError("no"), KeyboardInterrupt(), ValueError("ours")])
def test_what_is_to_be_done_at_the_end_is_done_once(ending):
    done = []

    @exit_codes
    def main(argv=None):
        when_main_ends(lambda: done.append(1))
        if ending is not None:
            raise ending
        return 0

    for _ in range(2):
        with contextlib.suppress(ValueError):
            main([])
    assert done == [1, 1]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EROFS, "choose an output that can be written"),
        (errno.EACCES, "change its permissions"),
        (errno.EFBIG, "files may not grow so large there"),
    ],
)
def test_a_place_that_refuses_a_write_is_one_line(number, remedy, capsys):
    @exit_codes
    def main(argv=None):
        raise OSError(number, os.strerror(number), "/data/out.csv")

    assert main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: /data/out.csv: cannot be written ({os.strerror(number)}); ")
    assert remedy in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("ours"), SystemExit(2), OSError("disk")])
def test_defects_and_usage_errors_pass_through(error):
    @exit_codes
    def main(argv=None):
        raise error

    with pytest.raises(type(error)) as raised:
        main([])
    assert raised.value is error


PRINTER = """
from pipeline_common.errors import exit_codes

@exit_codes
def main(argv=None):
    for line in range(1_000_000):
        print(line)
    return 0

raise SystemExit(main())
"""


def test_a_reader_that_goes_away_ends_the_script_quietly(tmp_path):
    (tmp_path / "printer.py").write_text(PRINTER)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "printer.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout.readline() == "0\n"
        run.stdout.close()  # as head -1 does
        assert run.stderr.read() == ""
    # What a program that dies of SIGPIPE gives: the lines that were not printed were not done either.
    assert run.returncode == 141


def test_in_a_shell_pipe_too(tmp_path):
    (tmp_path / "printer.py").write_text(PRINTER)
    command = f"'{sys.executable}' printer.py | head -1"
    run = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "0\n", "")


def test_output_that_fails_only_when_flushed_is_quiet_too(tmp_path):
    (tmp_path / "printer.py").write_text(PRINTER.replace("1_000_000", "3"))
    command = f"(sleep 0.5; '{sys.executable}' printer.py; echo $? >&2) | true"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=buffered)
    assert run.stderr == "0\n"
