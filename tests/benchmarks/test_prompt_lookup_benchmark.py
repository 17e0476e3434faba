"""The benchmark of prompt lookup: answers that copy take fewer passes, prose does not."""

import jvlm_mlx
from benchmarks import prompt_lookup


def test_tokens_per_pass(monkeypatch):
    monkeypatch.setattr(prompt_lookup, "COSTS", (1.1,))
    model, processor = jvlm_mlx.load("demo")
    vocab_size = model.config.decoder.vocab_size
    found = {
        one["text"]: one["tokens_per_pass"]
        for one in prompt_lookup.given_answers(processor.tokenizer.encode, vocab_size)
    }
    assert found["lines that recur"] > 2
    assert found["table of invoices"] > 1.8
    assert found["JSON"] > 1.5
    assert 0.9 < found["prose"] < 1.1


def test_random_answers_are_equal(tiny):
    model, _ = tiny
    for prompt in prompt_lookup.random_prompts(3, 500, 30):
        plain, found = (
            prompt_lookup.answer(model, prompt, 20, with_lookup=with_lookup)
            for with_lookup in (False, True)
        )
        assert plain[0] == found[0]
        assert plain[1] == 19  # the first token comes with the prompt
