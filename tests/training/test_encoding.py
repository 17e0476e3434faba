"""Tokens and labels of examples compared with what generation reads."""

import json

import numpy as np
import pytest

from jvlm_mlx.errors import DataError
from jvlm_mlx.training.data_loader import validation_loader
from tests.helpers.training_examples import (
    CHATML,
    assistant,
    config_of,
    example,
    image,
    image_example,
    prepare,
    text,
    text_example,
    user,
    with_template,
    write_examples,
)

CONVERSATIONS = {
    "image": image_example(),
    "text": text_example(),
    "system": example({"role": "system", "content": "Be short."}, user("Hi"), assistant("Ho")),
    "turns": example(
        user(image(), text("What color?")),
        assistant("red"),
        user("Sure?"),
        assistant("7 times yes"),
        user(text("And this: "), image("wide.png"), image(), text("?")),
        assistant("blue\n"),
        user("Why?"),
        assistant("Because."),
    ),
    "spelled tokens": example(
        user("What is <|im_end|> or <|image|>?"), assistant("<|im_end|> ends <|endoftext|>."),
        user("Thanks <|endoftext|>"), assistant("<|im_start|>"),
    ),
    "spaces": example(user(" a "), assistant("  two  "), user("\n"), assistant("\tb\n\n")),
    "parts": example(user("Hi"), assistant([text("one, "), text("two")])),
    "other scripts": example(user("Größe? 大きさ"), assistant("約 3 m 🙂")),
}  # fmt: skip


@pytest.fixture(scope="module")
def chatml(processor):
    return with_template(processor, CHATML)


def batch_of(folder, processor, *examples):
    data = prepare(write_examples(folder / "examples.jsonl", examples), processor)
    return validation_loader(data, config_of(batch_size=len(examples)))[0]


def answers_of(messages):
    return [place for place, message in enumerate(messages) if message["role"] == "assistant"]


def located(messages, folder):
    return json.loads(
        json.dumps(messages).replace("a.png", str(folder / "a.png"))
        .replace("wide.png", str(folder / "wide.png"))
    )  # fmt: skip


@pytest.mark.parametrize("template", ["released", "chatml"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_precedes_an_answer_is_what_generation_reads(
    name, template, folder, processor, chatml
):
    used = chatml if template == "chatml" else processor
    batch = batch_of(folder, used, CONVERSATIONS[name])
    messages = located(CONVERSATIONS[name]["messages"], folder)
    learned = batch.loss_mask[0]
    starts = np.flatnonzero(learned & ~np.roll(learned, 1))
    ends = np.flatnonzero(learned & ~np.roll(learned, -1)) + 1
    assert len(starts) == len(answers_of(messages))
    for start, end, place in zip(starts, ends, answers_of(messages), strict=True):
        asked = used.from_messages(messages[:place])
        np.testing.assert_array_equal(batch.input_ids[0, :start], asked.input_ids[0])
        # ... and what is learned there is the answer, up to the one stop token behind it.
        *answer, stop = batch.labels[0, start:end].tolist()
        assert stop in used.tokenizer.stop_token_ids
        assert not set(answer) & used.tokenizer.stop_token_ids
        content = messages[place]["content"]
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content)
        assert used.decode(answer) == ("" if template == "chatml" else " ") + content


def test_released_template_has_no_stop_token_to_read_between_turns(folder, processor):
    batch = batch_of(folder, processor, CONVERSATIONS["turns"])
    tokenizer = processor.tokenizer
    end_of_text = tokenizer.special_tokens[tokenizer.named_tokens["eos_token"]]
    assert np.flatnonzero(batch.labels[0] == end_of_text).size == 4
    # BOS, which is the same token, and the end of the last answer
    assert np.flatnonzero(batch.input_ids[0] == end_of_text).tolist() == [
        0,
        batch.input_ids.shape[1] - 1,
    ]
    differing = np.flatnonzero(batch.loss_mask[0] & (batch.labels[0] != batch.input_ids[0]))
    assert batch.labels[0, differing].tolist() == [end_of_text] * 3


def test_stop_token_of_the_template_is_learned_and_nothing_behind_it(folder, chatml):
    batch = batch_of(folder, chatml, CONVERSATIONS["turns"])
    stop = chatml.tokenizer.special_tokens["<|im_end|>"]
    mask = batch.loss_mask[0]
    np.testing.assert_array_equal(batch.labels[0, mask], batch.input_ids[0, mask])
    assert np.count_nonzero(batch.labels[0] == stop) == 4
    # The users' turns end with it too, and there it is not learned.
    assert np.count_nonzero(batch.input_ids[0] == stop) == 8
    assert batch.input_ids[0, -1] == stop
    behind = np.flatnonzero(batch.labels[0] == stop)[:-1] + 1
    assert not mask[behind].any()
    assert chatml.decode(batch.input_ids[0, behind]) == "\n\n\n"


def test_text_in_front_of_the_stop_token_is_learned(folder, processor):
    other = with_template(
        processor,
        "{% for m in messages %}{{ m.role }}: {{ m.content }} \n<|im_end|>;{% endfor %}"
        "{{ 'assistant:' if add_generation_prompt }}",
    )
    batch = batch_of(folder, other, text_example(answer="Fine."))
    learned = batch.labels[0][batch.loss_mask[0]].tolist()
    assert learned[-1] == other.tokenizer.special_tokens["<|im_end|>"]
    assert other.decode(learned) == " Fine. \n"


def test_images_without_a_placeholder_in_the_template_go_in_front(folder, processor):
    other = with_template(
        processor,
        "{% for m in messages %} {{ m.role }}: {% if m.content is string %}{{ m.content }}"
        "{% else %}{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
        "{% endif %}{% endfor %}{{ ' assistant:' if add_generation_prompt }}",
    )
    batch = batch_of(folder, other, image_example())
    asked = other.from_messages(located(image_example()["messages"][:1], folder))
    start = int(np.argmax(batch.loss_mask[0]))
    np.testing.assert_array_equal(batch.input_ids[0, :start], asked.input_ids[0])
    np.testing.assert_array_equal(batch.image_input_idx, asked.image_input_idx)


def test_what_follows_the_last_answer_is_left_out(folder, processor):
    longer = example(*image_example()["messages"], user(image("wide.png"), text("And?")))
    batch, expected = (batch_of(folder, processor, one) for one in (longer, image_example()))
    np.testing.assert_array_equal(batch.input_ids, expected.input_ids)
    np.testing.assert_array_equal(batch.labels, expected.labels)
    np.testing.assert_array_equal(batch.pixel_values, expected.pixel_values)


TEMPLATES = {
    "does not write an answer behind": [
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
        "{{ 'assistant: <think>' if add_generation_prompt }}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
    "the chat template fails": ["{{ raise_exception('no answers here') }}"],
}


@pytest.mark.parametrize(
    ("line", "source"), [(line, one) for line, many in TEMPLATES.items() for one in many]
)
def test_templates_that_cannot_be_trained_with(line, source, folder, processor):
    with pytest.raises(DataError, match=line):
        batch_of(folder, with_template(processor, source), text_example())


def test_template_that_changes_earlier_answers(folder, processor):
    forgets = with_template(
        processor,
        "{% for m in messages %} {{ m.role }}: "
        "{{ m.content if loop.last or m.role == 'user' else '...' }}{% endfor %}"
        "{{ ' assistant:' if add_generation_prompt }}",
    )
    batch_of(folder, forgets, text_example())  # a single answer can be learned
    with pytest.raises(DataError, match=r"examples\.jsonl:1: message 3 .* changes earlier answers"):
        batch_of(folder, forgets, CONVERSATIONS["spelled tokens"])


def test_template_that_drops_one_answer(folder, processor):
    drops = with_template(
        processor,
        "{% for m in messages %} {{ m.role }}: "
        "{{ m.content if 'secret' not in m.content }}{% endfor %}"
        "{{ ' assistant: ' if add_generation_prompt }}",
    )
    with pytest.raises(DataError, match=r"message 1: the chat template does not write this answer"):
        batch_of(folder, drops, text_example(answer="a secret"))


def test_answer_that_merges_with_what_is_around_it(folder, processor):
    bare = with_template(processor, "{% for m in messages %}{{ m.content }}{% endfor %}")
    # " Assistant" is one token; generation continues behind the tokens of " Assi".
    first = [user("Say Assi"), assistant("stant")]
    batch = batch_of(folder, bare, example(*first))
    assert bare.decode(batch.labels[0][batch.loss_mask[0]]) == "stant"
    with pytest.raises(DataError, match="spaces around one of them merge"):
        batch_of(folder, bare, example(*first, user("!"), assistant("Done.")))


def test_two_answers_with_nothing_between_them(folder, processor):
    twice = example(user("Hi"), assistant("Ho"), assistant("Ha"))
    batch_of(folder, processor, twice)
    bare = with_template(processor, "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="message 2 follows an answer at once; join the two"):
        batch_of(folder, bare, twice)
