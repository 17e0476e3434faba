"""A file opened before is recognized without being decoded, and never taken for another."""

import io
from pathlib import Path

import pytest
from PIL import Image

import jvlm_mlx
from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.errors import ImageError
from jvlm_mlx.processing import image_io
from jvlm_mlx.processing.image_digests import ImageDigests
from jvlm_mlx.processing.image_processor import ImageProcessor
from tests.helpers.image_goldens import GOLDEN, TINY, TINY_IDS

SHAPES, SQUARE = (GOLDEN / "images" / f"{name}.png" for name in ("shapes", "square"))


@pytest.fixture(scope="module")
def processor():
    return ImageProcessor(TINY, TINY_IDS)


@pytest.fixture
def decoded(monkeypatch):
    """Names of all images that were decoded."""
    names, decode = [], image_io.decode

    def noted(stream, name, *arguments):
        names.append(name)
        return decode(stream, name, *arguments)

    monkeypatch.setattr(image_io, "decode", noted)
    return names


@pytest.fixture
def known():
    return ImageDigests()


def loaded(processor, source, known, **options):
    image = processor.open(source, ImageOptions(**options), known=known)
    image.load()
    return image


@pytest.mark.parametrize(
    "source",
    [str, Path, lambda path: path.read_bytes(), lambda path: io.BytesIO(path.read_bytes())],
)
def test_a_known_file_is_not_decoded_again(processor, known, decoded, source):
    expected = processor.open(SHAPES).digest
    decoded.clear()
    digests = [loaded(processor, source(SHAPES), known).digest for _ in range(3)]
    assert digests == [expected] * 3
    assert len(decoded) == 1
    # The same bytes under whatever name.
    assert loaded(processor, SHAPES.read_bytes(), known).digest == expected
    assert len(decoded) == 1


def test_its_pixels_are_decoded_when_they_are_needed(processor, known, decoded):
    expected = loaded(processor, SHAPES, known).cut()
    again = loaded(processor, SHAPES, known)
    assert len(decoded) == 1
    assert (again.cut().pixel_values == expected.pixel_values).all()
    assert len(decoded) == 2


def test_other_contents_are_another_image(processor, known, tmp_path, decoded):
    path = tmp_path / "image.png"
    digests = []
    for source in (SHAPES, SQUARE, SHAPES):
        path.write_bytes(source.read_bytes())
        digests.append(loaded(processor, path, known).digest)
    assert digests[0] == digests[2] != digests[1]
    assert digests[:2] == [processor.open(source).digest for source in (SHAPES, SQUARE)]


def test_so_are_other_options_and_other_frames(processor, known, tmp_path):
    whole, one = (loaded(processor, SHAPES, known, max_crops=limit).digest for limit in (4, 1))
    assert whole != one
    film = tmp_path / "film.gif"
    first, second = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (60, 40), "blue")
    first.save(film, save_all=True, append_images=[second], duration=100)
    frames = [f"{film}#{number}" for number in (1, 2)]
    digests = [loaded(processor, frame, known).digest for frame in frames]
    assert digests[0] != digests[1]
    assert digests == [processor.open(frame).digest for frame in frames]


def test_a_file_that_changes_between_two_looks_is_refused(processor, known, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(SHAPES.read_bytes())
    loaded(processor, path, known)
    image = loaded(processor, path, known)
    with Image.open(SHAPES) as opened:
        Image.new("RGB", opened.size, "red").save(path)
    with pytest.raises(ImageError, match="has changed since it was opened"):
        image.cut()


def test_what_is_hashed_is_what_is_decoded(processor, known, tmp_path, monkeypatch):
    """Somebody replaces the file after it was read: its pixels do not get the old bytes' name."""
    path = tmp_path / "image.png"
    path.write_bytes(SHAPES.read_bytes())
    decode = image_io.decode

    def replaced(stream, *arguments):
        with Image.open(SHAPES) as opened:
            Image.new("RGB", opened.size, "red").save(path)
        return decode(stream, *arguments)

    monkeypatch.setattr(image_io, "decode", replaced)
    digest = loaded(processor, path, known).digest
    monkeypatch.undo()
    assert digest == processor.open(SHAPES).digest == loaded(processor, SHAPES, known).digest


def test_damaged_files_are_refused_each_time(processor, known, tmp_path):
    path = tmp_path / "image.png"
    data = SHAPES.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for _ in range(2):
        with pytest.raises(ImageError, match="cannot be decoded"):
            loaded(processor, path, known)


def test_large_files_are_decoded_as_they_are_read(processor, known, monkeypatch, decoded):
    monkeypatch.setattr(image_io, "MAX_READ", 100)
    assert loaded(processor, SHAPES, known).digest == loaded(processor, SHAPES, known).digest
    assert len(decoded) == 2


def test_pixels_of_the_caller_are_taken_as_they_are(processor, known):
    with Image.open(SHAPES) as opened:
        image = opened.convert("RGB")
    first = loaded(processor, image, known).digest
    image.paste("red", (0, 0, 50, 50))
    assert loaded(processor, image, known).digest != first


def test_scopes_see_their_own(processor, known, decoded):
    for scope in ("a", "b", "a"):
        loaded(processor, SHAPES, known.scoped(scope))
    assert len(decoded) == 2


def test_the_least_recently_used_leave_first():
    known = ImageDigests(max_entries=2)
    known.put("a", "1")
    known.put("b", "2")
    assert known.get("a") == "1"
    known.put("c", "3")
    assert [known.get(name) for name in "abc"] == ["1", None, "3"]
    known.clear()
    assert known.get("a") is None


def test_answers_with_caches_are_those_without(golden_folder, decoded):
    model, processor = jvlm_mlx.load(golden_folder / "tiny")
    options = {"max_tokens": 8, "stop_token_ids": ()}
    expected = jvlm_mlx.generate(model, processor, "What?", SHAPES, **options).token_ids
    decoded.clear()
    caches = jvlm_mlx.GenerationCaches()

    def answer():
        result = jvlm_mlx.generate(model, processor, "What?", SHAPES, caches=caches, **options)
        return result.token_ids, result.cached_tokens > 0, len(decoded)

    assert [answer(), answer()] == [(expected, False, 1), (expected, True, 1)]
    # Features were dropped for want of memory: now the pixels are needed.
    caches.features.clear()
    caches.prefixes.clear()
    assert answer() == (expected, False, 2)
