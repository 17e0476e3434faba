"""What a page's caption says is what its pixels show, in reading order."""

from random import Random

import pytest
from PIL import Image

from benchmarks.demo_model.transcription_pages import make_page, page_at
from jvlm_mlx.demo.drawing import LARGE_PRINT
from jvlm_mlx.demo.phrases import WORDS
from jvlm_mlx.demo.tasks import is_held_out
from tests.helpers.demo_reading import PLACES, lines_of, print_of, prints, read_shapes


def pages(kind, count=25):
    return [make_page(kind, Random(f"{kind} {place}")) for place in range(count)]


def test_nine_shapes_are_named_row_by_row():
    for page in pages("shapes_page"):
        shapes = read_shapes(page.image)
        assert len(shapes) == 9
        assert page.caption == ", ".join(f"{color} {shape}" for shape, color, _ in shapes)


def test_large_print_is_read_line_by_line():
    for page in pages("print_page"):
        ink = print_of(page.image)
        lines = lines_of(ink)
        texts = page.caption.split(", ")
        assert len(lines) == len(texts) == 3
        for (top, bottom), text in zip(lines, texts, strict=True):
            assert prints(ink[top:bottom], text, LARGE_PRINT)


def test_small_print_is_read_line_by_line_from_column_to_column():
    for page in pages("small_print_page"):
        ink = print_of(page.image)
        texts = page.caption.split(", ")
        # Lines are 21 pixels apart, in both columns; the edge between tiles' shares is at 64.
        places = sorted(
            ((top - 2) // 21, column, top, bottom)
            for column in (0, 1)
            for top, bottom in lines_of(ink[:, 64 * column : 64 * (column + 1)])
        )
        assert len(places) == len(texts)
        for (_, column, top, bottom), text in zip(places, texts, strict=True):
            assert prints(ink[top:bottom, 64 * column : 64 * (column + 1)], text)


@pytest.mark.parametrize("kind", ["print_page", "small_print_page"])
def test_words_and_numbers_of_all_lengths_occur(kind):
    said = {text for page in pages(kind, 200) for text in page.caption.split(", ")}
    assert set(WORDS) <= said
    assert {len(text) for text in said if text.isdigit()} == {1, 2, 3}


def test_shapes_letters_and_digits_are_named_cell_by_cell():
    seen = set()
    for page in pages("signs_page", 100):
        shapes = {PLACES.index(place): f"{color} {shape}"
                  for shape, color, place in read_shapes(page.image)}  # fmt: skip
        ink = print_of(page.image)
        parts = page.caption.split(", ")
        assert len(parts) == 9
        for cell, part in enumerate(parts):
            if len(part) > 1:
                assert shapes[cell] == part
                continue
            row, column = divmod(cell, 3)
            assert prints(
                ink[24 * row : 24 * row + 24, 24 * column : 24 * column + 24], part, LARGE_PRINT
            )
            seen.add(part)
    assert seen == {*"0123456789", *"".join(WORDS)}


def test_a_series_of_pages_is_of_one_kind_and_nothing_in_it_is_held_out():
    series = [page_at(1, place, "print_page") for place in range(8)]
    assert {page.task for page in series} == {"print_page"}
    assert not any(is_held_out(page.image) for page in series)
    again = page_at(1, 4, "print_page")
    assert (again.image.tobytes(), again.caption) == (
        series[4].image.tobytes(), series[4].caption
    )  # fmt: skip
    assert page_at(2, 4, "print_page").image.tobytes() != again.image.tobytes()
    assert isinstance(again.image, Image.Image)
    assert not again.turns
