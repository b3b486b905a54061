import json
import signal
import subprocess
import sys

import pytest

from pipeline_common.errors import UserError
from pipeline_common.files import (
    atomic_path,
    is_changed,
    read_csv,
    read_json,
    resumable_folder,
    scratch_folder,
    sealed,
    sha256_of_file,
    sha256_of_json,
    write_csv,
    write_json,
    write_text,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_gives_the_new_content_its_name(tmp_path):
    target = tmp_path / "made" / "plot.png"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".png"
        assert temporary != target
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names_in(target.parent) == ["plot.png"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_inside_leaves_the_old_file_and_nothing_else(error, tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def write_half():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["table.csv"]


def make_folder(path, fingerprint, overwrite=True):
    """Write the files that are not there yet; returns their names."""
    with resumable_folder(path, fingerprint * 16, overwrite, "plots", "index.txt") as folder:
        missing = [name for name in ("a.txt", "index.txt") if not (folder / name).exists()]
        for name in missing:
            write_text(folder / name, fingerprint)
    return missing


def stop_making_folder(path, fingerprint):
    def stopped():
        with resumable_folder(path, fingerprint * 16, True, "plots", "index.txt") as folder:
            write_text(folder / "a.txt", fingerprint)
            (folder / ".index.1.tmp.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()


def test_a_resumable_folder_goes_on_with_the_files_of_a_stopped_run(tmp_path):
    target = tmp_path / "made" / "plots"
    stop_making_folder(target, "a")
    assert not target.exists()
    assert make_folder(target, "a") == ["index.txt"]
    assert names_in(target) == ["a.txt", "index.txt"]
    assert names_in(target.parent) == ["plots"]


def test_a_resumable_folder_takes_nothing_from_another_fingerprint(tmp_path):
    target = tmp_path / "plots"
    for other in (".plots.2.aaaaaaaaaaaaaaaa.tmp", ".plots.notes"):
        (tmp_path / other).mkdir()
    make_folder(target, "0")
    stop_making_folder(target, "a")
    assert (target / "a.txt").read_text() == "0"
    assert make_folder(target, "b") == ["a.txt", "index.txt"]
    assert (target / "a.txt").read_text() == "b"
    # The leftover of "a" is gone, what belongs to another output or to nobody stays.
    assert names_in(tmp_path) == [".plots.2.aaaaaaaaaaaaaaaa.tmp", ".plots.notes", "plots"]


def test_a_resumable_folder_replaces_only_when_told_and_only_its_own(tmp_path):
    make_folder(tmp_path / "plots", "a")
    with pytest.raises(UserError, match="already exists"):
        make_folder(tmp_path / "plots", "b", overwrite=False)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    with pytest.raises(UserError, match="holds something else than plots"):
        make_folder(tmp_path / "thesis", "b")
    assert names_in(tmp_path) == ["plots", "thesis"]


def test_writing_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text() == "old"


def test_a_row_that_cannot_be_made_leaves_the_old_table(tmp_path):
    target = tmp_path / "table.csv"
    write_csv(target, ["a"], [[1]])

    def rows():
        yield [2]
        raise ValueError("the second row")

    with pytest.raises(ValueError, match="the second row"):
        write_csv(target, ["a"], rows())
    assert target.read_text() == "a\n1\n"
    assert names_in(tmp_path) == ["table.csv"]


HALF_WRITER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from pathlib import Path
from pipeline_common.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_kill_inside_leaves_the_old_file(kind, tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")
    command = [sys.executable, "-c", HALF_WRITER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert run.stdout.readline() == "writing\n"
        run.send_signal(kind)
    assert target.read_text() == "old"
    # Nobody can tidy up after a SIGKILL; the next writer is not disturbed by what it left.
    temporary = [name for name in names_in(tmp_path) if name != "table.csv"]
    assert len(temporary) == (kind == signal.SIGKILL)
    write_text(target, "new")
    assert target.read_text() == "new"


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "é\nß\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\nß\n".encode()


def test_json_round_trip(tmp_path):
    value = {"name": "über", "missing": None, "list": [1, 2.5, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "thing") == value
    assert "über" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_json_has_no_word_for(number, tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": [number]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert names_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.json: no such file; expected a store manifest"),
        (b"", "a.json: line 1: not valid JSON"),
        (b'{\n "a": 1,\n "b": ', "a.json: line 3: not valid JSON"),
        (b'{"a": "\xff"}', "a.json: cannot be read as a store manifest: .*utf-8"),
        (b'{"x": NaN}', "a.json: not valid JSON .NaN is no number of JSON.; expected a store manifest"),
        (b'{"x": [-Infinity]}', "-Infinity is no number of JSON"),
        (b'{"x": 1e999}', "1e999 is too large a number"),
        (b'{"x": ' + b"7" * 5000 + b"}", "a.json: not valid JSON .*4300 digits"),
        (b"[" * 100_000, "a.json: cannot be read as a store manifest: maximum recursion"),
    ],
)
def test_read_json_says_what_is_wrong(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", "store manifest")


def test_read_json_of_a_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read as a manifest"):
        read_json(tmp_path, "manifest")


def test_csv_round_trip_with_every_awkward_cell(tmp_path):
    rows = [["a, b", 'she said "no"', "two\nlines"], ["", " padded ", "日本語"], [None, 1, 2.5]]
    write_csv(tmp_path / "a.csv", ["one", "two", "three"], rows)
    header, read = read_csv(tmp_path / "a.csv", "table")
    assert header == ["one", "two", "three"]
    assert [cells for _, cells in read] == [*rows[:2], ["", "1", "2.5"]]
    assert [line for line, _ in read] == [3, 4, 5]  # the first row ends on line 3
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfa,b\n1,2\n", b"a,b\r\n1,2\r\n", b" a , b \n\n1,2\n\n", b"a,b\n1,2"]
)
def test_csv_of_other_programs_is_read(content, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    header, rows = read_csv(tmp_path / "a.csv", "table")
    assert header == ["a", "b"]
    assert [cells for _, cells in rows] == [["1", "2"]]


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", "thing") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected a labelled CSV"),
        (b"", "empty file; expected a labelled CSV with a header line"),
        (b"\n\n", "empty file"),
        (b"a,b\n1,caf\xe9\n", r"byte 9 is not UTF-8; save the labelled CSV as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "byte 0 is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 2: holds a NUL byte"),
        (b"a,b\n1,x\0y\n", "line 2: holds a NUL byte"),
        (b"a,b,a\n1,2,3\n", "column 'a' stands twice in the header"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: 3 cells where the header has 2; put texts with commas in double"),
        (b"a,b\n1\n", "line 2: 1 cells where the header has 2"),
        (b'a,b\n1,"no end\n2,3\n', "line 3: not a valid CSV row .*unexpected end of data"),
        (b'a,b\n1,"x"y\n', "line 2: not a valid CSV row"),
    ],
)
def test_read_csv_says_what_is_wrong_and_where(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_csv(tmp_path / "a.csv", "labelled CSV")
    assert str(error.value).startswith(str(tmp_path / "a.csv"))


def test_read_csv_of_a_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read as a table"):
        read_csv(tmp_path, "table")


def test_a_scratch_folder_goes_whatever_happens_in_it(tmp_path):
    with scratch_folder(tmp_path / "out") as folder:
        assert folder.parent == tmp_path
        (folder / "a.txt").write_text("a")
        folder.replace(tmp_path / "out")
    assert names_in(tmp_path) == ["out"]

    def fail():
        with scratch_folder(tmp_path / "out") as folder:
            (folder / "b.txt").write_text("b")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names_in(tmp_path) == ["out"]
    assert names_in(tmp_path / "out") == ["a.txt"]


def test_a_seal_shows_every_change():
    content = sealed({"a": [1, None, 2.5], "b": "ü"})
    assert not is_changed(content)
    assert not is_changed(json.loads(json.dumps(content)))
    assert sealed(content) == content
    assert is_changed({**content, "b": "u"})
    assert is_changed({**content, "sha256": None})
    assert not is_changed({"a": 1})  # what was never sealed cannot be known


def test_digests(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # SHA-256 of "abc", from FIPS 180-2.
    assert sha256_of_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})
