"""Tiles and tokens at once from a memory budget."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from jvlm_mlx import (
    ChatSession,
    GenerationCaches,
    GenerationOptions,
    RequestError,
    batch_generate,
    encode_image,
    generate,
    stream_generate,
)
from jvlm_mlx.diagnostics.sample_model import narrow_config, random_model
from jvlm_mlx.generation.caches import LayerState
from jvlm_mlx.generation.memory import (
    MAX_TILES,
    MIN_PREFILL,
    SCORES_BYTES,
    Steps,
    choose_steps,
    kv_bytes,
    prefill_bytes,
    tile_bytes,
    weight_bytes,
)
from jvlm_mlx.generation.prompt import PromptKey
from jvlm_mlx.model.decoder import Decoder
from jvlm_mlx.model.vision import VisionTower
from jvlm_mlx.progress import ProgressEvent


def weights_of(model):
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def needed(model, prompt_tokens, answer_tokens, answers=1):
    """What is there in any case: weights, KV cache in steps of 256, four embeddings."""
    tokens = -(-(prompt_tokens + answer_tokens) // 256) * 256
    embeddings = 4 * prompt_tokens * model.config.decoder.hidden_size * 4
    return weights_of(model) + answers * kv_bytes(model.config, tokens, 4) + embeddings


def least(model, prompt_tokens):
    """For an image: one tile, or 64 tokens if those take more."""
    return max(
        SCORES_BYTES + tile_bytes(model.config, 4),
        prefill_bytes(model.config, 64, prompt_tokens, 4),
    )


def test_as_many_tiles_as_fit(tiny):
    model, _ = tiny
    one = tile_bytes(model.config, 4)
    fixed = needed(model, 100, 50) + SCORES_BYTES

    def chosen(memory, **more):
        options = GenerationOptions(max_tokens=50, max_memory=memory)
        return choose_steps(model, options, 100, has_tiles=True, **more)

    assert chosen(fixed + one).tile_group_size == 1
    assert chosen(fixed + 3 * one - 1).tile_group_size == 2
    assert chosen(fixed + 1000 * one).tile_group_size == MAX_TILES
    with pytest.raises(RequestError, match=r"one tile at a time \(0\.0\d\) need"):
        chosen(fixed + one - 1)
    # What caches hold goes first, down to one tile.
    assert chosen(fixed + 3 * one, cached_bytes=one) == Steps(2, 100, one)
    assert chosen(fixed + 3 * one, cached_bytes=9 * one) == Steps(1, 100, 2 * one)


def test_as_many_tokens_as_fit(tiny):
    model, _ = tiny
    fixed = needed(model, 1000, 24)

    def chosen(memory, tokens=1000, **options):
        options = GenerationOptions(max_tokens=24, max_memory=memory, **options)
        return choose_steps(model, options, tokens, has_tiles=False).prefill_step_size

    for step in (1000, 500, 250, 125, 64):
        assert chosen(fixed + prefill_bytes(model.config, step, 1000, 4)) == step
    with pytest.raises(RequestError, match="64 tokens at a time"):
        chosen(fixed + prefill_bytes(model.config, 64, 1000, 4) - 1)
    assert chosen(10**9, prefill_step_size=300) == 300
    # A short prompt is read at once however little it is.
    assert chosen(needed(model, 9, 24) + prefill_bytes(model.config, 9, 9, 4), 9) == 9


def test_answers_that_grow_together_count_together(tiny):
    model, _ = tiny
    options = GenerationOptions(max_tokens=50, max_memory=needed(model, 100, 50, 8) + 10**8)
    with pytest.raises(RequestError, match="KV cache of 800 answers"):
        choose_steps(model, options, 100, has_tiles=False, answers=800)
    fits = choose_steps(model, options, 100, has_tiles=False, answers=8, cached_bytes=10**9)
    alone = choose_steps(model, options, 100, has_tiles=False, cached_bytes=10**9)
    assert alone.cache_bytes - fits.cache_bytes == 7 * kv_bytes(model.config, 256, 4)


@pytest.mark.parametrize("limit", [{"max_kv_size": 500}, {"max_tokens": 400}])
def test_the_kv_cache_is_bounded(tiny, limit):
    model, _ = tiny
    assert model.config.decoder.context_size > 10_000
    enough = needed(model, 100, 400) + prefill_bytes(model.config, 100, 100, 4)
    options = {"max_tokens": 10**6, "max_memory": enough}
    with pytest.raises(RequestError, match="KV cache"):
        choose_steps(model, GenerationOptions(**options), 100, has_tiles=False)
    choose_steps(model, GenerationOptions(**{**options, **limit}), 100, has_tiles=False)


def test_without_a_budget_steps_are_as_asked(tiny):
    options = GenerationOptions(tile_group_size=7, prefill_step_size=33)
    assert choose_steps(tiny[0], options, 100, has_tiles=True) == Steps(7, 33, None)


def test_a_gpu_has_a_limit_of_its_own_above_which_there_is_a_warning(tiny, monkeypatch, caplog):
    def steps_with(recommended):
        caplog.clear()
        info = {"max_recommended_working_set_size": recommended}
        monkeypatch.setattr(mx, "device_info", lambda: info)
        return choose_steps(tiny[0], GenerationOptions(), 100, has_tiles=True, cached_bytes=50)

    assert steps_with(10**9) == Steps(4, 100, 50)
    assert caplog.messages == []
    assert steps_with(weight_bytes(tiny[0])) == Steps(1, MIN_PREFILL, 0)
    (warning,) = caplog.messages
    assert warning.startswith("this may be slow or fail: this GPU should use at most")
    assert "allow more, or take a model of fewer bits" in warning


def test_what_the_tower_needed_is_free_before_the_prompt(tiny, golden_folder, monkeypatch):
    events = []

    def watch(owner, name, event):
        whole = getattr(owner, name)

        def watched(*arguments, **options):
            events.append(event)
            return whole(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(VisionTower, "__call__", "tower")
    watch(Decoder, "__call__", "decoder")
    watch(mx, "clear_cache", "clear")
    options = {"max_tokens": 1, "stop_token_ids": ()}
    generate(*tiny, "What?", golden_folder / "images" / "dot.png", **options)
    assert events[-3:] == ["clear", "decoder", "clear"]
    assert set(events[:-3]) == {"tower"}
    events.clear()
    generate(*tiny, "What?", **options)
    assert events == ["decoder", "clear"]


def test_a_tight_budget_is_kept_and_does_not_change_the_answer(tiny, golden_folder):
    model, processor = tiny
    arguments = "What is this?", golden_folder / "images" / "wide.png"
    whole = generate(model, processor, *arguments, max_tokens=8)
    tight = needed(model, whole.prompt_tokens, 8) + least(model, whole.prompt_tokens)
    stages = []
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    found = generate(
        model, processor, *arguments, max_tokens=8, max_memory=tight,
        progress=stages.append,
    )  # fmt: skip
    assert weights_of(model) + mx.get_peak_memory() - before <= tight
    assert found.token_ids == whole.token_ids
    assert stages.count(ProgressEvent("tiles", 1, whole.tiles[0], "tile")) == 1  # one at a time
    with pytest.raises(RequestError, match="max_memory"):
        generate(model, processor, *arguments, max_tokens=8, max_memory=tight - 1)


def test_a_tight_budget_reads_the_prompt_in_small_steps(tiny):
    model, processor = tiny
    prompt = "What is the capital of France? " * 20
    whole = generate(model, processor, prompt, max_tokens=4)
    tokens = whole.prompt_tokens
    tight = needed(model, tokens, 4) + prefill_bytes(model.config, 64, tokens, 4)
    stages = []
    found = generate(
        model, processor, prompt, max_tokens=4, max_memory=tight,
        progress=stages.append,
    )  # fmt: skip
    assert [stage[1] for stage in stages][:3] == [0, 64, 128]
    assert found.token_ids == whole.token_ids


def test_what_cannot_fit_is_refused_before_any_work(tiny, golden_folder):
    image = golden_folder / "images" / "wide.png"
    for images in (None, image):
        with pytest.raises(RequestError, match=r"max_memory is 0\.00 GB"):
            stream_generate(*tiny, "What is this?", images, max_memory=1000)
        with pytest.raises(RequestError, match=r"max_memory is 0\.00 GB"):
            ChatSession(*tiny).ask("What is this?", images, max_memory=1000)
    requests = [{"prompt": "a", "max_memory": 1000}, {"prompt": "b", "max_tokens": 2}]
    refused, answered = batch_generate(*tiny, requests, batch_size=3)
    assert "KV cache of 3 answers" in refused.error
    assert answered.result.generation_tokens == 2


def test_images_that_are_encoded_already_need_no_tower(tiny, golden_folder):
    model, processor = tiny
    image = encode_image(model, processor, golden_folder / "images" / "wide.png")
    tokens = generate(model, processor, "What?", image, max_tokens=1).prompt_tokens
    enough = needed(model, tokens, 4) + prefill_bytes(model.config, 64, tokens, 4)
    assert enough < weights_of(model) + SCORES_BYTES
    generate(model, processor, "What?", image, max_tokens=4, max_memory=enough)


def test_a_conversation_counts_all_that_was_said(tiny, golden_folder):
    model, processor = tiny
    first = ChatSession(model, processor, max_tokens=4, stop_token_ids=())
    image = golden_folder / "images" / "wide.png"
    (*_, last) = first.ask("What is this?", image)
    tight = needed(model, last.prompt_tokens, 4) + least(model, last.prompt_tokens)
    session = ChatSession(model, processor, max_tokens=4, stop_token_ids=(), max_memory=tight)
    stages = []
    answer = session.ask("What is this?", image, progress=stages.append)
    assert [response.token for response in answer][-1] == last.token
    assert ProgressEvent("tiles", 1, last.tiles[0], "tile") in stages  # one at a time
    with pytest.raises(RequestError, match="max_memory"):
        session.ask("And this? " * 20, image)
    assert len(session.history) == 2


@pytest.mark.parametrize("fraction", [0.5, 0])
def test_caches_make_room_and_what_they_hold_is_still_used(tiny, golden_folder, fraction):
    model, processor = tiny
    image = golden_folder / "images" / "wide.png"
    options = {"max_tokens": 4, "stop_token_ids": ()}
    fresh = generate(model, processor, "Is it old?", image, **options)
    caches = GenerationCaches()
    for question in ("Who?", "Why?", "What is this?"):
        generate(model, processor, question, image, caches=caches, **options)
    before = caches.stats()
    # Nothing is left to be encoded, but that shows only when the caches are searched.
    fixed = needed(model, fresh.prompt_tokens, 4) + least(model, fresh.prompt_tokens)
    room = int(fraction * before["prefixes"].nbytes)
    found = generate(
        model, processor, "Is it old?", image, caches=caches, max_memory=fixed + room, **options
    )
    assert found.token_ids == fresh.token_ids
    assert found.cached_tokens > fresh.image_tokens
    after = caches.stats()
    assert after["prefixes"].evictions > before["prefixes"].evictions
    # The answer's own KV cache, which was counted, may stay.
    own = kv_bytes(model.config, -(-(fresh.prompt_tokens + 4) // 256) * 256, 4)
    assert caches.nbytes <= room + own


def test_the_formula_of_tiles_covers_what_is_measured():
    small = narrow_config()
    block = dataclasses.replace(
        small.tower.block, mlp=dataclasses.replace(small.tower.block.mlp, intermediate_size=1152)
    )
    config = dataclasses.replace(
        small, tower=dataclasses.replace(small.tower, block=block, image_size=(252, 252))
    )
    tower = random_model(config).vision_tower
    peaks = {}
    for tiles in (1, 2):
        shape = (tiles, config.tower.num_patches, config.tower.patch_values)
        pixels = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(tower(mx.array(pixels)))
        peaks[tiles] = mx.get_peak_memory() - before
    bound = tile_bytes(config, 4)
    assert all(peak <= SCORES_BYTES + tiles * bound for tiles, peak in peaks.items())
    # A bound that allowed ten times as much would waste what it is to use.
    assert peaks[2] - peaks[1] >= 0.25 * bound


@pytest.mark.parametrize(
    ("nbytes", "prompts", "features"),
    [(512, 2, 2), (511, 1, 2), (256, 0, 2), (255, 0, 1), (0, 0, 0)],
)
def test_caches_shrink_as_a_whole(nbytes, prompts, features):
    caches = GenerationCaches()
    array = mx.zeros((1, 1, 4, 8))  # 128 bytes
    key = PromptKey.of([1, 2, 3, 4], [])
    for model in ("one", "other"):
        caches.features.put(model, "image", array[0, 0])
        caches.prefixes.insert(model, key, [LayerState(array[..., :4], array[..., 4:])])
    kept = [entry.nbytes for entry in caches.stats().values()]
    assert kept == [256, 256]
    caches.shrink(nbytes)
    stats = caches.stats()
    assert (stats["prefixes"].entries, stats["features"].entries) == (prompts, features)
    assert caches.nbytes <= nbytes


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("step", "tokens"), [(64, 256), (128, 512), (512, 512)])
def test_the_formula_of_the_prompt_covers_what_is_measured(dtype, step, tokens):
    model = random_model(narrow_config(), dtype)
    embeddings = mx.random.normal((1, tokens, 256), key=mx.random.key(0)).astype(dtype)
    cache = model.make_cache()
    mx.eval(embeddings)
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for start in range(0, tokens, step):
        model.decoder(embeddings[:, start : start + step], cache)
        mx.eval([layer.state for layer in cache])
    peak = mx.get_peak_memory() - before - kv_bytes(model.config, tokens, dtype.size)
    bound = prefill_bytes(model.config, step, tokens, dtype.size)
    # A bound that allowed several times as much would waste what it is to use.
    assert 0.4 * bound <= peak <= bound
