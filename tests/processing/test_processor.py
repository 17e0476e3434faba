import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from jvlm_mlx.checkpoint.loader import load_processor, read_config
from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.errors import ImageError, PromptError, RequestError
from jvlm_mlx.processing import image_processor
from jvlm_mlx.processing.image_io import open_image
from jvlm_mlx.processing.inputs import DROPPED, collate

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


def test_one_image_is_not_copied(processor, monkeypatch):
    made = []
    cut_tiles = image_processor.cut_tiles

    def note(*arguments):
        made.append(cut_tiles(*arguments))
        return made[0]

    monkeypatch.setattr(image_processor, "cut_tiles", note)
    inputs = processor("<|image|>", [image("dot")])
    assert np.shares_memory(inputs.pixel_values, made[0])


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


def test_images_bare_in_a_list_or_nested(processor):
    expected = processor(["a<|image|>"], [[image("dot")]])
    dot = open_image(image("dot"))
    for bare in (image("dot"), str(image("dot")), image("dot").read_bytes(), dot, np.asarray(dot)):
        assert_same(processor(images=bare, text="a<|image|>", padding=True), expected)
    several = processor(["a<|image|>", "b"], [[image("dot")], [image("square")]])
    assert_same(processor(["a<|image|>", "b"], [image("dot"), image("square")]), several)
    assert_same(processor(["a<|image|>", "b"], (image("dot"), image("square"))), several)
    assert_same(processor("a<|image|>", [image("dot")]), expected)
    assert_same(processor("a<|image|>", [[image("dot")]]), expected)
    assert_same(processor(["a<|image|>"], (image("dot"),)), expected)
    assert_same(processor("a", []), processor("a"))
    assert_same(processor(["a"], [[]]), processor("a", None))


def test_images_before_text_as_in_transformers(processor):
    expected = processor(["a<|image|>", "b"], [image("dot"), image("square")])
    dot, square = open_image(image("dot")), open_image(image("square"))
    assert_same(processor([dot, square], ["a<|image|>", "b"]), expected)
    one = processor("a<|image|>", image("dot"))
    for first in (dot, np.asarray(dot), [dot], [[dot]], image("dot"), image("dot").read_bytes()):
        assert_same(processor(first, "a<|image|>"), one)
    # Two strings may be anything, so they are what the signature says.
    with pytest.raises(ImageError, match="'a' cannot be opened"):
        processor(str(image("dot")), "a")


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        (5, None, "a prompt must be a text, found type int"),
        ([5], None, "a prompt must be a text, found type int"),
        ([{"role": "user", "content": "a"}], "a.png", "a prompt must be a text, found type dict"),
        (image("dot"), None, "there is no text"),
        (image("dot"), image("dot"), "a prompt must be a text, found type PosixPath"),
        (np.zeros((4, 4, 3)), None, "there is no text"),
    ],
)
def test_what_is_no_text_is_one_line(processor, text, images, message):
    with pytest.raises(PromptError, match=message):
        processor(text, images)


def test_special_tokens_in_plain_text(processor):
    special = processor.tokenizer.special_tokens
    text = "a<|im_end|><im_patch>"
    ids = processor(text).input_ids[0].tolist()
    assert set(ids[1:]).isdisjoint(special.values())
    assert processor(text, parse_special_tokens=True).input_ids[0].tolist()[-2:] == [
        special["<|im_end|>"],
        special["<im_patch>"],
    ]


def test_text_of_messages_never_become_special(processor):
    text = "<|image|> <im_patch><|im_end|>"
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": text}, {"type": "image", "path": image("dot")}],
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
        assert processor.tokenizer.decode(ids) == f" User: {text} Assistant:"
        special = np.isin(ids, list(processor.tokenizer.special_tokens.values()))
        assert special.sum() == len(ids) - len(processor.tokenizer.encode("X Assistant:")) - (
            len(processor.tokenizer.encode(f" User: {text}", range(100))) - 1
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
        (None, "a.png", "there is no text"),
        ("<|image|><|image|>", "a.png", "2 <|image|> placeholders, but 1 images"),
        ("a", [[1], [2]], "each of the 1 texts, found 2 lists among 2 entries"),
        ("a", [[1], 2], "each of the 1 texts, found 1 lists among 2 entries"),
        (["a", "b"], [1, 2, 3], "each of the 2 texts, found 0 lists among 3 entries"),
        (["a", "b"], 1, "each of the 2 texts, found 0 lists among 1 entries"),
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


def test_arrays_of_another_library(processor):
    expected = processor("<|image|>", image("dot"))
    inputs = processor(images=image("dot"), text="<|image|>", return_tensors="mlx")
    for keyword in (*KEYWORDS, "images"):
        assert isinstance(inputs[keyword], mx.array)
        np.testing.assert_array_equal(np.array(inputs[keyword]), expected[keyword])
    assert inputs.images is inputs.pixel_values
    assert expected["images"] is expected.images is expected.pixel_values
    assert_same(processor("<|image|>", image("dot"), return_tensors="np"), expected)
    assert processor("a", return_tensors="mlx").pixel_values is None
    with pytest.raises(RequestError, match="return_tensors is 'pt'; expected 'mlx' or 'np'"):
        processor("a", return_tensors="pt")


def test_padding(processor):
    assert processor(["a", "b b"], padding="longest").input_ids.shape[0] == 2
    assert processor(["a", "a"], padding=False).input_ids.shape[0] == 2
    with pytest.raises(PromptError, match="differ in length; padding must be True"):
        processor(["a", "b b"], padding=False)


def test_templates_as_text_tokens_or_inputs(processor):
    def message(*content):
        return [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]

    own = message({"type": "image", "image": image("dot")})
    text = processor.apply_chat_template(own, tokenize=False, add_generation_prompt=True)
    assert text == " User: <|image|>What? Assistant:"
    expected = processor(text, image("dot"))
    inputs = processor.apply_chat_template(own, tokenize=True, return_dict=True)
    assert_same(inputs, expected)
    bare = message({"type": "image"})
    given = {"tokenize": True, "return_dict": True, "images": image("dot")}
    assert_same(processor.apply_chat_template(bare, **given), expected)
    ids = expected.input_ids
    assert processor.apply_chat_template(own, tokenize=True) == ids[0].tolist()
    for library in ("np", "mlx"):
        inputs = processor.apply_chat_template(
            own, tokenize=True, return_dict=True, return_tensors=library
        )
        np.testing.assert_array_equal(np.array(inputs.pixel_values), expected.pixel_values)
        found = processor.apply_chat_template(own, tokenize=True, return_tensors=library)
        assert isinstance(found, np.ndarray if library == "np" else mx.array)
        np.testing.assert_array_equal(np.array(found), ids)
    smaller = processor.apply_chat_template(own, tokenize=True, return_dict=True, max_crops=1)
    assert_same(smaller, processor(text, image("dot"), max_crops=1))


def test_decoding_many(processor):
    ids = processor(["a", "b b"]).input_ids
    assert processor.batch_decode(ids) == [processor.decode(row) for row in ids] == ["a", "b b"]
    assert processor.decode(mx.array(ids[0])) == "a"
    special = processor("a<|image|>", image("dot")).input_ids[0]
    assert processor.decode(special, skip_special_tokens=False).startswith("<|")


def test_image_options(processor):
    options = ImageOptions(max_crops=1)
    expected = processor("a", image("coffee"), max_crops=1)
    assert_same(processor("a", image("coffee"), options=options), expected)
    both = processor("a", image("coffee"), options=options, max_pixels=60_000)
    assert_same(both, processor("a", image("coffee"), max_crops=1, max_pixels=60_000))
    with pytest.raises(RequestError, match="there is no image option 'max_crop'; known: max_crops"):
        processor("a", image("coffee"), max_crop=1)


def test_a_question_is_rendered(processor):
    prepared = processor.prepare("What?", [image("dot")])
    assert_same(prepared.inputs, processor(" User: <|image|>What? Assistant:", image("dot")))
    with_system = processor.prepare("What?", system="Be brief.")
    assert_same(with_system.inputs, processor(" System: Be brief. User: What? Assistant:"))
    text = processor.apply_chat_template([{"role": "user", "content": "What?"}])
    assert_same(processor.prepare(text).inputs, processor(text))
    with pytest.raises(PromptError, match="rendered already"):
        processor.prepare(text, system="Be brief.")


@pytest.mark.parametrize("prompt", [None, 5, {}, b"a", []])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_what_is_no_prompt(prompt, system, processor):
    with pytest.raises(PromptError):
        processor.prepare(prompt, system=system)


def test_a_prompt_that_has_been_rendered_already_is_noticed(processor, caplog):
    text = processor.apply_chat_template([{"role": "user", "content": "What?"}])
    processor.prepare(text)
    processor.prepare("What?")
    assert not caplog.records
    processor.prepare(text.strip())
    assert "looks rendered already" in caplog.text


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_decoded(processor, monkeypatch):
    monkeypatch.setattr(image_processor.OpenedImage, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(PromptError, match=r"\d+ tokens, \d+ of them for images, and"):
        processor.prepare("What?", [image("dot")] * 3, context_size=20)


def test_opening_images_can_be_canceled(processor):
    cancel = threading.Event()
    cancel.set()
    processor.prepare("What?", cancel=cancel)
    with pytest.raises(RequestError, match="canceled"):
        processor.prepare("What?", image("dot"), cancel=cancel)


def test_right_padding(processor):
    prompts = [processor.prepare("a", image("dot")), processor.prepare("b b b b b b")]
    left, right = collate(prompts), collate(prompts, padding_side="right", padding_token=7)
    for one, other, mask in zip(left.input_ids, right.input_ids, left.attention_mask, strict=True):
        length = int(mask.sum())
        np.testing.assert_array_equal(one[-length:], other[:length])
        assert (other[length:] == 7).all()
    np.testing.assert_array_equal(left.pixel_values, right.pixel_values)
    shifts = (~left.attention_mask).sum(axis=1)[:, None, None]
    kept = left.image_input_idx >= 0
    assert (kept == (right.image_input_idx >= 0)).all()
    np.testing.assert_array_equal(
        (left.image_input_idx - shifts)[kept], right.image_input_idx[kept]
    )
    assert collate(prompts, pad_to_multiple=64).input_ids.shape[1] % 64 == 0


def test_inputs_of_either_library_are_the_models_arguments(tiny):
    model, processor = tiny
    expected = model(**processor("<|image|>", image("dot")))
    logits = model(**processor("<|image|>", image("dot"), return_tensors="mlx"))
    assert mx.array_equal(logits, expected)


def test_token_ids_beyond_any_model(processor, monkeypatch):
    monkeypatch.setattr(processor.tokenizer, "encode", lambda *_, **__: [3, 2**31])
    with pytest.raises(PromptError, match="the tokenizer has a token 2147483648"):
        processor("a")


def test_a_text_that_is_too_long_is_refused_before_it_is_encoded(processor, monkeypatch):
    tokenizer = processor.tokenizer
    assert not tokenizer.is_longer("a" * 10_000, 10_000)
    monkeypatch.setattr(tokenizer, "_encode_text", lambda _: pytest.fail("encoded"))
    with pytest.raises(PromptError, match="characters, more than the model's context of 100"):
        processor.prepare("b" * 10**6, context_size=100)
