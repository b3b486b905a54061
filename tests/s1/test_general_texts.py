import bz2
import gzip
import lzma
import struct
import zlib

import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.debian_packages import UnpackedPackage
from s1_compute_all_features.saes.general_texts import (
    SOURCES,
    read_endless_sky,
    read_moby_dick,
    read_web_pages,
    read_wesnoth,
)
from s1_compute_all_features.saes.prose import clean_paragraphs, is_prose
from s1_compute_all_features.saes.r_data import read_r_strings

# Prose


@pytest.mark.parametrize(
    "paragraph",
    [
        "She put the letter down and looked out at the rain.",
        '"Where have you been?" he asked. "We waited an hour."',
        "I never saw him again--and I was glad of it, Tom.",
    ],
)
def test_running_text_is_prose(paragraph):
    assert is_prose(paragraph)


@pytest.mark.parametrize(
    "paragraph",
    [
        "CHAPTER THE FIRST OF THIS VOLUME",
        "Chapter 3. Analyzing the Existing Setup",
        "Yes, he said.",
        "Run apt-get install foo --yes and look at the output.",
        "The file is /etc/apt/sources.list and it lists what there is.",
        "Set x = 3 before you call the function again.",
        "1234 5678 | 22 33 44 55 66 77 88 or so they say.",
    ],
)
def test_headings_and_listings_are_not_prose(paragraph):
    assert not is_prose(paragraph)


def test_a_text_cut_in_mid_sentence_is_prose_where_that_is_allowed():
    assert not is_prose("He opened the door and saw that the")
    assert is_prose("He opened the door and saw that the", whole_sentences=False)


def test_paragraphs_come_out_on_one_line_each_and_once():
    found = clean_paragraphs(
        [
            "It was \u201clate\u201d\n   and _very_ dark outside.",
            "HEADING",
            'It was "late" and very dark outside.',
        ]
    )
    assert found == ['It was "late" and very dark outside.']


# Formats of the sources


def package_with(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return UnpackedPackage(name="made", version="1", root=root)


def test_web_pages_lose_menus_listings_and_tables(tmp_path):
    page = (
        "<html><head><title>This title has more than five words.</title></head><body><nav><p>Go back to "
        "the first page now.</p></nav><h2>A heading of more than five words.</h2><p>You <b>start</b> with "
        "the first &amp; the last step<br>of them all.<p>A paragraph whose end was forgotten, too.</p>"
        "<div class='note para'>The handbook writes its paragraphs in this way.</div>"
        "<pre><p>some listing that must not come along here.</p></pre>"
        "<table><tr><td><p>A table cell of more than five words.</p></td></tr></table></body></html>"
    )
    package = package_with(tmp_path, {"doc/b.en.html": page, "doc/a.fr.html": "<p>" + "Un deux trois. " * 4})
    assert read_web_pages("doc", "*.en.html")(package) == [
        "You start with the first & the last step of them all.",
        "A paragraph whose end was forgotten, too.",
        "The handbook writes its paragraphs in this way.",
    ]


def test_wesnoth_gives_what_is_said_and_told(tmp_path):
    campaign = (
        '#textdomain made\nname= _ "The Long March"\n# message= _ "This was taken out some years ago."\n'
        'message= _ "We cannot hold them here, <i>Konrad</i>; "+\n   _ "there are ""far"" too many."\n'
        'story=_"They marched for nine days.\n\nOn the tenth they saw the sea."\nimage="a picture.png"\n'
    )
    package = package_with(tmp_path, {"usr/share/games/wesnoth/1.16/data/a.cfg": campaign})
    assert read_wesnoth(package) == [
        'We cannot hold them here, Konrad; there are "far" too many.',
        "They marched for nine days.",
        "On the tenth they saw the sea.",
    ]


def test_endless_sky_fills_in_names_and_drops_other_gaps(tmp_path):
    data = (
        'mission "A"\n\tname "Drop this one, it is only a name."\n\tconversation\n\t\t`You land on <planet>, '
        'and Captain <last> is there.`\n\t\t\t`    "Here are <payment> for your trouble, friend."`\n'
        '\tdialog "You have been here before, have you not?"\n# `A comment of more than five words.`\n'
    )
    package = package_with(tmp_path, {"usr/share/games/endless-sky/data/human/a.txt": data})
    assert read_endless_sky(package) == [
        "You land on the planet, and Captain Hale is there.",
        "You have been here before, have you not?",
    ]


def test_every_source_names_its_licence_and_its_makers():
    assert len({source.name for source in SOURCES}) == len(SOURCES) >= 6
    assert all(source.licence and source.attribution and source.packages for source in SOURCES)


# R's data


def r_string(text):
    if text is None:
        return struct.pack(">ii", 9, -1)
    return struct.pack(">ii", 9 | 1 << 18, len(text.encode())) + text.encode()


def r_strings(values):
    return struct.pack(">ii", 16, len(values)) + b"".join(map(r_string, values))


def r_named_list(items):
    """A named list: values, then a pairlist with the one attribute ``names``."""
    names = struct.pack(">ii", 2 | 0x400, 1) + r_string("names") + r_strings(list(items))
    return (
        struct.pack(">ii", 19 | 0x200, len(items)) + b"".join(items.values()) + names + struct.pack(">i", 254)
    )


def r_stream(value, version=3):
    native = struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    return b"X\n" + struct.pack(">iii", version, 0x40201, 0x30500) + native + value


def write_r_database(base, variables, pack=zlib.compress, letter=b"", pack_index=zlib.compress, version=3):
    """Variables as R stores those of a package: name to a list of texts or a serialised value."""
    places, data = {}, b""
    for name, value in variables.items():
        stream = r_stream(value if isinstance(value, bytes) else r_strings(value), version)
        chunk = struct.pack(">i", len(stream)) + letter + pack(stream)
        places[name] = struct.pack(">iiii", 13, 2, len(data), len(chunk))
        data += chunk
    index = r_named_list({"variables": r_named_list(places), "compressed": struct.pack(">iii", 13, 1, 1)})
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_suffix(".rdx").write_bytes(pack_index(r_stream(index, version)))
    base.with_suffix(".rdb").write_bytes(data)


def raw_lzma(data):
    settings = {"id": lzma.FILTER_LZMA2, "preset": 6 | lzma.PRESET_EXTREME}
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=[settings])


@pytest.mark.parametrize(
    ("pack", "letter"),
    [(zlib.compress, b""), (bz2.compress, b"2"), (raw_lzma, b"Z"), (bytes, b"0")],
)
@pytest.mark.parametrize("version", [2, 3])
def test_character_vectors_are_read_however_r_packed_them(tmp_path, pack, letter, version):
    lines = ["Emma Woodhouse,", "", "handsome, clever, rich \u2014", None]
    variables = {"other": ["no"], "emma": lines}
    write_r_database(tmp_path / "data", variables, pack, letter, gzip.compress, version)
    assert read_r_strings(tmp_path / "data", "emma") == [
        "Emma Woodhouse,",
        "",
        "handsome, clever, rich \u2014",
        "",
    ]
    assert read_r_strings(tmp_path / "data", "other") == ["no"]


def test_r_data_that_is_not_what_was_expected_is_told_in_a_line(tmp_path):
    base = tmp_path / "data"
    with pytest.raises(UserError, match=r"data\.rdx: cannot be read"):
        read_r_strings(base, "emma")
    write_r_database(
        base, {"emma": ["a"], "numbers": struct.pack(">iii", 13, 1, 7), "code": struct.pack(">ii", 6, 0)}
    )
    with pytest.raises(UserError, match="no variable 'persuasion'; it holds emma, numbers"):
        read_r_strings(base, "persuasion")
    with pytest.raises(UserError, match="numbers is no character vector"):
        read_r_strings(base, "numbers")
    with pytest.raises(UserError, match="type 6 is not read here"):
        read_r_strings(base, "code")
    base.with_suffix(".rdb").write_bytes(base.with_suffix(".rdb").read_bytes()[:9])
    with pytest.raises(UserError, match="damaged or not R data"):
        read_r_strings(base, "emma")


def test_moby_dick_loses_what_stands_around_it(tmp_path):
    text = (
        "The Project Gutenberg EBook of Moby Dick. It is for the use of anyone.\r\n\r\nCHAPTER 1\r\n\r\n"
        "Call me Ishmael. Some years ago--never mind\r\nhow long--I went to sea.\r\n\r\n\r\n\r\n"
        "End of Project Gutenberg's Moby Dick\r\n\r\nThere are a few things that you can do with it.\r\n"
    )
    base = tmp_path / "usr/lib/R/site-library/tokenizers/data/Rdata"
    package = UnpackedPackage(name="r-cran-tokenizers", version="1", root=tmp_path)
    write_r_database(base, {"mobydick": [text]})
    assert read_moby_dick(package) == ["Call me Ishmael. Some years ago--never mind how long--I went to sea."]
    write_r_database(base, {"mobydick": ["Some other book altogether."]})
    with pytest.raises(UserError, match="leave out moby_dick"):
        read_moby_dick(package)
