"""What is read from files of rows, and what is said about bad ones."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.errors import DataError, JvlmError, RequestError
from jvlm_mlx.processing.image_io import open_image
from jvlm_mlx.training.data_limits import DataLimits
from jvlm_mlx.training.mixture import read_mixture
from jvlm_mlx.training.prepare_data import MAX_SHOWN
from tests.helpers.image_files import PNG, TURNED, TURNED_PNG, chunk, encode, exif, png_of_size
from tests.helpers.training_rows import (
    CHATML,
    assistant,
    batches_of,
    image,
    image_row,
    prepare,
    row,
    text,
    text_row,
    user,
    with_template,
    write_image,
    write_mixture,
    write_rows,
)

DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def processor(tiny):
    return tiny[1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "images" / "b.png", 70, 90)
    return tmp_path


def refusal(path, processor, **options):
    with pytest.raises(DataError) as caught:
        prepare(path, processor, **options)
    return str(caught.value)


def only_batch(path, processor):
    data = prepare(path, processor)
    return batches_of(data, batch_size=data.num_rows, bucket_batches=1)[0]


def test_places_of_a_image(folder, processor):
    here = folder / "images" / "b.png"
    address = "data:image/png;base64," + base64.b64encode(here.read_bytes()).decode()
    parts = [
        {"type": "image", "path": "images/b.png"},
        {"type": "image", "image": "images/b.png"},
        {"type": "image", "url": "images/b.png", "path": None, "text": None},
        {"type": "image", "path": str(here)},
        {"type": "image", "url": here.as_uri()},
        {"type": "image", "image": address},
        {"type": "image_url", "image_url": {"url": address}},
    ]
    rows = [row(user(part, text("?")), assistant("red")) for part in parts]
    rows.append(row(user({"type": "image"}, text("?")), assistant("red"), images=[str(here)]))
    batch = only_batch(write_rows(folder / "rows.jsonl", rows), processor)
    expected = processor.from_messages([user(image(str(here)), text("?"))])
    assert len(batch.sources) == len(rows)
    for place in range(len(rows)):
        np.testing.assert_array_equal(batch.pixel_values[place], expected.pixel_values[0])
        np.testing.assert_array_equal(batch.input_ids[place], batch.input_ids[0])


def test_images_beside_the_messages_are_taken_in_order(folder, processor):
    one = row(
        user({"type": "image"}, image("a.png"), {"type": "image"}, text("?")),
        assistant("red"),
        user({"type": "image"}, text("?")),  # after the last answer
        images=["images/b.png", "a.png", "images/b.png"],
    )
    data = prepare(write_rows(folder / "rows.jsonl", [one]), processor)
    assert [opened.source for opened in data.sources[0].rows[0].images] == [
        str(folder / "images" / "b.png"),
        str(folder / "a.png"),
        str(folder / "a.png"),
    ]


def test_other_keys_empty_lines_and_parts_without_words(folder, processor):
    plain = image_row()
    busy = json.loads(json.dumps(plain)) | {"id": 7, "source": {"page": 3}}
    busy["messages"][0]["name"] = "Ada"
    busy["messages"][1]["content"] = [text("red")]
    path = write_rows(folder / "rows.jsonl", [plain, "", "  ", busy, ""])
    batch = only_batch(path, processor)
    assert len(batch.sources) == 2
    np.testing.assert_array_equal(batch.input_ids[0], batch.input_ids[1])


BAD_ROWS = {
    "{": "no JSON",
    "[1]": "no JSON object",
    "[" * 100_000: "no JSON",
    '{"messages": [{"role": "user", "content": "\\ud800"}, '
    '{"role": "assistant", "content": "a"}]}': "half of a surrogate pair",
    "{}": "has no messages",
    '{"messages": []}': "has no messages",
    '{"messages": "Hi"}': "has no messages",
    '{"messages": ["Hi"]}': "message 0 must be an object",
    json.dumps(row(user("Hi"))): "has no answer",
    json.dumps(row(assistant("Hi"))): "message 0 is an answer",
    json.dumps(row(user("Hi"), assistant(""))): "message 1 is an empty answer",
    json.dumps(row(user("Hi"), assistant(" \n"))): "message 1 is an empty answer",
    json.dumps(row(user("Hi"), assistant([text(""), text(" ")]))): "message 1 is an empty answer",
    json.dumps(row(user("Hi"), assistant(None))): "message 1 has content of None",
    json.dumps(row(user("Hi"), assistant([image("a.png")]))): "an answer with an image",
    json.dumps(row({"role": "human", "content": "Hi"}, assistant("Ho"))): "role 'human'",
    json.dumps(image_row("none.png")): "none.png' cannot be opened: No such file",
    json.dumps(image_row("rows.jsonl")): "rows.jsonl' is JSON, and no image",
    json.dumps(image_row("images")): "images' cannot be opened",
    json.dumps(image_row("~nobody-here/a.png")): "cannot be found",
    json.dumps(image_row("https://example.com/a.png")): "on the web; download it",
    json.dumps(image_row("HTTP://example.com/a.png")): "on the web; download it",
    json.dumps(image_row("data:image/png;base64,?")): "no valid base64",
    json.dumps(image_row("long.png")): "too elongated: 1 x 500",
    json.dumps(image_row("huge.png")): "is too large",
    json.dumps(image_row(7)): "an image is of type int",
    json.dumps(image_row(None)): "1 image parts without a source of their own, but 0 images",
    json.dumps(row(user("Hi"), assistant("Ho"), images=["a.png"])): "but 1 images were given",
    json.dumps(row(user({"type": "image"}), assistant("Ho"), images=[3])): "of type int",
    json.dumps(text_row(answer="word " * 3000)): "tokens, 0 of them for images; at most 2000",
}


def write_bad_images(folder):
    Image.new("RGB", (1, 500)).save(folder / "long.png")
    (folder / "huge.png").write_bytes(png_of_size(60_000, 60_000))


@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda bad: BAD_ROWS[bad][:30])
def test_bad_row(bad, folder, processor):
    write_bad_images(folder)
    path = write_rows(folder / "rows.jsonl", [image_row(), bad, text_row()])
    heading, *lines = refusal(path, processor).split("\n")
    assert heading == "a row cannot be trained on; mend or remove what is listed here:"
    (line,) = lines
    assert line.startswith(f"{path}:2: ")
    assert BAD_ROWS[bad] in line
    assert len(line) < 400


def test_all_bad_rows_of_all_files_are_named(folder, processor):
    write_bad_images(folder)
    bad = list(BAD_ROWS)
    path = write_mixture(
        folder,
        one=("captions", 1, [image_row(), *bad[:5], image_row(), text_row()]),
        two=("text", 1, ["{", text_row(), image_row()]),
        three=("instructions", 1, []),
    )
    (folder / "three.jsonl").unlink()
    lines = refusal(path, processor).split("\n")
    assert lines.pop(0) == f"{folder}/three.jsonl cannot be read: No such file or directory"
    assert lines[0].startswith("8 rows cannot")
    assert [line.split(": ")[0].removeprefix(f"{folder}/") for line in lines[1:]] == [
        *(f"one.jsonl:{number}" for number in (2, 3, 4, 5, 6, 8)),
        "two.jsonl:1",
        "two.jsonl:3",
    ]
    assert lines[6].endswith("has no image, but the source is of kind captions")
    assert lines[8].endswith("has an image, but the source is of kind text")


def test_many_bad_rows_are_counted(folder, processor):
    path = write_rows(folder / "rows.jsonl", ["{"] * (MAX_SHOWN + 30))
    lines = refusal(path, processor).split("\n")
    assert lines[0].startswith(f"{MAX_SHOWN + 30} rows")
    assert len(lines) == 1 + MAX_SHOWN + 1
    assert lines[-1] == "and 30 more"


def test_file_without_rows(folder, processor):
    path = write_rows(folder / "rows.jsonl", ["", " "])
    assert refusal(path, processor) == f"{path} has no rows"


def test_file_that_is_not_utf_8(folder, processor):
    path = folder / "rows.jsonl"
    path.write_bytes(json.dumps(text_row()).encode() + b'\n{"messages": "\xff"}')
    assert f"{path}:2: no JSON" in refusal(path, processor)


def test_length_counts_images_and_stop_token(folder, processor):
    path = write_rows(folder / "rows.jsonl", [image_row("images/b.png"), image_row()])
    row_length = max(one.length for one in prepare(path, processor).sources[0].rows)
    batch = only_batch(path, processor)
    assert batch.input_ids.shape[1] == row_length
    prepare(path, processor, max_length=row_length)
    assert f"{path}:1: has {row_length} tokens" in refusal(
        path, processor, max_length=row_length - 1
    )


def test_limits_on_images_hold_in_training(folder, processor):
    write_image(folder / "a.png", 300, 300)
    path = write_rows(folder / "rows.jsonl", [image_row()])
    question = [user(image(str(folder / "a.png")), text("What color?"))]
    for limits in ({"max_crops": 1}, {"max_pixels": 20_000}, {"min_pixels": 140_000}):
        data = prepare(path, processor, **limits)
        expected = processor.from_messages(question, **limits)
        assert data.sources[0].rows[0].num_tiles == expected.pixel_values.shape[1]
        np.testing.assert_array_equal(
            batches_of(data, batch_size=1)[0].pixel_values, expected.pixel_values
        )
    with pytest.raises(RequestError, match="max_crops is 0"):
        prepare(path, processor, max_crops=0)
    with pytest.raises(RequestError, match="max_length 0"):
        DataLimits(max_length=0, max_crops=None, min_pixels=None, max_pixels=None)


def test_pixels_are_only_decoded_on_demand(folder, processor):
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    path = write_rows(folder / "rows.jsonl", [text_row(), image_row()])
    data = prepare(path, processor)
    line = refusal(path, processor, decode_images=True).split("\n")[1]
    assert line.startswith(f"{path}:2: ")
    assert "cannot be decoded" in line
    batches = batches_of(data, batch_size=4, text_share=0.5, bucket_batches=1)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*a\.png' cannot be decoded") as caught:
        batches[0]
    assert "\n" not in str(caught.value)


def test_image_that_has_changed_since_it_was_checked(folder, processor):
    data = prepare(write_rows(folder / "rows.jsonl", [image_row()]), processor)
    write_image(folder / "a.png", 50, 40)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* has 50 x 40 pixels, and had 40 x 40"):
        batches_of(data, batch_size=1)[0]


XMP = b'<x tiff:Orientation="6"/>'
KINDS = {
    "png": PNG,
    "turned.png": TURNED_PNG,
    **{
        f"turned.{kind}": encode(Image.new("RGB", (9, 14)), kind, exif=exif(TURNED))
        for kind in ("jpeg", "tiff", "webp")
    },
    "xmp.tiff": encode(Image.new("RGB", (9, 14)), "tiff", tiffinfo={700: XMP}),
    "both.tiff": encode(Image.new("RGB", (9, 14)), "tiff", tiffinfo={700: XMP, 274: TURNED}),
    "mirrored.jpeg": encode(Image.new("RGB", (9, 14)), "jpeg", exif=exif(2)),
    "gif": encode(Image.new("P", (9, 14)), "gif"),
    "bmp": encode(Image.new("L", (9, 14)), "bmp"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_size_from_the_beginning_of_a_file(kind, folder, processor):
    path = folder / kind
    path.write_bytes(KINDS[kind])
    data = prepare(write_rows(folder / "rows.jsonl", [image_row(kind)]), processor)
    assert data.sources[0].rows[0].images[0].size == open_image(path).size


def test_turn_that_is_only_known_at_the_end_of_a_file(folder, processor):
    turn = chunk(b"eXIf", exif(TURNED).tobytes().removeprefix(b"Exif\0\0"))
    (folder / "late.png").write_bytes(PNG[:-12] + turn + PNG[-12:])
    path = write_rows(folder / "rows.jsonl", [image_row("late.png")])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* save it anew"):
        batches_of(prepare(path, processor), batch_size=1)[0]
    data = prepare(path, processor, decode_images=True)
    batches_of(data, batch_size=1)[0]


def test_template_is_tried_before_rows(folder, processor):
    path = write_rows(folder / "rows.jsonl", ["{"])
    assert "template" in refusal(path, with_template(processor, "{{ 1 }}"))
    assert "rows.jsonl:1" in refusal(path, with_template(processor, CHATML))


def test_progress(folder, processor):
    path = write_mixture(
        folder,
        one=("captions", 1, [image_row()] * 3),
        two=("text", 1, [text_row()] * 2 + [""] * 3),
    )
    told = []
    prepare(path, processor, progress=told.append)
    size = sum((folder / name).stat().st_size for name in ("one.jsonl", "two.jsonl"))
    assert {event.total for event in told} == {size}
    assert told == sorted(told)
    assert told[-1] == ("examples", size, size, "B")
    assert len(told) > 5


def test_digest_knows_what_changes_a_batch(folder, processor):
    rows = [image_row(), text_row()]
    path = write_rows(folder / "rows.jsonl", rows)
    digest = prepare(path, processor).digest
    assert prepare(path, processor).digest == digest
    assert prepare(path, processor, max_crops=2).digest != digest
    assert prepare(path, with_template(processor, CHATML)).digest != digest
    write_rows(path, [image_row(), text_row("How do you do?")])
    assert prepare(path, processor).digest != digest


def test_mixture_file(folder):
    (folder / "deep").mkdir()
    path = folder / "deep" / "mixture.json"
    absolute = folder / "t.jsonl"
    path.write_text(
        json.dumps(
            {
                "sources": [
                    {"name": "scenes", "path": "../s.jsonl", "kind": "captions", "weight": 3},
                    {"name": "texts", "path": str(absolute), "kind": "text", "weight": 0.5},
                ],
                "comment": "mine",
            }
        )
    )
    scenes, texts = read_mixture(path).sources
    assert (scenes.name, scenes.kind, scenes.weight) == ("scenes", "captions", 3.0)
    assert scenes.path.resolve() == (folder / "s.jsonl").resolve()
    assert texts.path == absolute


GOOD = {"name": "a", "path": "a.jsonl", "kind": "text", "weight": 1}
BAD_MIXTURES = {
    "is no JSON": "{",
    "is no mixture": ["[]", "{}", '{"sources": []}', '{"sources": {}}'],
    "source 0 must be an object": '{"sources": [1]}',
    "source 1: name must": json.dumps({"sources": [GOOD, GOOD | {"name": ""}]}),
    "source 0: path must": json.dumps({"sources": [{"name": "a"}]}),
    "source 0: kind is 'images'": json.dumps({"sources": [GOOD | {"kind": "images"}]}),
    "source 0: weight is None": json.dumps({"sources": [GOOD | {"weight": None}]}),
    "source 0: weight is": [
        json.dumps({"sources": [GOOD | {"weight": weight}]})
        for weight in (0, -1, True, "1", float("inf"), float("nan"))
    ],
    "source 0 has 'wieght'": json.dumps({"sources": [GOOD | {"wieght": 3}]}),
    "two sources are named 'a'": json.dumps({"sources": [GOOD, GOOD]}),
}


@pytest.mark.parametrize("line", BAD_MIXTURES)
def test_bad_mixture(line, tmp_path):
    texts = BAD_MIXTURES[line]
    for words in [texts] if isinstance(texts, str) else texts:
        (tmp_path / "mixture.json").write_text(words)
        with pytest.raises(DataError) as caught:
            read_mixture(tmp_path / "mixture.json")
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_mixture(tmp_path):
    with pytest.raises(JvlmError, match=r"none\.json cannot be read: No such file"):
        read_mixture(tmp_path / "none.json")


def test_single_file_is_told_apart_by_what_rows_have(folder, processor):
    path = write_rows(folder / "rows.jsonl", [image_row(), text_row(), image_row()])
    data = prepare(str(path), processor)
    assert [(one.name, one.kind, len(one.rows)) for one in data.sources] == [
        ("rows", "instructions", 2),
        ("rows-text", "text", 1),
    ]
    assert data.num_rows == 3
    assert data.has_text
    assert data.has_images
    data = prepare(write_rows(path, [text_row()]), processor)
    assert [(one.name, one.kind) for one in data.sources] == [("rows", "text")]
    assert not data.has_images
    data = prepare(write_rows(path, [image_row()]), processor)
    assert [(one.name, one.kind) for one in data.sources] == [("rows", "instructions")]
    assert not data.has_text
