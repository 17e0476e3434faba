"""JSON of strangers: what is no JSON, too large or too deep is one line of the caller's error."""

import json
import sys

import pytest

from jvlm_mlx.config import json_file
from jvlm_mlx.config.json_file import parse_json, quoted, read_json
from jvlm_mlx.errors import CheckpointError, DataError


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "Expecting value"),
        (b"{", "line 1"),
        (b'{"a": 1} {', "Extra data"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        ("[" * 101 + "]" * 101, "nested deeper than 100 levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested deeper than 100 levels"),
        ("[" * 10**6, "nested deeper than 100 levels"),
        ("1" * 21, "an integer of 21 digits"),
        ("-" + "1" * 10**5, "an integer of 100001 digits"),
    ],
    ids=[
        "empty",
        "cut",
        "two values",
        "bytes",
        "lists",
        "objects",
        "far too deep",
        "digits",
        "many",
    ],
)
def test_what_cannot_be_used_is_a_short_value_error(text, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        parse_json(text)
    assert len(str(raised.value)) < 100
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "value", [None, True, -(2**63), 2**64 - 1, 1e300, "é😀", [[], {}], {"a": {"b": [1]}}]
)
def test_what_json_writes_is_read_back(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json("\ufeff" + json.dumps(value)) == value


def test_a_hundred_levels_are_allowed():
    parse_json("[" * 100 + "]" * 100)


def test_files_are_read_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "MAX_BYTES", 2**20)
    (tmp_path / "large.json").write_text(json.dumps("x" * 2**20))
    with pytest.raises(CheckpointError, match=r"large\.json is no JSON: larger than 1 MB"):
        read_json(tmp_path / "large.json")
    if sys.platform != "win32":
        (tmp_path / "endless.json").symlink_to("/dev/zero")
        with pytest.raises(CheckpointError, match="larger than 1 MB"):
            read_json(tmp_path / "endless.json")


def test_errors_are_of_the_type_that_was_asked_for(tmp_path):
    for name, problem in (("absent", "has no absent"), (".", "Is a directory")):
        with pytest.raises(DataError, match=problem):
            read_json(tmp_path / name, DataError)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", "'a\\nb'"),
        ("x" * 200, "'" + "x" * 76 + "..."),
        (10**5000, "a value too large to print"),
        ({"key": 1}, "{'key': 1}"),
    ],
    ids=["line break", "long", "digits", "short"],
)
def test_quoted_values_are_one_short_line(value, shown):
    assert quoted(value) == shown
