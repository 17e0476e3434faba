"""How sizes and counts are written and read, and tables."""

import argparse

import pytest

from jvlm_mlx.cli.arguments import size
from jvlm_mlx.cli.formatting import table
from jvlm_mlx.cli.main import main
from jvlm_mlx.units import (
    bytes_text,
    count_text,
    parse_bytes,
    percent_text,
    plural,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9), ("7.5 GiB", 7.5 * 2**30), ("500mb", 5 * 10**8), ("1234 B", 1234),
        ("2g", 2 * 10**9), ("1TB", 10**12), ("0", 0), ("0GB", 0),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "size"), ("much", "like 8GB"), ("-1GB", "like 8GB"), ("8 GBB", "like 8GB"),
        ("1e9", "like 8GB"), ("inf", "like 8GB"), ("8", "no unit; give a size like 8GB or 8MB"),
    ],
)  # fmt: skip
def test_other_sizes_are_refused_with_an_example(text, message):
    with pytest.raises(ValueError, match=message):
        parse_bytes(text)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        size(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-memory", "8"], "8 has no unit; give a size like 8GB or 8MB"),
        (["--max-memory", "0"], "give a size like 8GB"),
        (["--max-memory", "much"], "give one like 8GB"),
    ],
)
def test_the_command_line_has_one_syntax_for_sizes(capsys, flags, message):
    with pytest.raises(SystemExit):
        main(["generate", "-p", "hi", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("1", "1 has no unit; give a size like 1GB"), ("nan", "'nan' is no size"), ("inf", "no size")],
)
@pytest.mark.parametrize("command", ["chat", "batch"])
def test_the_cache_size_is_a_size(capsys, command, text, message):
    with pytest.raises(SystemExit, match="2"):
        main([command, "--cache-size", text])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "as_size", "as_count"),
    [(0, "0 B", "0"), (999, "999 B", "999"), (999.6, "1.00 kB", "1.00 k"),
     (12345, "12.3 kB", "12.3 k"), (4.9e9, "4.90 GB", "4.90 G"), (615e6, "615 MB", "615 M")],
)  # fmt: skip
def test_sizes_and_counts_have_three_digits(value, as_size, as_count):
    assert (bytes_text(value), count_text(value)) == (as_size, as_count)


def test_percentages_and_nouns():
    assert percent_text(0.0891) == "8.9 %"
    assert (plural(1, "image"), plural(0, "image")) == ("1 image", "0 images")


def test_tables_align_numbers_right_and_text_left():
    rows = [("tower", 7, "fused"), ("decoder", 123, "-")]
    assert table(("module", "n", "kernel"), rows, left=(0, 2)).splitlines() == [
        "module     n  kernel",
        "-------  ---  ------",
        "tower      7  fused",
        "decoder  123  -",
    ]


def test_the_same_table_in_markdown():
    assert table(("module", "n"), [("tower", 7)], markdown=True).splitlines() == [
        "| module |   n |",
        "| ------ | --: |",
        "| tower  |   7 |",
    ]
