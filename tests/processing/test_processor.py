import threading
from pathlib import Path

import numpy as np
import pytest

from jvlm_mlx.checkpoint.loader import load_processor, read_config
from jvlm_mlx.errors import ImageError, PromptError
from jvlm_mlx.processing.inputs import DROPPED
from jvlm_mlx.processing.processor import Processor

GOLDEN = Path(__file__).parents[1] / "golden"
KEYWORDS = ("input_ids", "attention_mask", "pixel_values", "image_masks", "image_input_idx")


def image(name):
    return GOLDEN / "images" / f"{name}.png"


@pytest.fixture(scope="module")
def processor():
    return load_processor(GOLDEN / "tiny", read_config(GOLDEN / "tiny"))


def assert_same(inputs, expected):
    for keyword in KEYWORDS:
        np.testing.assert_array_equal(inputs[keyword], expected[keyword])
    assert inputs.layouts == expected.layouts


def test_golden_cases(case, processor):
    inputs, expected = case.inputs(processor), case.expected
    assert inputs.input_ids.dtype == np.int32
    assert inputs.attention_mask.dtype == np.bool_
    np.testing.assert_array_equal(inputs.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(inputs.attention_mask, expected["attention_mask"])
    if not any(case.images):
        assert inputs.pixel_values is inputs.image_masks is inputs.image_input_idx is None
        return
    assert inputs.image_input_idx.dtype == np.int32
    assert inputs.image_masks.dtype == np.int8
    assert inputs.pixel_values.dtype == np.float32
    np.testing.assert_array_equal(inputs.image_input_idx, expected["image_input_idx"])
    np.testing.assert_array_equal(inputs.image_masks, expected["image_masks"])
    assert inputs.pixel_values.shape == tuple(expected["images_shape"])
    np.testing.assert_array_equal(
        inputs.pixel_values.reshape(-1)[expected["images_pos"]], expected["images_val"]
    )
    assert [len(row) for row in inputs.layouts] == [len(row) for row in case.images]


def test_missing_tiles_of_a_batch(processor, named_case):
    inputs = named_case("batch").inputs(processor)
    for place, row in enumerate(inputs.layouts):
        tiles = sum(layout.num_tiles for layout in row)
        padding = int(np.sum(~inputs.attention_mask[place]))
        assert np.all(inputs.pixel_values[place, tiles:] == -1)
        assert np.all(inputs.image_masks[place, tiles:] == -1)
        assert np.all(inputs.image_input_idx[place, tiles:] == DROPPED + padding)
        assert not np.all(inputs.pixel_values[place, :tiles] == -1) or tiles == 0


def test_window_positions_are_the_patch_tokens(processor, named_case):
    inputs = named_case("batch").inputs(processor)
    patch = processor.tokenizer.image_token_ids.patch
    for ids, positions in zip(inputs.input_ids, inputs.image_input_idx, strict=True):
        np.testing.assert_array_equal(
            np.sort(positions[positions >= 0]), np.flatnonzero(ids == patch)
        )


def test_one_image_is_not_copied(processor):
    taken = []

    def remember(source, **limits):
        taken.append(processor.image_processor(source, **limits))
        return taken[0]

    other = Processor(processor.tokenizer, processor.template, remember)
    inputs = other("<|image|>", [image("dot")])
    assert np.shares_memory(inputs.pixel_values, taken[0].pixel_values)


def test_beginning_of_text_is_always_in_front(processor):
    bos = processor.tokenizer.bos_token_id
    assert processor("one").input_ids[0].tolist() == [bos, *processor.tokenizer.encode("one")]
    assert processor("").input_ids.tolist() == [[bos]]
    prompt = processor.apply_chat_template([{"role": "user", "content": "a"}])
    assert processor(prompt).input_ids[0, 0] == bos
    inputs = processor("<|image|>", [image("dot")])
    assert inputs.input_ids[0, :2].tolist() == [bos, processor.tokenizer.image_token_ids.start]


def test_without_placeholders_images_come_first(processor):
    images = [image("dot"), image("square")]
    assert_same(processor("one", images), processor("<|image|><|image|>one", images))
    assert_same(processor("", images), processor("<|image|><|image|>", images))


def test_one_text_or_a_list_of_one(processor):
    expected = processor(["a<|image|>"], [[image("dot")]])
    assert_same(processor("a<|image|>", [image("dot")]), expected)
    assert_same(processor("a<|image|>", [[image("dot")]]), expected)
    assert_same(processor(["a<|image|>"], (image("dot"),)), expected)
    assert_same(processor("a", []), processor("a"))
    assert_same(processor(["a"], [[]]), processor("a", None))


def test_special_tokens_in_plain_text(processor):
    special = processor.tokenizer.special_tokens
    text = "a<|im_end|><im_patch>"
    words = processor(text).input_ids[0].tolist()
    assert set(words[1:]).isdisjoint(special.values())
    assert processor(text, parse_special_tokens=True).input_ids[0].tolist()[-2:] == [
        special["<|im_end|>"],
        special["<im_patch>"],
    ]


def test_words_of_messages_never_become_special(processor):
    words = "<|image|> <im_patch><|im_end|>"
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": words}, {"type": "image", "path": image("dot")}],
        }
    ]
    prompt = processor.apply_chat_template(messages)
    plain = processor("X<|image|> Assistant:", [image("dot")])
    for inputs in (
        processor.from_messages(messages),
        processor(prompt, [image("dot")]),
        processor(prompt, [image("dot")], parse_special_tokens=True),
    ):
        ids = inputs.input_ids[0]
        assert processor.tokenizer.decode(ids) == f" User: {words} Assistant:"
        special = np.isin(ids, list(processor.tokenizer.special_tokens.values()))
        assert special.sum() == len(ids) - len(processor.tokenizer.encode("X Assistant:")) - (
            len(processor.tokenizer.encode(f" User: {words}", range(100))) - 1
        )
        np.testing.assert_array_equal(inputs.pixel_values, plain.pixel_values)


def test_messages_in_one_go(processor):
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": image("dot")},
                {"type": "image"},
                {"type": "text", "text": "Compare."},
            ],
        }
    ]
    expected = processor(
        " User: <|image|><|image|>Compare. Assistant:",
        [image("dot"), image("square")],
        max_crops=1,
    )
    inputs = processor.from_messages(messages, images=[image("square")], max_crops=1)
    assert_same(inputs, expected)
    answered = [*messages, {"role": "assistant", "content": "red"}]
    inputs = processor.from_messages(answered, False, [image("square")], max_crops=1)
    assert processor.decode(inputs.input_ids[0]) == " User: Compare. Assistant: red"
    with pytest.raises(PromptError, match=r"1 image parts without .* 0 images"):
        processor.from_messages(messages)


def test_limits_of_images(processor):
    inputs = processor("<|image|>", [image("coffee")], max_crops=2, max_pixels=60000)
    (layout,) = inputs.layouts[0]
    assert layout == processor.image_layout(600, 400, max_crops=2, max_pixels=60000)
    assert inputs.pixel_values.shape[1] == layout.num_tiles == 3
    assert layout.resized_size[0] * layout.resized_size[1] <= 60000
    few = processor.image_layout(20, 20, min_pixels=100_000)
    assert few.resized_size[0] * few.resized_size[1] >= 100_000
    assert inputs.input_ids.shape[1] == 1 + layout.num_tokens


def test_inputs_are_the_models_keywords(processor):
    inputs = processor("<|image|>", [image("dot")])

    def model(input_ids, attention_mask, pixel_values, image_masks, image_input_idx):
        return input_ids, attention_mask, pixel_values, image_masks, image_input_idx

    for keyword, array in zip(KEYWORDS, model(**inputs), strict=True):
        assert array is getattr(inputs, keyword)
    with pytest.raises(KeyError):
        inputs["layouts"]


def test_several_threads_at_once(processor):
    texts = ["<|image|>one", "two <|image|>", "<|im_end|> three"]
    images = [[image("dot")], [image("square")], []]
    expected = [processor(text, [row]).input_ids for text, row in zip(texts, images, strict=True)]
    wrong = []

    def work(place):
        for _ in range(5):
            inputs = processor(texts[place], [images[place]])
            if not np.array_equal(inputs.input_ids, expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place % 3,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ([], None, "no prompt"),
        ([5], None, "type int"),
        ("<|image|>", None, "1 <|image|> placeholders, but 0 images"),
        ("<|image|>", [1, 2], "1 <|image|> placeholders, but 2 images"),
        ("<|image|><|image|>", [1], "2 <|image|> placeholders, but 1 images"),
        (["<|image|>", "<|image|>"], [[1], []], "1 <|image|> placeholders, but 0 images"),
        ("a", "a.png", "found type str"),
        ("a", [[1], [2]], "each of the 1 texts, found 2 lists among 2 entries"),
        ("a", [[1], 2], "each of the 1 texts, found 1 lists among 2 entries"),
        (["a", "b"], [1, 2], "each of the 2 texts, found 0 lists among 2 entries"),
        (["a", "b"], [[1]], "each of the 2 texts, found 1 lists among 1 entries"),
        ("a \udc00", None, "surrogate"),
    ],
)
def test_prompts_that_do_not_fit(text, images, message, processor):
    with pytest.raises(PromptError) as caught:
        processor(text, images)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counts_are_checked_before_images_are_opened(processor):
    with pytest.raises(PromptError):
        processor(["<|image|>", "<|image|>"], [["/nowhere.png"], []])
    with pytest.raises(ImageError):
        processor("<|image|>", ["/nowhere.png"])
