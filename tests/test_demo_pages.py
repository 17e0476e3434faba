"""What a page's caption says is what its pixels show, in reading order."""

from random import Random

import pytest
from demo_reading import lines_of, print_of, prints, read_shapes
from PIL import Image

from jvlm_mlx.demo.pages import PAGES, make_page
from jvlm_mlx.demo.phrases import LANGUAGES, PHRASES
from jvlm_mlx.demo.tasks import is_held_out, page_at
from jvlm_mlx.demo.words import WORDS

LARGE_SIZES = (18, 19, 20)


def pages(kind, count=25, language="en"):
    return [make_page(kind, language, Random(f"{kind} {place}")) for place in range(count)]


def test_nine_shapes_are_named_row_by_row():
    for page in pages("shapes_page"):
        shapes = read_shapes(page.picture)
        assert len(shapes) == 9
        assert page.caption == ", ".join(f"{colour} {shape}" for shape, colour, _ in shapes)


def test_large_print_is_read_line_by_line():
    for page in pages("print_page"):
        ink = print_of(page.picture)
        lines = lines_of(ink)
        texts = page.caption.split(", ")
        assert len(lines) == len(texts) == 3
        for (top, bottom), text in zip(lines, texts, strict=True):
            assert prints(ink[top:bottom], text, LARGE_SIZES)


def test_small_print_is_read_line_by_line_from_column_to_column():
    for page in pages("small_print_page"):
        ink = print_of(page.picture)
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


@pytest.mark.parametrize("language", LANGUAGES)
def test_shapes_are_named_in_every_language(language):
    (page,) = pages("shapes_page", 1, language)
    parts = page.caption.split(", ")
    names = {noun.name for noun in PHRASES[language].shapes.values()}
    assert len(parts) == 9
    assert all(any(name in part for name in names) for part in parts)
    assert not any(part != part.strip() or "  " in part for part in parts)


def test_a_series_of_pages_has_all_kinds_and_nothing_held_out():
    series = [page_at(1, place) for place in range(2 * len(PAGES))]
    assert [page.task for page in series] == [*PAGES, *PAGES]
    assert not any(is_held_out(page.picture) for page in series)
    again = page_at(1, 4)
    assert (again.picture.tobytes(), again.caption) == (
        series[4].picture.tobytes(), series[4].caption
    )  # fmt: skip
    assert page_at(2, 4).picture.tobytes() != again.picture.tobytes()
    assert isinstance(again.picture, Image.Image)
    assert not again.turns
