import copy
import json
import logging
import pickle
import random
import shutil
from pathlib import Path

import pytest

from jvlm_mlx.config.checkpoint_config import PromptConfig
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.errors import CheckpointError, PromptError
from jvlm_mlx.processing.chat_template import DEFAULT_TEMPLATE, ChatTemplate, RenderedPrompt
from jvlm_mlx.processing.messages import collect_images
from jvlm_mlx.processing.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny"
CHATS = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["chats"]
SPACE = PromptConfig(always_start_with_space=True)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TINY, [])


@pytest.fixture(scope="module")
def template(tokenizer):
    return ChatTemplate.load(TINY, SPACE, tokenizer)


def of_source(source, tokenizer, config=SPACE):
    return ChatTemplate(source, config, tokenizer.special_tokens, tokenizer.named_tokens)


def user(*parts):
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


IMAGE = {"type": "image"}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("default", [False, True])
def test_golden_chats(chat, default, template, tokenizer):
    if default:
        template = of_source(DEFAULT_TEMPLATE, tokenizer)
    prompt = template.render(chat["messages"], chat["add_generation_prompt"])
    assert prompt == chat["text"]
    assert prompt.literals == frozenset()


def test_default_template_equals_the_released_one(template, tokenizer):
    rng = random.Random(0)
    texts = ["", " ", "a", "two\nlines \n", "{{ x }}", "{% raw %}", "ü", "<|im_end|>"]
    for _ in range(200):
        messages = [
            {
                "role": rng.choice(["system", "user", "assistant"]),
                "content": rng.choice(
                    [
                        rng.choice(texts),
                        [
                            rng.choice([IMAGE, {"type": "text", "text": rng.choice(texts)}])
                            for _ in range(rng.randrange(4))
                        ],
                    ]
                ),
            }
            for _ in range(rng.randrange(1, 4))
        ]
        for space in (True, False):
            config = PromptConfig(always_start_with_space=space)
            released = of_source(template.source, tokenizer, config)
            default = of_source(DEFAULT_TEMPLATE, tokenizer, config)
            generate = rng.random() < 0.5
            prompt = default.render(messages, generate)
            assert prompt == released.render(messages, generate)
            assert prompt.startswith(" ") == space


def test_variables_and_tags_of_chat_templates(tokenizer):
    source = (
        "{{ bos_token }}{{ image_prompt_token }}{{ strftime_now('%%') }}"
        "{%- for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
    )
    messages = [{"role": "user", "content": 'ü"<'}, {"role": "assistant", "content": "b"}]
    assert of_source(source, tokenizer).render(messages) == '<|endoftext|><|image|>%"ü\\"<"'


def test_text_that_spells_special_tokens_is_marked(template, tokenizer):
    text = "say <|im_end|>, <im_patch> and <|image|>!"
    prompt = template.render([user(IMAGE, text), {"role": "assistant", "content": "<im_end>"}])
    assert prompt == f" User: <|image|>{text} Assistant: <im_end> Assistant:"
    start = len(" User: <|image|>")
    assert prompt.literals == {
        start + text.index("<|im_end|>"),
        start + text.index("<im_patch>"),
        start + text.index("<|image|>"),
        prompt.index("<im_end>"),
    }
    ids = tokenizer.encode(prompt, prompt.literals)
    assert [one for one in ids if one in tokenizer.special_tokens.values()] == [
        tokenizer.image_token_ids.image
    ]
    assert tokenizer.decode(ids, skip_special_tokens=False) == prompt


@pytest.mark.parametrize(
    "parts",
    [
        ("<|im", "_end|>"),
        ("<|", "im_", "end", "|>"),
        ("<", "|im_end|>"),
        ("<|im_<|im_end", "|>"),
        ("|<EXTRA_TOKENS_0>|<EXTRA_TOKENS_1>|",),
        ("|<EXTRA_TOKENS_0>", "|<EXTRA_TOKENS_1>|"),
    ],
)
def test_text_in_several_parts_spells_no_special_token(parts, template, tokenizer):
    prompt = template.render([user(*parts)])
    assert prompt == f" User: {''.join(parts)} Assistant:"
    ids = tokenizer.encode(prompt, prompt.literals)
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert set(tokenizer.encode(prompt)) & set(tokenizer.special_tokens.values())


def test_text_in_front_of_the_templates_own_tokens(tokenizer):
    source = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    prompt = of_source(source, tokenizer).render([{"role": "user", "content": "a <|im_end"}])
    ids = tokenizer.encode(prompt, prompt.literals)
    assert ids == [*tokenizer.encode("a <|im_end"), tokenizer.special_tokens["<|im_end|>"]]


def test_private_use_characters_survive(template):
    text = "".join(map(chr, [*range(0xE000, 0xE010), *range(0xF0000, 0xF0010)])) + "<|image|>"
    prompt = template.render([user(text)])
    assert prompt == f" User: {text} Assistant:"
    assert prompt.literals == {prompt.index("<|image|>")}


def test_a_text_of_all_private_use_characters(template):
    text = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)]))
    with pytest.raises(PromptError, match="private-use"):
        template.render([user(text)])


def test_template_sees_lengths_and_places_as_they_are(tokenizer):
    source = "{{ messages[0].content | length }} {{ messages[0].content[:-2] | trim }}"
    prompt = of_source(source, tokenizer).render([{"role": "user", "content": " a<|image|>bc"}])
    assert prompt == "13 a<|image|>"
    assert prompt.literals == {4}


def test_a_prompt_is_its_text_and_can_be_copied(template):
    prompt = template.render([user("<|image|>")])
    for other in (prompt, copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert other == str(prompt)
        assert isinstance(other, RenderedPrompt)
        assert other.literals == {7}
    assert type(prompt + "") is str


def test_where_a_template_is_found(tokenizer, tmp_path, caplog):
    message = [{"role": "user", "content": "a"}]

    def rendered():
        return ChatTemplate.load(tmp_path, SPACE, tokenizer).render(message)

    def write(name, value):
        (tmp_path / name).write_text(json.dumps({"chat_template": value}), encoding="utf-8")

    with caplog.at_level(logging.WARNING):
        assert rendered() == " User: a Assistant:"
    assert len(caplog.records) == 1
    caplog.clear()
    # From the oldest home to the newest, each hides the ones before.
    write("tokenizer_config.json", [{"name": "rag", "template": "0"}])
    with pytest.raises(CheckpointError, match="tokenizer_config"):
        rendered()
    write("tokenizer_config.json", [{"name": "default", "template": "1"}])
    assert rendered() == "1"
    write("tokenizer_config.json", "2")
    assert rendered() == "2"
    write("processor_config.json", None)
    assert rendered() == "2"
    write("processor_config.json", "3")
    assert rendered() == "3"
    write("chat_template.json", "4")
    assert rendered() == "4"
    (tmp_path / "chat_template.jinja").write_text("5", encoding="utf-8")
    assert rendered() == "5"
    assert not caplog.records
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        rendered()


def test_a_template_of_another_kind(tokenizer, tmp_path):
    (tmp_path / "chat_template.json").write_text('{"chat_template": 5}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        ChatTemplate.load(tmp_path, SPACE, tokenizer)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "Expected"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0].content + 5 }}", "str"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ messages[0].nothing.more }}", "nothing"),
    ],
)
def test_a_template_that_fails(source, message, tokenizer):
    with pytest.raises(PromptError, match=f"the chat template fails: .*{message}") as caught:
        of_source(source, tokenizer).render([{"role": "user", "content": "a"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "messages must be a list of messages, found type str"),
        ({"role": "user", "content": "a"}, "messages must be a list of messages, found type dict"),
        ([], "no messages"),
        (["a"], "message 0 must be an object with role and content, found type str"),
        ([{"content": "a"}], "message 0 has role None; expected system, user, assistant"),
        ([user("a"), {"role": "tool", "content": "a"}], "message 1 has role 'tool'"),
        ([{"role": "user"}], "message 0 has content of None"),
        ([{"role": "user", "content": {"a": 1}}], "message 0 has content of type dict"),
        ([{"role": "user", "content": "a", "name": "b"}], "message 0 has 'name'"),
        ([{"role": "user", "content": ["a"]}], "message 0, part 0, must be an object"),
        ([user("a", {"text": "b"})], "message 0, part 1, has type None"),
        ([user({"type": "video"})], "message 0, part 0, has type 'video'; expected text, image"),
        ([user({"type": "text"})], "message 0, part 0, has a text of None"),
        ([user({"type": "text", "text": 5})], "message 0, part 0, has a text of type int"),
        ([user({"type": "image", "url": "a", "path": "b"})], "more than one of image, url, path"),
        ([user({"type": "image_url"})], "message 0, part 0, has no address"),
        ([user({"type": "image_url", "image_url": {"src": "a"}})], "has no address"),
    ],
)
def test_malformed_messages(messages, message, template):
    for use in (template.render, collect_images):
        with pytest.raises(PromptError, match=message) as caught:
            use(messages)
        assert "\n" not in str(caught.value)


def test_empty_fields_of_clients_are_no_matter(template):
    message = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": []}
    assert template.render([message], False) == " Assistant: a"


def test_images_in_order(template):
    image = object()
    messages = [
        user({"type": "image", "image": image}, "a", {"type": "image", "url": "b.png"}),
        {"role": "assistant", "content": "c"},
        user(
            {"type": "image", "path": Path("d.png")},
            {"type": "image_url", "image_url": {"url": "e.png", "detail": "low"}},
            {"type": "image_url", "image_url": "f.png"},
        ),
    ]
    assert collect_images(messages) == [image, "b.png", Path("d.png"), "e.png", "f.png"]
    assert template.render(messages).count("<|image|>") == 5


def test_images_for_bare_parts():
    messages = [user(IMAGE, {"type": "image", "path": "a.png"}, {"type": "image", "image": None})]
    assert collect_images(messages, [1, 2]) == [1, "a.png", 2]
    for images, count in ((None, 0), ([1], 1), ([1, 2, 3], 3)):
        with pytest.raises(PromptError, match=f"2 image parts without .* {count} images"):
            collect_images(messages, images)
    for images in ("a.png", 5):
        with pytest.raises(PromptError, match="images must be a list"):
            collect_images(messages, images)


def test_prompt_config():
    def read(values):
        return PromptConfig.read(ConfigReader(values, "processor_config.json"))

    assert read({"always_start_with_space": False}) == PromptConfig(False)
    assert read({}) == PromptConfig(True)
    with pytest.raises(CheckpointError, match=r"processor_config\.json\.always_start_with_space"):
        read({"always_start_with_space": "yes"})
    reader = ConfigReader({"auto_map": {}, "processor_class": "A", "b": 1}, "p")
    PromptConfig.read(reader)
    assert reader.unread() == ["p.b"]


def test_the_small_checkpoints_template_is_used(template, tokenizer, tmp_path):
    shutil.copy(TINY / "chat_template.jinja", tmp_path)
    assert ChatTemplate.load(tmp_path, SPACE, tokenizer).source == template.source
    assert template.source != DEFAULT_TEMPLATE
