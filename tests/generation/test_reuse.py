"""What is reused of earlier requests: never anything of another image, model or size."""

import string
import threading

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import jvlm_mlx
from jvlm_mlx import GenerationCaches, encode_image
from jvlm_mlx.errors import ImageError, RequestError
from jvlm_mlx.generation.model_identity import model_digest, model_key

QUESTION = "Describe this image."
OTHER = "What color is it?"


@pytest.fixture
def images(golden_folder):
    return {
        name: golden_folder / "images" / f"{name}.png"
        for name in ("shapes", "dot", "square", "wide")
    }


@pytest.fixture(scope="module")
def fresh(tiny):
    """Answer without any cache; each question once."""
    answers = {}

    def ask(prompt, images=None, **options):
        options = {"max_tokens": 8, "stop_token_ids": (), **options}
        key = repr((prompt, images, options))
        if key not in answers:
            answers[key] = jvlm_mlx.generate(*tiny, prompt, images, **options)
        return answers[key]

    return ask


def ask(tiny, prompt, images=None, **options):
    return jvlm_mlx.generate(
        *tiny, prompt, images, **{"max_tokens": 8, "stop_token_ids": (), **options}
    )


def noise(seed, width=300, height=200):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- encoded images


def test_an_encoded_image_is_used_like_the_image(tiny, images, fresh):
    encoded = encode_image(*tiny, images["shapes"])
    assert encoded.features.shape == (encoded.layout.num_patch_tokens, 64)
    assert encoded.nbytes == encoded.features.nbytes
    for question in (QUESTION, OTHER):
        result = ask(tiny, question, encoded)
        assert result.token_ids == fresh(question, images["shapes"]).token_ids
        assert result.tiles == (9,)
    content = [
        {"type": "image", "image": encoded},
        {"type": "text", "text": "and"},
        {"type": "image"},
    ]
    both = [images["shapes"], images["dot"]]
    bare = [{"type": "image"}, content[1], {"type": "image"}]
    expected = fresh([{"role": "user", "content": bare}], both)
    result = ask(tiny, [{"role": "user", "content": content}], [images["dot"]])
    assert result.token_ids == expected.token_ids


def test_features_do_not_depend_on_neighbors(tiny, images):
    """To the last bit: else what a cache holds would depend on which image came first."""
    _, processor = tiny
    alone = encode_image(*tiny, images["dot"])
    caches = GenerationCaches()
    ask(tiny, QUESTION, [images["wide"], images["dot"], images["shapes"]], caches=caches)
    among = caches.features.get(alone.model, alone.digest)
    assert mx.array_equal(alone.features, among)
    # The model's own way for a whole prompt, all tiles together, agrees but for rounding.
    inputs = processor.from_messages(
        [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}],
        images=[images["wide"], images["dot"]],
    )
    together = tiny[0].encode_images(
        inputs.pixel_values, inputs.image_masks, inputs.image_input_idx
    )
    # float32 sums of other batch sizes
    assert mx.allclose(together[-len(among) :], among, atol=1e-5)


def test_encoded_images_cross_threads(tiny, images, fresh):
    encoded, results = [], []

    def work(action):
        try:
            action()
        finally:
            mx.clear_streams()

    for action in (
        lambda: encoded.append(encode_image(*tiny, images["shapes"])),
        lambda: results.append(ask(tiny, QUESTION, encoded[0])),
    ):
        thread = threading.Thread(target=work, args=(action,))
        thread.start()
        thread.join()
    assert results[0].token_ids == fresh(QUESTION, images["shapes"]).token_ids


def test_encoded_with_limits(tiny, images, fresh):
    encoded = encode_image(*tiny, images["shapes"], max_crops=2)
    expected = fresh(QUESTION, images["shapes"], max_crops=2)
    assert ask(tiny, QUESTION, encoded).token_ids == expected.token_ids
    assert ask(tiny, QUESTION, encoded, max_crops=2).token_ids == expected.token_ids
    with pytest.raises(ImageError, match=r"shapes\.png.* max_crops 2, not 4"):
        ask(tiny, QUESTION, encoded, max_crops=4)


def test_images_of_another_model_are_refused(tiny, images, golden_folder):
    encoded = encode_image(*tiny, images["dot"])
    other, processor = jvlm_mlx.load(golden_folder / "tiny")
    with pytest.raises(ImageError, match=r"dot\.png.* by another model"):
        jvlm_mlx.stream_generate(other, processor, QUESTION, encoded)


def test_images_of_another_processor_are_refused(tiny, images, golden_folder):
    import dataclasses

    from jvlm_mlx.processing.image_processor import ImageProcessor
    from jvlm_mlx.processing.processor import Processor

    model, processor = tiny
    encoded = encode_image(model, processor, images["dot"])
    config = dataclasses.replace(processor.image_processor.config, antialias=True)
    changed = Processor(
        processor.tokenizer,
        processor.template,
        ImageProcessor(config, processor.image_processor.ids),
    )
    with pytest.raises(ImageError, match=r"antialias False, not True"):
        jvlm_mlx.stream_generate(model, changed, QUESTION, encoded)


def test_images_of_the_caller_may_change_after_the_call(tiny, fresh):
    """What is asked about is the image at the time of the call, whatever happens to it."""
    pixels = noise(0)
    image = Image.fromarray(pixels.copy())
    expected = fresh("array", noise(0)).token_ids
    for source in (pixels, image):
        responses = jvlm_mlx.stream_generate(
            *tiny, "array", source, max_tokens=8, stop_token_ids=()
        )
        if source is pixels:
            pixels[:] = 0
        else:
            image.paste(0, (0, 0, *image.size))
        assert tuple(response.token for response in responses) == expected


# --- prompts and features that have been seen


def test_a_second_question_prefills_only_what_is_new(tiny, images, fresh):
    caches = GenerationCaches()
    seen = []
    first = ask(tiny, QUESTION, images["shapes"], caches=caches)
    second = ask(tiny, OTHER, images["shapes"], caches=caches, progress=seen.append)
    assert first.token_ids == fresh(QUESTION, images["shapes"]).token_ids
    assert second.token_ids == fresh(OTHER, images["shapes"]).token_ids
    assert first.cached_tokens == 0
    assert second.cached_tokens > second.image_tokens
    assert {event.stage for event in seen} == {"prefill"}
    assert seen[0][:3] == ("prefill", second.cached_tokens, second.prompt_tokens)
    stats = caches.stats()
    assert (stats["prefixes"].hits, stats["prefixes"].misses) == (1, 1)
    # Not even looked up: what is read already needs no features.
    assert (stats["features"].hits, stats["features"].misses) == (0, 1)


def test_the_same_question_again(tiny, images, fresh):
    caches = GenerationCaches()
    for cached in (0, 164, 164):
        result = ask(tiny, QUESTION, images["shapes"], caches=caches)
        assert result.token_ids == fresh(QUESTION, images["shapes"]).token_ids
        assert result.cached_tokens == cached  # all but the last of 165


def test_a_cached_image_at_another_position_needs_no_tower(tiny, images, fresh):
    caches = GenerationCaches()
    ask(tiny, QUESTION, images["shapes"], caches=caches)
    both = [images["dot"], images["shapes"]]
    seen = []
    result = ask(tiny, QUESTION, both, caches=caches, progress=seen.append)
    assert result.token_ids == fresh(QUESTION, both).token_ids
    assert max(event.total for event in seen if event.stage == "tiles") == result.tiles[0]
    assert caches.stats()["features"].hits == 1


def one_pixel(pixels, row, column):
    changed = pixels.copy()
    changed[row, column] ^= 255
    return changed


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("other pixels", lambda _: noise(1)),
        ("first pixel", lambda pixels: one_pixel(pixels, 0, 0)),
        ("last pixel", lambda pixels: one_pixel(pixels, -1, -1)),
        # Same thumbnail but for one pixel, same first tile: only the last tile is another.
        ("same first tile", lambda pixels: np.hstack([pixels[:, :250], pixels[:, 200:250]])),
        ("mirrored", lambda pixels: pixels[:, ::-1]),
    ],
)  # fmt: skip
def test_images_of_the_same_size_share_nothing(tiny, fresh, name, change):
    pixels = noise(0)
    changed = np.ascontiguousarray(change(pixels))
    assert changed.shape == pixels.shape
    caches = GenerationCaches()
    first = ask(tiny, QUESTION, pixels, caches=caches)
    other = ask(tiny, QUESTION, changed, caches=caches)
    again = ask(tiny, QUESTION, pixels, caches=caches)
    assert (
        first.token_ids
        == again.token_ids
        == jvlm_mlx.generate(*tiny, QUESTION, pixels, max_tokens=8, stop_token_ids=()).token_ids
    )
    assert (
        other.token_ids
        == jvlm_mlx.generate(*tiny, QUESTION, changed, max_tokens=8, stop_token_ids=()).token_ids
    )
    # BOS and the text in front of the image, and nothing of the image
    assert other.cached_tokens < 8
    assert other.image_tokens > 100
    assert caches.stats()["features"].entries == 2


def test_one_image_with_other_limits_is_another(tiny, images, fresh):
    caches = GenerationCaches()
    ask(tiny, QUESTION, images["shapes"], caches=caches)
    result = ask(tiny, QUESTION, images["shapes"], caches=caches, max_crops=2)
    assert result.token_ids == fresh(QUESTION, images["shapes"], max_crops=2).token_ids
    assert result.cached_tokens < 8


def test_one_image_from_several_sources_is_one(tiny, images):
    caches = GenerationCaches()
    path = images["shapes"]
    for source in (path, path.read_bytes(), Image.open(path), np.asarray(Image.open(path))):
        ask(tiny, QUESTION, source, caches=caches, max_tokens=1)
    assert caches.stats()["features"].misses == 1


def test_two_models_share_a_cache_but_nothing_in_it(tiny, images, golden_folder, fresh):
    caches = GenerationCaches()
    other = jvlm_mlx.load(golden_folder / "tiny")
    layer = other[0].decoder.layers[0].mlp.down
    layer.weight = layer.weight * 1.5
    expected = ask(other, QUESTION, images["shapes"])
    ask(tiny, QUESTION, images["shapes"], caches=caches)
    result = ask(other, QUESTION, images["shapes"], caches=caches)
    assert result.token_ids == expected.token_ids
    assert result.cached_tokens == 0
    assert model_key(other[0]) != model_key(tiny[0])
    assert model_digest(other[0]) != model_digest(tiny[0])


@pytest.mark.parametrize("step", [1, 3, 40, 2048])
def test_any_prefill_step(tiny, images, fresh, step):
    caches = GenerationCaches()
    for question in (QUESTION, OTHER):
        result = ask(tiny, question, images["shapes"], caches=caches, prefill_step_size=step)
        assert result.token_ids == fresh(question, images["shapes"]).token_ids


def test_rotating_caches_reuse_and_store_whole_prompts(tiny, images, fresh):
    caches = GenerationCaches()
    image = images["dot"]
    # The window drops tokens of the answer; none of that may reach anybody else.
    length = fresh(OTHER, image).prompt_tokens
    options = {"max_kv_size": length + 4, "max_tokens": 12}
    for caches_of_others in (options, {}):
        ask(tiny, QUESTION, image, caches=caches, **caches_of_others)
        for question in (QUESTION, OTHER):
            result = ask(tiny, question, image, caches=caches, **options)
            assert result.token_ids == fresh(question, image, **options).token_ids
            assert result.cached_tokens > result.image_tokens
        caches.clear()
    ask(tiny, QUESTION, image, caches=caches, **options)
    plain = ask(tiny, OTHER, image, caches=caches)
    assert plain.token_ids == fresh(OTHER, image).token_ids
    assert plain.cached_tokens > plain.image_tokens


def test_quantized_caches_reuse_and_store_full_precision(quantizable, images):
    caches = GenerationCaches()
    image = images["dot"]
    options = {"kv_bits": 4, "max_tokens": 30}
    expected = {
        question: ask(quantizable, question, image, **options).token_ids
        for question in (QUESTION, OTHER)
    }
    plain = ask(quantizable, OTHER, image).token_ids
    ask(quantizable, QUESTION, image, caches=caches, **options)
    for question, tokens in expected.items():
        result = ask(quantizable, question, image, caches=caches, **options)
        assert result.token_ids == tokens
        assert result.cached_tokens > result.image_tokens
    assert ask(quantizable, OTHER, image, caches=caches).token_ids == plain


def test_penalties_see_the_whole_prompt(tiny, images, fresh):
    """Also the tokens that were reused: all of the text, which then cannot be generated."""
    alphabet = string.ascii_letters + string.punctuation
    forbidden = set(tiny[1].tokenizer.encode(alphabet))
    assert forbidden & set(fresh(alphabet, images["dot"], max_tokens=30).token_ids)
    options = {"presence_penalty": 1000.0, "repetition_context_size": 500, "max_tokens": 30}
    caches = GenerationCaches()
    for _ in range(2):
        result = ask(tiny, alphabet, images["dot"], caches=caches, **options)
        assert not forbidden & set(result.token_ids)
        assert result.token_ids == fresh(alphabet, images["dot"], **options).token_ids
    assert result.cached_tokens == result.prompt_tokens - 1


def test_sampling_is_the_same(tiny, images, fresh):
    options = {"temperature": 1.5, "seed": 4, "top_k": 50}
    caches = GenerationCaches()
    for _ in range(2):
        result = ask(tiny, QUESTION, images["dot"], caches=caches, **options)
        assert result.token_ids == fresh(QUESTION, images["dot"], **options).token_ids


def test_the_next_turn_reuses_the_last_answer(tiny, images):
    """The KV cache of the answer is reused as far as its text encodes to the same tokens."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
    caches = GenerationCaches()
    # Random weights seldom answer in a way that is spelled like that; some seed does.
    for seed in range(100):
        first = ask(tiny, [question], images["dot"], caches=caches, temperature=2.0, seed=seed)
        spelled = tiny[1].tokenizer.encode(f" {first.text}")
        if tuple(spelled[:2]) == first.token_ids[:2]:
            break
    messages = [
        question,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Go on"},
    ]
    second = ask(tiny, messages, images["dot"], caches=caches)
    assert second.cached_tokens >= first.prompt_tokens + 2
    assert second.token_ids == ask(tiny, messages, images["dot"]).token_ids


@pytest.mark.parametrize("after", [0, 3])
def test_answers_that_were_closed_early_are_reused(tiny, images, fresh, after):
    """Closed after some tokens, or cancelled during the prefill."""
    caches = GenerationCaches()
    cancel = threading.Event()

    def progress(event):
        if not after and event.stage == "prefill" and event.done >= 160:
            cancel.set()

    responses = jvlm_mlx.stream_generate(
        *tiny, QUESTION, images["shapes"], caches=caches, cancel=cancel, progress=progress,
        prefill_step_size=20, max_tokens=50, stop_token_ids=(),
    )  # fmt: skip
    for _ in range(max(after, 1)):
        next(responses)
    responses.close()
    result = ask(tiny, QUESTION, images["shapes"], caches=caches)
    assert result.token_ids == fresh(QUESTION, images["shapes"]).token_ids
    assert result.cached_tokens >= 160


def test_a_prompt_cancelled_inside_an_image_stores_nothing_of_it(tiny, images, fresh):
    caches = GenerationCaches()
    cancel = threading.Event()

    def progress(event):
        if event.stage == "prefill" and event.done >= 80:
            cancel.set()

    list(
        jvlm_mlx.stream_generate(
            *tiny, QUESTION, images["shapes"], caches=caches, cancel=cancel,
            progress=progress, prefill_step_size=20,
        )
    )  # fmt: skip
    result = ask(tiny, QUESTION, images["shapes"], caches=caches)
    assert result.cached_tokens < 8
    assert result.token_ids == fresh(QUESTION, images["shapes"]).token_ids


def test_errors_during_the_prefill_store_nothing(tiny, images):
    caches = GenerationCaches()

    def progress(event):
        if event.stage == "prefill" and event.done == event.total:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(tiny, QUESTION, images["dot"], caches=caches, progress=progress)
    assert caches.stats()["prefixes"].entries == 0


def test_threads_share_caches(tiny, images, fresh):
    caches = GenerationCaches()
    questions = [
        (question, images[name])
        for name in ("shapes", "dot", "square")
        for question in (QUESTION, OTHER)
    ]
    expected = {index: fresh(*one).token_ids for index, one in enumerate(questions)}
    found, errors = {}, []

    def work(index):
        try:
            for round_ in range(2):
                found[index, round_] = ask(tiny, *questions[index], caches=caches).token_ids
        except BaseException as error:
            errors.append(error)
        finally:
            mx.clear_streams()

    threads = [threading.Thread(target=work, args=(index,)) for index in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert found == {(index, round_): expected[index] for index in expected for round_ in (0, 1)}


def test_small_caches_evict_and_answers_stay_the_same(tiny, images, fresh):
    """Room for the KV cache of about one prompt."""
    caches = GenerationCaches(250_000)
    for _ in range(2):
        for name, image in images.items():
            result = ask(tiny, QUESTION, image, caches=caches)
            assert result.token_ids == fresh(QUESTION, image).token_ids, name
    stats = caches.stats()["prefixes"]
    assert stats.evictions > 0
    assert 0 < caches.nbytes <= 250_000


def test_no_room_at_all(tiny, images, fresh):
    caches = GenerationCaches(0)
    for _ in range(2):
        result = ask(tiny, QUESTION, images["dot"], caches=caches)
        assert result.token_ids == fresh(QUESTION, images["dot"]).token_ids
        assert result.cached_tokens == 0
    assert caches.nbytes == 0
    with pytest.raises(RequestError, match="max_bytes is -1"):
        GenerationCaches(-1)


def test_clearing_frees_the_memory(tiny, images):
    caches = GenerationCaches()
    ask(tiny, QUESTION, images["shapes"], caches=caches)
    mx.clear_cache()
    held, nbytes = mx.get_active_memory(), caches.nbytes
    assert nbytes > 100_000
    caches.clear()
    assert caches.nbytes == 0
    # Memory comes in pages.
    assert nbytes <= held - mx.get_active_memory() < nbytes + 50_000


def test_scopes_share_memory_and_nothing_else(tiny, images, fresh):
    caches = GenerationCaches()
    one, other = caches.scoped("one"), caches.scoped("other")
    for scope in (one, other):
        first = ask(tiny, QUESTION, images["shapes"], caches=scope)
        again = ask(tiny, QUESTION, images["shapes"], caches=scope)
        assert (first.cached_tokens, again.cached_tokens > 0) == (0, True)
        assert first.token_ids == again.token_ids == fresh(QUESTION, images["shapes"]).token_ids
    stats = caches.stats()
    assert (stats["features"].entries, stats["features"].hits) == (2, 0)
    assert one.nbytes == other.nbytes == caches.nbytes > 0
    one.clear()
    assert other.nbytes == 0
