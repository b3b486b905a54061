import re
from pathlib import Path

import pytest

from pipeline_common.errors import UserError
from pipeline_common.json_shape import FILE_NAME, NATURAL, POSITIVE, JsonFormat, check_shape

SHAPE = {
    "name": FILE_NAME,
    "count": NATURAL,
    "share?": (None, float),
    "kind": frozenset({"dense", "sparse"}),
    "layers": [range(4)],
    "scores": {str: {"value": (None, float)}},
    "done": bool,
    "page": re.compile(r"|\w+/\w+"),
    "extra": dict,
    "what": (None, {"word": str}),
}
SOUND = {
    "name": "layer_00",
    "count": 0,
    "share": 1,
    "kind": "dense",
    "layers": [0, 3],
    "scores": {"a": {"value": None}, "b": {"value": 0.5, "more": "than needed"}},
    "done": True,
    "page": "",
    "extra": {"anything": [1]},
    "what": None,
}
PATH = Path("some.json")


FORMAT = JsonFormat("colours", 3, "list of colours", {"colours": [str]}, "paint it again")


def test_what_a_format_writes_it_takes():
    written = {**FORMAT.header, "colours": ["red"]}
    assert written == {"format": "colours", "format_version": 3, "colours": ["red"]}
    assert FORMAT.check(PATH, written) is written


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "some.json: holds no list of colours; paint it again"),
        ({"format": "shapes", "format_version": 3}, "some.json: holds no list of colours; paint it again"),
        ({"format": "colours", "format_version": 2}, "list of colours format 2, this program reads format 3"),
        ({"format": "colours"}, "list of colours format None, this program reads format 3; paint it again"),
        ({**FORMAT.header, "colours": [7]}, "colours.0: expected a text, found 7; paint it again"),
    ],
)
def test_a_format_refuses_others_other_versions_and_wrong_keys(value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        FORMAT.check(PATH, value)


def test_a_format_takes_the_older_versions_that_it_names_and_writes_its_own():
    form = JsonFormat("colours", 3, "list of colours", {"colours": [str]}, "paint it again", (1, 2))
    assert form.header["format_version"] == 3
    for version in (1, 2, 3):
        value = {"format": "colours", "format_version": version, "colours": ["red"]}
        assert form.check(PATH, value) is value
    for version in (0, 4):
        with pytest.raises(
            UserError, match=f"colours format {version}, this program reads format 1 or 2 or 3;"
        ):
            form.check(PATH, {"format": "colours", "format_version": version, "colours": []})
    with pytest.raises(UserError, match="colours: this key is missing"):
        form.check(PATH, {"format": "colours", "format_version": 1})


def test_what_fits_passes_and_what_may_be_missing_may():
    check_shape(PATH, SOUND, SHAPE, "mend it")
    check_shape(PATH, {key: value for key, value in SOUND.items() if key != "share"}, SHAPE, "mend it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, r"name: expected a text like .*, found '\.\./x'"),
        ({"name": ""}, "name: expected a text like"),
        ({"name": "x\n"}, "name: expected a text like"),
        ({"count": True}, "count: expected an integer from 0, found True"),
        ({"count": -1}, "count: expected an integer from 0, found -1"),
        ({"count": 1.0}, "count: expected an integer from 0"),
        ({"count": 10**30}, "count: expected an integer from 0"),
        ({"share": "half"}, "share: expected a number, found 'half'"),
        ({"share": False}, "share: expected a number"),
        ({"kind": "thick"}, "kind: expected one of dense, sparse, found 'thick'"),
        ({"kind": ["dense"]}, "kind: expected one of"),
        ({"layers": 3}, "layers: expected a list, found 3"),
        ({"layers": [0, 4]}, r"layers\.1: expected an integer from 0 to 3, found 4"),
        ({"scores": []}, "scores: expected an object"),
        ({"scores": {"a": {}}}, r"scores\.a\.value: this key is missing"),
        ({"scores": {"a": {"value": "x"}}}, r"scores\.a\.value: expected a number"),
        ({"done": 1}, "done: expected true or false"),
        ({"page": "a/b/c"}, "page: expected a text like"),
        ({"extra": None}, "extra: expected an object, found None"),
        ({"what": {}}, r"what\.word: this key is missing"),
        ({"what": 5}, "what: expected an object, found 5"),
    ],
)
def test_what_does_not_fit_is_told_by_its_key(change, message):
    with pytest.raises(UserError, match=rf"^some\.json: {message}.*; mend it$"):
        check_shape(PATH, SOUND | change, SHAPE, "mend it")


def test_a_file_that_is_something_else_as_a_whole():
    with pytest.raises(UserError, match="the file as a whole: expected an object, found \\[1\\]"):
        check_shape(PATH, [1], SHAPE, "mend it")


def test_a_long_value_is_told_in_short():
    with pytest.raises(UserError) as told:
        check_shape(PATH, {"n": "x" * 10**6}, {"n": POSITIVE}, "mend it")
    assert len(str(told.value)) < 200
