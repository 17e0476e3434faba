"""Log-likelihoods are those of a forward pass over each whole sequence."""

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx.errors import PromptError, RequestError
from jvlm_mlx.evaluation import likelihood
from jvlm_mlx.evaluation.likelihood import loglikelihood, score_continuations

SHARED = "Two rules. First rule: be brief. Second rule: be kind. "
PAIRS = [
    (SHARED + "Question: red?", " yes"),
    (SHARED + "Question: red?", " no, it is blue"),
    (SHARED + "Question: red?", " no, it is"),
    (SHARED + "Question: blue? ", "yes"),
    ("Nothing in common", "!"),
    (SHARED, "Question: red? yes"),
    ("", "a start"),
]


def naive(model, processor, context, continuation, images=()):
    """One forward pass over everything."""
    images = [list(images)]
    inputs = processor([context + continuation], images)
    length = processor([context.rstrip(" ")], images).input_ids.shape[1]
    logits = (
        model(**inputs.model_arguments())
        if hasattr(inputs, "model_arguments")
        else model(
            inputs.input_ids,
            pixel_values=inputs.pixel_values,
            image_masks=inputs.image_masks,
            image_input_idx=inputs.image_input_idx,
        )
    )
    logits = logits[0].astype(mx.float32)
    logprobs = np.array(logits - mx.logsumexp(logits, -1, keepdims=True))
    ids = np.array(inputs.input_ids)[0]
    return sum(logprobs[n - 1, ids[n]] for n in range(length, len(ids)))


def test_texts(tiny):
    contexts, continuations = zip(*PAIRS, strict=True)

    found = loglikelihood(*tiny, contexts, continuations)

    assert found == pytest.approx([naive(*tiny, *pair) for pair in PAIRS], abs=1e-3)


def test_images(tiny, golden_folder):
    square, dot = (golden_folder / f"images/{name}.png" for name in ("square", "dot"))
    pairs = [
        ("Look: <|image|> What?", " a square", [square]),
        ("Look: <|image|> What?", " a square", [dot]),
        ("Look: <|image|> What?", " a dot on white", [dot]),
        ("No place", " for it", [square]),
        ("<|image|> and <|image|>", " differ", [square, dot]),
        ("Look:", " nothing", []),
    ]

    found = loglikelihood(*tiny, *zip(*[(c, t, i or None) for c, t, i in pairs], strict=True))

    assert found == pytest.approx([naive(*tiny, *pair) for pair in pairs], abs=1e-3)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_conversations_are_read_as_generate_reads_them(tiny):
    model, processor = tiny
    messages = [{"role": "user", "content": "Say <|im_end|> it."}]
    answer = jvlm_mlx.generate(model, processor, messages, max_tokens=3, stop_token_ids=())
    rendered = processor.apply_chat_template(messages)
    said = processor.tokenizer.decode(answer.token_ids)

    (one,) = score_continuations(model, processor, [messages], [said])
    (other,) = score_continuations(model, processor, [rendered], [said])

    assert one == other
    same_tokens = processor.tokenizer.encode(said) == list(answer.token_ids)
    assert one.is_greedy or not same_tokens


def test_what_is_shared_is_read_once(tiny, monkeypatch):
    model, _ = tiny
    read = []
    decoder = type(model.decoder)
    original = decoder.__call__

    def counting(self, embeddings, *arguments, **options):
        read.append(embeddings.shape[0] * embeddings.shape[1])
        return original(self, embeddings, *arguments, **options)

    monkeypatch.setattr(decoder, "__call__", counting)
    long = "word " * 60
    contexts = [long + ending for ending in ("a", "b", "c") for _ in range(4)]
    whole = len(tiny[1].encode(likelihood.raw_prompt(long), 0))

    loglikelihood(*tiny, contexts, [" A", " B", " C", " D"] * 3)

    assert sum(read) < 1.5 * whole


def test_many_continuations_go_through_in_chunks(tiny, monkeypatch):
    endings = [f" {n} and more of it" for n in range(9)]
    together = loglikelihood(*tiny, ["It is"] * 9, endings)
    monkeypatch.setattr(likelihood, "_MAX_LOGITS", 10)

    assert loglikelihood(*tiny, ["It is"] * 9, endings) == pytest.approx(together, abs=1e-4)


def test_greedy_continuations_are_reported(tiny):
    model, processor = tiny
    context = "Once upon"
    ids = processor.encode(likelihood.raw_prompt(context), 0)[None]
    best = int(mx.argmax(model(ids)[0, -1]).item())
    text = processor.tokenizer.decode([best], skip_special_tokens=False)
    if list(processor.encode(likelihood.raw_prompt(context + text), 0)[len(ids[0]) :]) != [best]:
        pytest.skip("the most probable token has no text of its own")

    found = score_continuations(model, processor, [context] * 2, [text, " zebra"])

    assert [likelihood.is_greedy for likelihood in found] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a"], []), RequestError, "1 contexts, 0 continuations"),
        ((["a"], [""]), RequestError, "pair 0: the continuation is empty"),
        ((["a"], ["b"], []), RequestError, "0 images"),
        ((["<|image|>"], ["b"]), PromptError, "placeholders"),
    ],
)
def test_what_cannot_be_scored(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        loglikelihood(*tiny, *arguments)


def test_what_exceeds_the_context_is_refused(tiny):
    size = tiny[0].config.decoder.context_size

    with pytest.raises(PromptError, match=f"the model's context is {size}"):
        loglikelihood(*tiny, ["a" * 2 * size], ["b"])
