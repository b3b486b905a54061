import gzip
import hashlib
import json
import os
import re

import pytest

from s1_compute_all_features import gather_texts

HELD_OUT = [
    "She told the clerk that the watch was new, although she knew it had been mended twice.",
    "Nobody came to the reading. The author read all the same.",
]
JARGON = """
frobnicate
 /frob'ni-kayt/, vt.

    [poss. from nowhere] To manipulate or adjust a thing, to {tweak} it
    without any clear aim. Compare {twiddle}.

    {held_out} And more.
"""


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "trait.csv"
    path.write_text(
        f'sentence,concept_strength_label\n"{HELD_OUT[0]}",3\n"{HELD_OUT[1]}",0\n', encoding="utf-8"
    )
    return path


@pytest.fixture
def fake_apt(tmp_path, monkeypatch):
    """Programs named apt-get and dpkg-deb that know one package; the file they append to counts fetches."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    dictionary = tmp_path / "jargon.dz"
    dictionary.write_bytes(gzip.compress(JARGON.replace("{held_out}", HELD_OUT[0]).encode()))
    (programs / "apt-get").write_text(
        f'#!/bin/sh\nfor name in "$@"; do :; done\necho "$name" >> {calls}\n'
        'if [ "$name" != dict-jargon ]; then echo "E: Unable to locate package $name" >&2; exit 100; fi\n'
        'touch "${name}_1_all.deb"\n'
    )
    (programs / "dpkg-deb").write_text(
        '#!/bin/sh\nif [ "$1" = -f ]; then echo 4.4.7-3; exit; fi\n'
        f'mkdir -p "$3/usr/share/dictd" && cp {dictionary} "$3/usr/share/dictd/jargon.dict.dz"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return calls


def gather(folder, dataset, *more, sources=("jargon_file",)):
    return gather_texts.main(
        ["--output", str(folder), "--datasets", str(dataset), *more, "--sources", *sources]
    )


def test_a_text_and_its_record_are_written(tmp_path, dataset, fake_apt):
    assert gather(tmp_path / "texts", dataset) == 0
    text = (tmp_path / "texts" / "jargon_file.txt").read_text(encoding="utf-8")
    assert text == ("To manipulate or adjust a thing, to tweak it without any clear aim. Compare twiddle.\n")
    record = json.loads((tmp_path / "texts" / "sources.json").read_text(encoding="utf-8"))
    assert record["compared_with"] == {"trait.csv": hashlib.sha256(dataset.read_bytes()).hexdigest()}
    (source,) = record["sources"]
    assert source == {
        "name": "jargon_file",
        "title": "The Jargon File",
        "packages": {"dict-jargon": "4.4.7-3"},
        "licence": "public domain",
        "attribution": "The Jargon File 4.4.7, edited by Eric S. Raymond",
        "n_paragraphs_left_out": 1,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "n_paragraphs": 1,
        "n_words": 15,
        "n_characters": len(text),
    }
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {"jargon_file.txt", "sources.json"}


def test_a_second_run_fetches_only_what_changed(tmp_path, dataset, fake_apt):
    folder = tmp_path / "texts"

    def n_fetches():
        before = len(fake_apt.read_text().splitlines()) if fake_apt.exists() else 0
        assert gather(folder, dataset) == 0
        return len(fake_apt.read_text().splitlines()) - before

    assert n_fetches() == 1
    assert n_fetches() == 0
    text = (folder / "jargon_file.txt").read_bytes()
    (folder / "jargon_file.txt").write_text("Somebody wrote into it.\n")
    assert n_fetches() == 1
    assert (folder / "jargon_file.txt").read_bytes() == text
    dataset.write_text(dataset.read_text().replace("mended twice", "mended never"))
    assert n_fetches() == 1
    assert gather(folder, dataset, "--overwrite") == 0
    assert len(fake_apt.read_text().splitlines()) == 4


def test_a_package_that_cannot_be_had_is_told_in_a_line(tmp_path, dataset, fake_apt, capsys):
    assert gather(tmp_path / "texts", dataset, sources=("wesnoth_campaigns",)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(
        r"1\.16-did or wesnoth-1\.18-did cannot be downloaded: Unable to locate.*apt-get update",
        line,
    )


def test_no_apt_is_told_in_a_line(tmp_path, dataset, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gather(tmp_path / "texts", dataset) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "apt-get and dpkg-deb: not found" in line
    assert "on Debian" in line


def test_a_folder_with_something_else_is_left_alone(tmp_path, dataset, fake_apt, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    assert gather(tmp_path / "thesis", dataset) == 1
    assert "holds something else than training texts" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


@pytest.mark.parametrize("flags", [["--written-tokens", "100"], ["--model", "some_folder"]])
def test_writing_needs_a_model_and_an_amount(tmp_path, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        gather_texts.main(["--output", str(tmp_path / "texts"), *flags])
    assert ended.value.code == 2
    assert "--model and --written-tokens go together" in capsys.readouterr().err
