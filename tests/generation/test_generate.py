"""Generation: mlx-lm's machinery with this model, and the hazards between the two."""

import json
import shutil
import threading
import time
from contextlib import closing

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

import jvlm_mlx
from jvlm_mlx.errors import JvlmError, PromptError, RequestError
from jvlm_mlx.generation import device, image_encoding
from jvlm_mlx.generation.options import GenerationOptions
from jvlm_mlx.generation.sampling import make_processors, make_sampler, text_tokens

QUESTION = "Describe this image."


@pytest.fixture
def edited(tmp_path, golden_folder):
    """Load the small checkpoint with another config.json."""

    def load(change):
        folder = tmp_path / "edited"
        shutil.copytree(golden_folder / "tiny", folder)
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        return jvlm_mlx.load(folder)

    return load


@pytest.fixture
def shapes(golden_folder):
    return golden_folder / "images" / "shapes.png"


def answer(tiny, images=None, prompt=QUESTION, **options):
    options.setdefault("stop_token_ids", ())
    options.setdefault("max_tokens", 24)
    return jvlm_mlx.generate(*tiny, prompt, images, **options)


def test_answers_are_the_references(tiny, named_case, shapes):
    """From a path and text to tokens: the template, the image and all 24 golden tokens."""
    result = answer(tiny, shapes)
    expected = named_case("shapes").expected
    assert result.token_ids == tuple(expected["greedy_tokens"][0].tolist())
    assert result.prompt_tokens == expected["input_ids"].shape[1]
    assert result.finish_reason == "length"
    assert result.tiles == (9,)
    assert result.image_tokens == np.count_nonzero(expected["input_ids"] >= 512)


def test_text_alone(tiny, named_case):
    result = answer(tiny, prompt="What is the capital of France?")
    expected = named_case("text_only").expected["greedy_tokens"][0]
    assert result.token_ids == tuple(expected.tolist())
    assert (result.tiles, result.image_tokens) == ((), 0)


def test_messages_place_images(tiny, named_case, golden_folder):
    content = [
        {"type": "image"},
        {"type": "text", "text": "Describe"},
        {"type": "image"},
        {"type": "text", "text": " this."},
    ]
    images = [golden_folder / "images" / f"{name}.png" for name in ("shapes", "dot")]
    result = answer(tiny, images, [{"role": "user", "content": content}])
    expected = named_case("two_images").expected["greedy_tokens"][0]
    assert result.token_ids == tuple(expected.tolist())


def test_rendered_prompts_are_taken_as_they_are(tiny, named_case, shapes):
    _, processor = tiny
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    )
    assert answer(tiny, shapes, rendered).token_ids == answer(tiny, shapes).token_ids
    with pytest.raises(PromptError, match="system"):
        answer(tiny, shapes, rendered, system="Be brief.")


def test_system_message_goes_in_front(tiny):
    plain = answer(tiny, prompt="Hi")
    with_system = answer(tiny, prompt="Hi", system="Be brief.")
    assert with_system.prompt_tokens > plain.prompt_tokens


def test_responses_add_up_to_the_whole(tiny, shapes):
    responses = list(
        jvlm_mlx.stream_generate(*tiny, QUESTION, shapes, max_tokens=24, stop_token_ids=())
    )
    whole = answer(tiny, shapes)
    assert tuple(response.token for response in responses) == whole.token_ids
    assert "".join(response.text for response in responses) == whole.text
    assert [response.generation_tokens for response in responses] == list(range(1, 25))
    assert {response.finish_reason for response in responses[:-1]} == {None}
    last = responses[-1]
    assert last.first_token_seconds > last.image_seconds > 0
    assert last.prompt_tps > 0
    assert last.generation_tps > 0
    assert last.peak_memory > 0


@pytest.mark.parametrize("step", [1, 50, 164, 165, 4096])
def test_prefill_in_chunks_changes_nothing(tiny, shapes, step):
    assert answer(tiny, shapes, prefill_step_size=step).token_ids == answer(tiny, shapes).token_ids


@pytest.mark.parametrize("group", [1, 3, 100])
def test_tile_groups_change_nothing(tiny, shapes, group, monkeypatch):
    expected = answer(tiny, shapes).token_ids
    monkeypatch.setattr(image_encoding, "CPU_TILE_GROUP_SIZE", 100)
    assert answer(tiny, shapes, tile_group_size=group).token_ids == expected


# --- how an answer ends


@pytest.mark.parametrize("index", [0, 5])
def test_every_stop_id_ends_the_answer(tiny, shapes, index):
    tokens = answer(tiny, shapes).token_ids
    stop = tokens[index]
    result = answer(tiny, shapes, stop_token_ids=[stop])
    assert result.token_ids == tokens[: tokens.index(stop) + 1]
    assert result.finish_reason == "stop"


def test_both_stop_ids_of_the_checkpoint_are_read(tiny):
    assert tiny[1].tokenizer.stop_token_ids == {510, 511}


def test_stop_texts_end_the_answer_and_are_left_out(tiny, shapes):
    text = answer(tiny, shapes, max_tokens=200).text
    assert len(text) > 30
    for start, length in ((4, 3), (9, 6), (0, 2)):
        stop = text[start : start + length]
        result = answer(tiny, shapes, max_tokens=200, stop=["never said", stop])
        assert result.text == text[: text.index(stop)]
        assert result.finish_reason == "stop"


def test_text_that_only_begins_like_a_stop_text_is_kept(tiny, shapes):
    text = answer(tiny, shapes, max_tokens=200).text
    assert answer(tiny, shapes, max_tokens=200, stop=[text[-3:] + "no"]).text == text


def test_characters_split_over_tokens_arrive_whole(tiny, monkeypatch):
    """A byte-level vocabulary spells most of these characters in several tokens."""
    from jvlm_mlx.generation.response import StreamedText

    _, processor = tiny
    sentence = "日本語 · naïve · Ελληνικά · 🙂👩‍👩‍👧 · العربية"
    tokens = processor.tokenizer.encode(sentence)
    assert len(tokens) > len(sentence)
    text = StreamedText(processor.tokenizer, ())
    segments = [text.add(token) for token in tokens] + [text.finish()]
    assert "".join(segments) == sentence
    assert not any("\ufffd" in segment for segment in segments)


@pytest.mark.parametrize(("context", "tokens"), [(170, 5), (166, 1), (165, None)])
def test_context_is_a_limit(edited, shapes, context, tokens):
    """A prompt of 165 tokens and its answer share the context."""
    loaded = edited(lambda config: config["text_config"].update(max_sequence_length=context))
    if tokens is None:
        with pytest.raises(PromptError, match=r"165 tokens.* context of 165"):
            answer(loaded, shapes)
        return
    result = answer(loaded, shapes)
    assert (result.prompt_tokens, result.generation_tokens) == (165, tokens)
    assert result.finish_reason == "length"


# --- the KV cache


def test_rotating_equals_plain_until_something_is_dropped(tiny, shapes):
    plain = answer(tiny, shapes, max_tokens=60)
    for spare in (60, 100):
        window = plain.prompt_tokens + spare
        assert answer(tiny, shapes, max_tokens=60, max_kv_size=window).token_ids == plain.token_ids


class ForgetfulCache(KVCache):
    """What a rotating cache should be, in the plainest way: a list that loses its oldest answer."""

    def __init__(self, keep, max_size):
        super().__init__()
        self.keep, self.max_size = keep, max_size

    def update_and_fetch(self, keys, values):
        if self.keys is not None:
            if self.keys.shape[2] == self.max_size:
                self.keys, self.values = (
                    mx.concatenate([a[:, :, : self.keep], a[:, :, self.keep + 1 :]], axis=2)
                    for a in (self.keys, self.values)
                )
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.offset += keys.shape[2] - (0 if self.keys is None else self.keys.shape[2])
        self.keys, self.values = keys, values
        return keys, values


def test_rotating_window_keeps_prompt_and_recent_tokens(tiny, named_case):
    model, processor = tiny
    case = named_case("shapes")
    inputs = case.inputs(processor)
    length = inputs.input_ids.shape[1]
    result = answer(tiny, case.images[0], max_tokens=80, max_kv_size=length + 4)
    assert result.token_ids != answer(tiny, case.images[0], max_tokens=80).token_ids
    cache = [ForgetfulCache(length, length + 4) for _ in model.layers]
    logits = model(**inputs, cache=cache)
    for token in result.token_ids:
        assert mx.argmax(logits[0, -1]).item() == token
        logits = model(np.array([[token]]), cache=cache)
    assert cache[0].keys.shape[2] == length + 4
    assert cache[0].offset == length + 80


def test_window_too_small_for_the_prompt(tiny, shapes):
    with pytest.raises(PromptError, match="max_kv_size is 165, but the prompt has 165 tokens"):
        answer(tiny, shapes, max_kv_size=165)


def test_quantized_cache_really_starts(quantizable):
    model, _ = quantizable
    caches = []
    make_cache = type(model).make_cache

    def note(self, *arguments):
        caches.append(make_cache(self, *arguments))
        return caches[-1]

    type(model).make_cache = note
    try:
        result = answer(quantizable, prompt="one two three", kv_bits=8, max_tokens=8)
    finally:
        type(model).make_cache = make_cache
    assert type(caches[0][0]).__name__ == "QuantizedKVCache"
    plain = answer(quantizable, prompt="one two three", max_tokens=8)
    # The prompt is read at full precision, so the first token cannot differ.
    assert result.token_ids[0] == plain.token_ids[0]
    coarse = answer(quantizable, prompt="one two three", kv_bits=2, max_tokens=40)
    assert coarse.token_ids != answer(quantizable, prompt="one two three", max_tokens=40).token_ids


def test_heads_that_cannot_be_quantized_are_refused(tiny):
    with pytest.raises(RequestError, match="head of 16 values"):
        answer(tiny, kv_bits=4)


# --- sampling


def test_seeds_repeat_and_leave_the_process_alone(tiny, shapes):
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(5)
    first = answer(tiny, shapes, temperature=1.5, seed=3)
    assert mx.random.uniform(shape=(4,)).tolist() == expected
    assert answer(tiny, shapes, temperature=1.5, seed=3).token_ids == first.token_ids
    assert answer(tiny, shapes, temperature=1.5, seed=4).token_ids != first.token_ids
    assert answer(tiny, shapes, temperature=1.5).token_ids != first.token_ids


def test_filters_leave_only_likely_tokens():
    probabilities = mx.array([[0.5, 0.3, 0.15, 0.05]])
    for options, allowed in (
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.7}, {0, 1}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({}, {0, 1, 2, 3}),
    ):
        sampler = make_sampler(GenerationOptions(temperature=1.0, seed=0, **options))
        drawn = {int(sampler(mx.log(probabilities)).item()) for _ in range(200)}
        assert drawn == allowed, options


def test_penalties_never_see_image_tokens():
    """Ids of images have no logits; looked up, they would read and write foreign memory."""
    prompt = np.array([511, 7, *range(512, 560), 9])
    options = GenerationOptions(presence_penalty=1.0, repetition_context_size=4)
    (penalty,) = make_processors(options)
    first = text_tokens(prompt, vocab_size=512)
    then = mx.concatenate([first, mx.array([3])])
    for given, expected in ((first, [7, 9, 511]), (then, [3, 7, 9, 511])):
        changed = np.flatnonzero(np.array(penalty(given, mx.zeros((1, 512)))))
        assert changed.tolist() == expected


def test_penalties_with_images_work_and_matter(tiny, shapes):
    plain = answer(tiny, shapes)
    for penalty in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        strength = 50.0 if penalty != "repetition_penalty" else 5.0
        penalized = answer(tiny, shapes, **{penalty: strength, "repetition_context_size": 40})
        assert len(set(penalized.token_ids)) > len(set(plain.token_ids))


# --- inside an app


def test_closing_stops_the_work_and_frees_the_cache(tiny, shapes):
    mx.clear_cache()
    before = mx.get_active_memory()
    answers = jvlm_mlx.stream_generate(*tiny, QUESTION, shapes, max_tokens=10_000)
    next(answers)
    next(answers)
    assert mx.get_active_memory() > before
    answers.close()
    device.synchronize()
    assert mx.get_active_memory() <= before
    assert list(answers) == []


def test_cancel_flag_stops_within_one_token(tiny, shapes):
    cancel = threading.Event()
    responses = []
    for response in jvlm_mlx.stream_generate(
        *tiny, QUESTION, shapes, max_tokens=10_000, cancel=cancel, stop_token_ids=()
    ):
        responses.append(response)
        if len(responses) == 3:
            cancel.set()
    assert [response.token is None for response in responses] == [False, False, False, True]
    assert responses[-1].finish_reason == "cancelled"
    assert responses[-1].generation_tokens == 3


@pytest.mark.parametrize(("stage", "after"), [("tiles", 2), ("prefill", 20)])
def test_cancel_flag_stops_before_the_first_token(tiny, shapes, stage, after):
    cancel = threading.Event()
    seen = []

    def progress(event):
        seen.append(event)
        if event.stage == stage and event.done >= after:
            cancel.set()

    (response,) = jvlm_mlx.stream_generate(
        *tiny, QUESTION, shapes, cancel=cancel, progress=progress,
        tile_group_size=2, prefill_step_size=20,
    )  # fmt: skip
    assert (response.token, response.finish_reason) == (None, "cancelled")
    assert response.generation_tokens == 0
    assert seen[-1][:3] == (stage, after, {"tiles": 9, "prefill": 165}[stage])


def test_a_cpu_shows_and_stops_between_tiles(tiny, shapes):
    if mx.default_device().type != mx.cpu:
        pytest.skip("a GPU takes several tiles at once")
    cancel = threading.Event()
    seen = []

    def progress(event):
        seen.append(event[:3])
        if event.done == 1:
            cancel.set()

    (response,) = jvlm_mlx.stream_generate(
        *tiny, QUESTION, shapes, cancel=cancel, progress=progress
    )
    assert response.finish_reason == "cancelled"
    assert seen == [("tiles", 0, 9), ("tiles", 1, 9)]


def test_progress_reaches_the_end(tiny, shapes):
    seen = {}
    answer(
        tiny, shapes, max_tokens=1, prefill_step_size=64,
        progress=lambda event: seen.setdefault(event.stage, []).append(event[1:3]),
    )  # fmt: skip
    step = 1 if mx.default_device().type == mx.cpu else 4
    assert seen["tiles"] == [*((done, 9) for done in range(0, 9, step)), (9, 9)]
    assert seen["prefill"] == [(0, 165), (64, 165), (128, 165), (165, 165)]


def test_threads_do_not_disturb_each_other(tiny, golden_folder):
    """Loaded in this thread, asked from others at once: the same answers as alone."""
    names = ("shapes", "dot", "square")
    images = {name: golden_folder / "images" / f"{name}.png" for name in names}
    alone = {name: answer(tiny, images[name]).token_ids for name in names}
    together, errors = {}, []

    def ask(name):
        try:
            for round_ in range(2):
                together[name, round_] = answer(tiny, images[name]).token_ids
        except BaseException as error:
            errors.append(error)
        finally:
            mx.clear_streams()

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert together == {(name, round_): alone[name] for name in names for round_ in range(2)}


def test_rope_tables_can_be_used_from_other_threads(edited):
    """They are no parameters, so loading must not forget to evaluate them."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    loaded = edited(lambda config: config["text_config"].update(rope_scaling=scaling))
    results = []

    def ask():
        results.append(answer(loaded, prompt="Hi"))
        mx.clear_streams()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert results[0].token_ids == answer(loaded, prompt="Hi").token_ids


def test_waiting_jobs_run_in_order():
    """A thread that comes back with its next job is queued behind one that waits already."""
    order = []
    gate = threading.Event()

    def work(name):
        for _ in range(100):
            device.run(lambda: order.append(name))

    started = threading.Event()
    device.post(lambda: (started.set(), gate.wait(30)))
    started.wait()
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    while device._worker.jobs.qsize() < 2:
        time.sleep(0.001)
    gate.set()
    for thread in threads:
        thread.join()
    assert sorted(order[:2]) == ["a", "b"]
    assert sorted(order) == ["a"] * 100 + ["b"] * 100


def test_wired_limit_is_counted_and_put_back(monkeypatch):
    from jvlm_mlx.generation import memory

    limits = [1]
    monkeypatch.setattr(memory.mx, "device_info", lambda: {"max_recommended_working_set_size": 99})
    monkeypatch.setattr(memory.mx, "synchronize", lambda: limits.append("synchronized"))

    def set_wired_limit(limit):
        before = [one for one in limits if one != "synchronized"][-1]
        limits.append(limit)
        return before

    monkeypatch.setattr(memory.mx, "set_wired_limit", set_wired_limit, raising=False)
    wired = memory.WiredLimit()
    raised = [1, "synchronized", 99]
    wired.hold("none")
    assert limits == [1]
    wired.hold(None)
    wired.hold(50)
    assert limits == raised
    wired.release("none")
    wired.release(None)
    # Others hold less; and no step is under way whenever it changes.
    assert limits == [*raised, "synchronized", 50]
    wired.release(50)
    assert limits == [*raised, "synchronized", 50, "synchronized", 1]


def test_nothing_is_printed(tiny, shapes, capfd):
    with closing(jvlm_mlx.stream_generate(*tiny, QUESTION, shapes, max_tokens=3)) as responses:
        list(responses)
    with pytest.raises(JvlmError):
        answer(tiny, "/no/such/image.png")
    assert capfd.readouterr() == ("", "")


# --- requests that make no sense


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 2},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": float("nan")},
        {"min_p": float("nan")},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"temperature": 0.7, "seed": -1},
        {"temperature": 0.7, "seed": 2**64},
        {"kv_bits": 7},
        {"kv_bits": 4, "max_kv_size": 4000},
        {"stop": [""]},
        {"prefill_step_size": 0},
        {"max_crops": -1},
        {"min_pixels": 10**9},
    ],
)
def test_impossible_options_are_refused_before_any_work(tiny, shapes, options):
    name = "seed" if "seed" in options else next(iter(options))
    with pytest.raises(RequestError, match=name) as caught:
        jvlm_mlx.stream_generate(*tiny, QUESTION, shapes, **options)
    assert "\n" not in str(caught.value)


def test_more_top_tokens_than_there_are_is_all_of_them(tiny, shapes):
    sampled = {"temperature": 0.7, "seed": 5, "max_tokens": 4, "stop_token_ids": ()}
    expected = jvlm_mlx.generate(*tiny, QUESTION, shapes, **sampled)
    found = jvlm_mlx.generate(*tiny, QUESTION, shapes, **sampled, top_k=10**6)
    assert found.token_ids == expected.token_ids


def test_images_and_placeholders_must_fit(tiny, shapes):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    with pytest.raises(PromptError):
        jvlm_mlx.stream_generate(*tiny, [message], [shapes, shapes])
    with pytest.raises(PromptError):
        jvlm_mlx.stream_generate(*tiny, [message])


def test_a_token_beyond_the_table_is_refused(tmp_path, golden_folder):
    """What lies behind the table in memory would be read as its embedding."""
    folder = tmp_path / "more"
    shutil.copytree(golden_folder / "tiny", folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] += [
        content["added_tokens"][-1]
        | {"id": number, "content": f"<extra {number}>", "special": False}
        for number in range(518, 529)
    ]
    file.write_text(json.dumps(content))
    loaded = jvlm_mlx.load(folder)
    assert answer(loaded, prompt="<extra 527>", max_tokens=1).token_ids
    with pytest.raises(PromptError, match="token 528, but the model knows 528 tokens"):
        answer(loaded, prompt="<extra 528>")
    (response,) = jvlm_mlx.batch_generate(*loaded, [{"prompt": "<extra 528>"}])
    assert "token 528" in response.error


def test_the_checkpoint_samples_unless_the_request_says_otherwise(
    tmp_path, golden_folder, tiny, caplog
):
    """As the reference implementation applies generation_config.json; said once, at load."""
    folder = shutil.copytree(golden_folder / "tiny", tmp_path / "sampling")
    values = {"do_sample": True, "temperature": 50.0, "top_k": 0, "max_new_tokens": 7}
    (folder / "generation_config.json").write_text(json.dumps(values))
    loaded = jvlm_mlx.load(folder)
    assert caplog.text.count("generation_config.json sets temperature=50.0, top_k=0") == 1
    greedy = jvlm_mlx.generate(*tiny, QUESTION, stop_token_ids=(), max_tokens=7).token_ids

    def asked(**options):
        session = jvlm_mlx.ChatSession(*loaded, stop_token_ids=(), **options)
        batch = jvlm_mlx.batch_generate(*loaded, prompts=[QUESTION], stop_token_ids=(), **options)
        return [
            jvlm_mlx.generate(*loaded, QUESTION, stop_token_ids=(), **options).token_ids,
            tuple(response.token for response in session.ask(QUESTION)),
            next(iter(batch)).result.token_ids,
        ]

    # At such a temperature seven greedy tokens in a row are one in 10^19.
    assert all(len(ids) == 7 and ids != greedy for ids in asked())
    assert asked(temperature=0) == [greedy] * 3
    whole = GenerationOptions(max_tokens=7, stop_token_ids=())
    assert jvlm_mlx.generate(*loaded, QUESTION, options=whole).token_ids == greedy
