"""What is read from files of examples, and what is said about bad ones."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from jvlm_mlx.errors import DataError, JvlmError, RequestError
from jvlm_mlx.processing.image_io import open_image
from jvlm_mlx.training import TrainingConfig
from jvlm_mlx.training.data_loader import validation_loader
from jvlm_mlx.training.dataset import MAX_SHOWN
from jvlm_mlx.training.example_images import decoded_size, image_size
from jvlm_mlx.training.examples import VALIDATION_NAME, read_sources
from tests.helpers.image_files import (
    PNG,
    TURNED,
    TURNED_PNG,
    UPRIGHT,
    chunk,
    encode,
    exif,
    png_of_size,
)
from tests.helpers.training_examples import (
    CHATML,
    assistant,
    config_of,
    example,
    image,
    image_example,
    loader_of,
    prepare,
    text,
    text_example,
    user,
    with_template,
    write_examples,
    write_image,
    write_mixture,
)

DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()


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
    return validation_loader(data, config_of(batch_size=len(data.examples)))[0]


def test_sources_of_an_image(folder, processor):
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
    examples = [example(user(part, text("?")), assistant("red")) for part in parts]
    examples.append(
        example(user({"type": "image"}, text("?")), assistant("red"), images=[str(here)])
    )
    batch = only_batch(write_examples(folder / "examples.jsonl", examples), processor)
    expected = processor.from_messages([user(image(str(here)), text("?"))])
    assert len(batch.input_ids) == len(examples)
    for place in range(len(examples)):
        np.testing.assert_array_equal(batch.pixel_values[place], expected.pixel_values[0])
        np.testing.assert_array_equal(batch.input_ids[place], batch.input_ids[0])


def test_images_beside_the_messages_are_taken_in_order(folder, processor):
    one = example(
        user({"type": "image"}, image("a.png"), {"type": "image"}, text("?")),
        assistant("red"),
        user({"type": "image"}, text("?")),  # after the last answer
        images=["images/b.png", "a.png", "images/b.png"],
    )
    data = prepare(write_examples(folder / "examples.jsonl", [one]), processor)
    assert [opened.source for opened in data.examples[0].images] == [
        str(folder / "images" / "b.png"),
        str(folder / "a.png"),
        str(folder / "a.png"),
    ]


def test_other_keys_empty_lines_and_parts_without_text(folder, processor):
    plain = image_example()
    busy = json.loads(json.dumps(plain)) | {"id": 7, "source": {"page": 3}}
    busy["messages"][0]["name"] = "Ada"
    busy["messages"][1]["content"] = [text("red")]
    path = write_examples(folder / "examples.jsonl", [plain, "", "  ", busy, ""])
    batch = only_batch(path, processor)
    assert len(batch.input_ids) == 2
    np.testing.assert_array_equal(batch.input_ids[0], batch.input_ids[1])


BAD_EXAMPLES = {
    "{": "no JSON",
    "[1]": "no JSON object",
    "[" * 100_000: "no JSON",
    '{"messages": [{"role": "user", "content": "\\ud800"}, '
    '{"role": "assistant", "content": "a"}]}': "half of a surrogate pair",
    "{}": "has no messages",
    '{"messages": []}': "has no messages",
    '{"messages": "Hi"}': "has no messages",
    '{"messages": ["Hi"]}': "message 0 must be an object",
    json.dumps(example(user("Hi"))): "has no answer",
    json.dumps(example(assistant("Hi"))): "message 0 is an answer",
    json.dumps(example(user("Hi"), assistant(""))): "message 1 is an empty answer",
    json.dumps(example(user("Hi"), assistant(" \n"))): "message 1 is an empty answer",
    json.dumps(
        example(user("Hi"), assistant([text(""), text(" ")]))
    ): "message 1 is an empty answer",
    json.dumps(example(user("Hi"), assistant(None))): "message 1 has content of None",
    json.dumps(example(user("Hi"), assistant([image("a.png")]))): "an answer with an image",
    json.dumps(example({"role": "human", "content": "Hi"}, assistant("Ho"))): "role 'human'",
    json.dumps(image_example("none.png")): "none.png' cannot be opened: No such file",
    json.dumps(image_example("examples.jsonl")): "examples.jsonl' is JSON, and no image",
    json.dumps(image_example("images")): "images' cannot be opened",
    json.dumps(image_example("~nobody-here/a.png")): "cannot be found",
    json.dumps(image_example("https://example.com/a.png")): "on the web; download it",
    json.dumps(image_example("HTTP://example.com/a.png")): "on the web; download it",
    json.dumps(image_example("data:image/png;base64,?")): "no valid base64",
    json.dumps(image_example("long.png")): "too elongated: 1 x 500",
    json.dumps(image_example("huge.png")): "is too large",
    json.dumps(image_example(7)): "an image is of type int",
    json.dumps(image_example(None)): "1 image parts without a source of their own, but 0 images",
    json.dumps(example(user("Hi"), assistant("Ho"), images=["a.png"])): "but 1 images were given",
    json.dumps(example(user({"type": "image"}), assistant("Ho"), images=[3])): "of type int",
    json.dumps(text_example(answer="word " * 3000)): "tokens, 0 of them for images; at most 2000",
}


def write_bad_images(folder):
    Image.new("RGB", (1, 500)).save(folder / "long.png")
    (folder / "huge.png").write_bytes(png_of_size(60_000, 60_000))


@pytest.mark.parametrize("bad", BAD_EXAMPLES, ids=lambda bad: BAD_EXAMPLES[bad][:30])
def test_bad_example(bad, folder, processor):
    write_bad_images(folder)
    path = write_examples(folder / "examples.jsonl", [image_example(), bad, text_example()])
    heading, *lines = refusal(path, processor).split("\n")
    assert heading == "an example cannot be trained on; fix or remove what is listed here:"
    (line,) = lines
    assert line.startswith(f"{path}:2: ")
    assert BAD_EXAMPLES[bad] in line
    assert len(line) < 400


def test_all_bad_examples_of_all_files_are_named(folder, processor):
    write_bad_images(folder)
    bad = list(BAD_EXAMPLES)
    path = write_mixture(
        folder,
        one=("captions", 1, [image_example(), *bad[:5], image_example(), text_example()]),
        two=("text", 1, ["{", text_example(), image_example()]),
        three=("instructions", 1, []),
    )
    (folder / "three.jsonl").unlink()
    lines = refusal(path, processor).split("\n")
    assert lines.pop(0) == f"{folder}/three.jsonl cannot be read: No such file or directory"
    assert lines[0].startswith("8 examples cannot")
    assert [line.split(": ")[0].removeprefix(f"{folder}/") for line in lines[1:]] == [
        *(f"one.jsonl:{number}" for number in (2, 3, 4, 5, 6, 8)),
        "two.jsonl:1",
        "two.jsonl:3",
    ]
    assert lines[6].endswith("has no image, but the source is of kind captions")
    assert lines[8].endswith("has an image, but the source is of kind text")


def test_many_bad_examples_are_counted(folder, processor):
    path = write_examples(folder / "examples.jsonl", ["{"] * (MAX_SHOWN + 30))
    lines = refusal(path, processor).split("\n")
    assert lines[0].startswith(f"{MAX_SHOWN + 30} examples")
    assert len(lines) == 1 + MAX_SHOWN + 1
    assert lines[-1] == "and 30 more"


def test_file_without_examples(folder, processor):
    path = write_examples(folder / "examples.jsonl", ["", " "])
    assert refusal(path, processor) == f"{path} has no examples"


def test_file_that_is_not_utf_8(folder, processor):
    path = folder / "examples.jsonl"
    path.write_bytes(json.dumps(text_example()).encode() + b'\n{"messages": "\xff"}')
    assert f"{path}:2: no JSON" in refusal(path, processor)


def test_length_counts_images_and_stop_token(folder, processor):
    path = write_examples(
        folder / "examples.jsonl", [image_example("images/b.png"), image_example()]
    )
    example_length = max(one.length for one in prepare(path, processor).examples)
    batch = only_batch(path, processor)
    assert batch.input_ids.shape[1] == example_length
    prepare(path, processor, max_seq_length=example_length)
    assert f"{path}:1: has {example_length} tokens" in refusal(
        path, processor, max_seq_length=example_length - 1
    )


def test_limits_on_images_hold_in_training(folder, processor):
    write_image(folder / "a.png", 300, 300)
    path = write_examples(folder / "examples.jsonl", [image_example()])
    question = [user(image(str(folder / "a.png")), text("What color?"))]
    for limits in (
        {"max_crops": 0},
        {"max_crops": 1},
        {"max_pixels": 20_000},
        {"min_pixels": 140_000},
    ):
        data = prepare(path, processor, **limits)
        expected = processor.from_messages(question, **limits)
        assert data.examples[0].num_tiles == expected.pixel_values.shape[1]
        np.testing.assert_array_equal(
            loader_of(data, batch_size=1)[0].pixel_values, expected.pixel_values
        )
    with pytest.raises(RequestError, match="max_crops is -1"):
        prepare(path, processor, max_crops=-1)
    with pytest.raises(RequestError, match="max_seq_length is 0"):
        TrainingConfig(max_seq_length=0)


def test_pixels_are_only_decoded_on_demand(folder, processor):
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    path = write_examples(folder / "examples.jsonl", [text_example(), image_example()])
    data = prepare(path, processor)
    line = refusal(path, processor, decode_images=True).split("\n")[1]
    assert line.startswith(f"{path}:2: ")
    assert "cannot be decoded" in line
    batches = loader_of(data, batch_size=4, text_fraction=0.5, bucket_batches=1)
    with pytest.raises(
        DataError, match=r"examples\.jsonl:2: .*a\.png' cannot be decoded"
    ) as caught:
        batches[0]
    assert "\n" not in str(caught.value)


def test_image_that_has_changed_since_it_was_checked(folder, processor):
    data = prepare(write_examples(folder / "examples.jsonl", [image_example()]), processor)
    write_image(folder / "a.png", 50, 40)
    with pytest.raises(DataError, match=r"examples\.jsonl:1: .* has changed its size since"):
        loader_of(data, batch_size=1)[0]


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
def test_size_from_the_start_of_a_file(kind, folder, processor):
    path = folder / kind
    path.write_bytes(KINDS[kind])
    assert image_size(str(path)) == decoded_size(str(path)) == open_image(path).size
    data = prepare(write_examples(folder / "examples.jsonl", [image_example(kind)]), processor)
    width, height = open_image(path).size
    assert data.examples[0].images[0].layout == processor.image_layout(width, height)


def test_turn_that_is_only_known_at_the_end_of_a_file(folder, processor):
    turn = chunk(b"eXIf", exif(TURNED).tobytes().removeprefix(b"Exif\0\0"))
    (folder / "late.png").write_bytes(PNG[:-12] + turn + PNG[-12:])
    path = write_examples(folder / "examples.jsonl", [image_example("late.png")])
    data = prepare(path, processor)
    assert data.examples[0].images[0].layout == processor.image_layout(*UPRIGHT.shape[1::-1])
    assert data.digest == prepare(path, processor, decode_images=True).digest
    loader_of(data, batch_size=1)[0]


def test_template_is_tried_before_examples(folder, processor):
    path = write_examples(folder / "examples.jsonl", ["{"])
    assert "template" in refusal(path, with_template(processor, "{{ 1 }}"))
    assert "examples.jsonl:1" in refusal(path, with_template(processor, CHATML))


def test_progress(folder, processor):
    path = write_mixture(
        folder,
        one=("captions", 1, [image_example()] * 3),
        two=("text", 1, [text_example()] * 2 + [""] * 3),
    )
    reported = []
    prepare(path, processor, progress=reported.append)
    size = sum((folder / name).stat().st_size for name in ("one.jsonl", "two.jsonl"))
    assert {event.total for event in reported} == {size}
    assert reported == sorted(reported)
    assert reported[-1][:4] == ("checking examples", size, size, "B")
    assert len(reported) > 5


def test_digest_depends_on_what_changes_a_batch(folder, processor):
    examples = [image_example(), text_example()]
    path = write_examples(folder / "examples.jsonl", examples)
    digest = prepare(path, processor).digest
    assert prepare(path, processor).digest == digest
    assert prepare(path, processor, max_crops=2).digest != digest
    assert prepare(path, with_template(processor, CHATML)).digest != digest
    write_examples(path, [image_example(), text_example("How do you do?")])
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
    scenes, texts = read_sources(path)
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
    "source 0 has the key 'wieght'": json.dumps({"sources": [GOOD | {"wieght": 3}]}),
    "two sources are named 'a'": json.dumps({"sources": [GOOD, GOOD]}),
}


@pytest.mark.parametrize("line", BAD_MIXTURES)
def test_bad_mixture(line, tmp_path):
    texts = BAD_MIXTURES[line]
    for content in [texts] if isinstance(texts, str) else texts:
        (tmp_path / "mixture.json").write_text(content)
        with pytest.raises(DataError) as caught:
            read_sources(tmp_path / "mixture.json")
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_mixture(tmp_path):
    with pytest.raises(JvlmError, match=r"none\.json cannot be read: No such file"):
        read_sources(tmp_path / "none.json")


def test_a_folder_has_files_as_mlx_lm_names_them(folder, processor):
    write_examples(folder / "train.jsonl", [image_example(), text_example()])
    write_examples(folder / "valid.jsonl", [text_example()])
    assert len(prepare(folder, processor).examples) == 2
    (source,) = read_sources(folder, VALIDATION_NAME)
    assert source.path == folder / "valid.jsonl"
    (folder / "train.jsonl").unlink()
    assert "train.jsonl cannot be read" in refusal(folder, processor)


def test_a_file_without_an_end_is_refused(processor, tmp_path, monkeypatch):
    monkeypatch.setattr("jvlm_mlx.training.examples.MAX_BYTES", 1000)
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    assert "endless.jsonl has a line of more than" in refusal(tmp_path / "endless.jsonl", processor)
