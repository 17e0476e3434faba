"""Many questions: each gets the answer it would get alone, whatever happens to the others."""

import threading

import pytest

import jvlm_mlx
from jvlm_mlx import BatchRequest, GenerationCaches, batch_generate, encode_image
from jvlm_mlx.errors import ImageError, RequestError

OPTIONS = {"max_tokens": 10, "stop_token_ids": ()}


@pytest.fixture
def images(golden_folder):
    return {
        name: golden_folder / "images" / f"{name}.png" for name in ("dot", "square", "tall", "wide")
    }


@pytest.fixture
def requests(images):
    """Ragged lengths and answers, with and without images, and every kind of option."""
    return [
        {"prompt": "Describe this image.", "images": images["square"]},
        {"prompt": "Hi", "max_tokens": 3},
        {"prompt": "Compare.", "images": [images["dot"], images["wide"]]},
        {"prompt": "Sampled", "temperature": 1.3, "seed": 3, "top_k": 40, "max_tokens": 14},
        {"prompt": "Say it", "presence_penalty": 50.0, "repetition_context_size": 200},
        {"prompt": "Short window", "max_kv_size": 40, "max_tokens": 35},
        {"prompt": "Hi", "system": "Be brief.", "images": images["tall"], "max_crops": 1},
        {"prompt": "Sampled", "temperature": 1.3, "seed": 8, "images": [images["dot"]]},
        {"prompt": "Overview", "images": [images["wide"]], "max_crops": 0},
        {"prompt": "Say it", "repetition_penalty": 4.0, "max_tokens": 20},
        {"prompt": "Nothing special", "max_tokens": 1},
    ]


@pytest.fixture
def alone(tiny):
    def ask(request, **options):
        request = {**OPTIONS, **options, **request}
        return jvlm_mlx.generate(
            *tiny, request.pop("prompt"), request.pop("images", None), **request
        )

    return ask


def in_order(answers):
    return sorted(answers, key=lambda answer: answer.index)


@pytest.mark.parametrize(
    ("batch_size", "caches"), [(1, None), (2, GenerationCaches), (3, None), (32, GenerationCaches)]
)
def test_answers_are_those_of_single_runs(tiny, requests, alone, batch_size, caches):
    answers = list(
        batch_generate(
            *tiny, requests, batch_size=batch_size, caches=caches and caches(), **OPTIONS
        )
    )
    assert [answer.index for answer in in_order(answers)] == list(range(len(requests)))
    for answer in answers:
        expected = alone(requests[answer.index])
        assert answer.error is None
        assert answer.result.token_ids == expected.token_ids, answer.index
        for name in ("text", "prompt_tokens", "image_tokens", "tiles", "finish_reason"):
            assert getattr(answer.result, name) == getattr(expected, name)


def test_requests_share_images_and_prefixes(tiny, images, alone):
    requests = [
        {"prompt": prompt, "images": images["wide"]} for prompt in ("One?", "Two?", "Three?")
    ]
    caches = GenerationCaches()
    answers = in_order(batch_generate(*tiny, requests, caches=caches, **OPTIONS))
    for request, answer in zip(requests, answers, strict=True):
        assert answer.result.token_ids == alone(request).token_ids
    assert [answer.result.cached_tokens > 100 for answer in answers] == [False, True, True]
    assert caches.stats()["features"].misses == 1


def test_encoded_images(tiny, images, alone, golden_folder):
    encoded = encode_image(*tiny, images["wide"])
    requests = [BatchRequest(prompt=prompt, images=encoded) for prompt in ("One?", "Two?")]
    for answer in batch_generate(*tiny, requests, **OPTIONS):
        request = {"prompt": requests[answer.index].prompt, "images": images["wide"]}
        assert answer.result.token_ids == alone(request).token_ids
    other = jvlm_mlx.load(golden_folder / "tiny")
    other[0].decoder.norm.weight = other[0].decoder.norm.weight * 2
    (answer,) = batch_generate(*other, requests[:1], **OPTIONS)
    assert "another model" in answer.error


def test_a_prompt_that_ends_with_an_image(tiny, images):
    """mlx-lm reads the last token by its id; here it is one that has no logit."""
    _, processor = tiny
    message = {"role": "user", "content": [{"type": "image", "image": images["dot"]}]}
    rendered = processor.apply_chat_template([message], add_generation_prompt=False)
    penalty = {"presence_penalty": 5.0}
    requests = [{"prompt": rendered, "images": images["dot"], **penalty}, {"prompt": "Hi"}]
    expected = jvlm_mlx.generate(*tiny, rendered, images["dot"], **penalty, **OPTIONS)
    assert processor.encode(rendered, 1)[-1] == processor.tokenizer.image_token_ids.image
    answers = in_order(batch_generate(*tiny, requests, **OPTIONS))
    assert answers[0].result.token_ids == expected.token_ids


def test_stop_texts_and_tokens(tiny, alone):
    whole = alone({"prompt": "Hi"}, max_tokens=30)
    stop = whole.text[5:8]
    requests = [
        {"prompt": "Hi", "stop": (stop,)},
        {"prompt": "Hi", "stop_token_ids": {whole.token_ids[4]}},
        {"prompt": "Hi"},
    ]
    answers = in_order(batch_generate(*tiny, requests, max_tokens=30, stop_token_ids=()))
    assert answers[0].result.text == whole.text[: whole.text.index(stop)]
    assert answers[1].result.token_ids == alone(requests[1], max_tokens=30).token_ids
    assert [answer.result.finish_reason for answer in answers] == ["stop", "stop", "length"]
    assert answers[2].result.token_ids == whole.token_ids


def test_errors_belong_to_their_request(tiny, images, alone, caplog):
    class Strange:
        def __array__(self, *_, **__):
            raise ZeroDivisionError("strange\nimage")

    requests = [
        {"prompt": "Hi"},
        {"prompt": "What?", "images": "/no/such.png"},
        {"no prompt": 1},
        None,
        {"prompt": "Hi", "temprature": 1},
        {"prompt": "Hi", "max_tokens": 0},
        {"prompt": "x", "max_kv_size": 3},
        {"prompt": [{"role": "nobody", "content": "x"}]},
        {"prompt": "What?", "images": Strange()},
        {"prompt": 5},
        {"prompt": "Hello"},
    ]
    answers = in_order(batch_generate(*tiny, requests, batch_size=2, **OPTIONS))
    for answer, expected in zip(
        answers,
        (None, "/no/such.png", "needs a prompt", "needs a prompt", "no option 'temprature'",
         "max_tokens is 0", "max_kv_size is 3", "role 'nobody'",
         "read by numpy: strange", "messages must be a list of messages, found type int", None),
        strict=True,
    ):  # fmt: skip
        if expected is None:
            request = requests[answer.index]
            assert answer.result.token_ids == alone(request).token_ids
        else:
            assert expected in answer.error
            assert "\n" not in answer.error
            assert answer.result is None


def test_requests_are_taken_as_there_is_room(tiny):
    taken = []

    def requests():
        for index in range(6):
            taken.append(index)
            yield {"prompt": "Hi", "max_tokens": 2 if index == 0 else 4}

    answers = batch_generate(*tiny, requests(), batch_size=2, stop_token_ids=())
    assert next(answers).index == 0
    assert taken == [0, 1]
    assert next(answers).index == 1
    assert taken == [0, 1, 2]
    answers.close()
    assert taken == [0, 1, 2]


def test_cancelling(tiny):
    cancel = threading.Event()
    requests = [{"prompt": "Hi", "max_tokens": tokens} for tokens in (2, 10_000, 10_000)]
    finished = []
    for answer in batch_generate(*tiny, requests, cancel=cancel, stop_token_ids=()):
        finished.append(answer.index)
        cancel.set()
    assert finished == [0]


def test_bad_arguments_are_refused_at_once(tiny):
    with pytest.raises(RequestError, match="batch_size is 0"):
        batch_generate(*tiny, [], batch_size=0)
    with pytest.raises(RequestError, match="temperature"):
        batch_generate(*tiny, [], temperature=-1)
    with pytest.raises(ImageError):
        jvlm_mlx.encode_image(*tiny, "/no/such.png")
    assert list(batch_generate(*tiny, [])) == []
