"""One way from messages and images to model inputs, whoever asks, and with the same options."""

import json

import pytest

import jvlm_mlx
from jvlm_mlx.cli.main import EXIT_OK, main
from jvlm_mlx.config.image_config import ImageOptions
from jvlm_mlx.processing import processor

QUESTION = "What is it?"
LENGTH = {"max_tokens": 1, "stop_token_ids": ()}


def by_call(loaded, image, options, _folder):
    text = loaded[1].apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    loaded[1](images=image, text=text, padding=True, return_tensors="mlx", **options)


def by_template(loaded, image, options, _folder):
    content = [{"type": "image", "path": str(image)}, {"type": "text", "text": QUESTION}]
    loaded[1].apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        **options,
    )


def by_generate(loaded, image, options, _folder):
    jvlm_mlx.generate(*loaded, QUESTION, image=image, **LENGTH, **options)


def by_stream(loaded, image, options, _folder):
    list(jvlm_mlx.stream_generate(*loaded, QUESTION, [image], options=LENGTH | options))


def by_chat(loaded, image, options, _folder):
    list(jvlm_mlx.ChatSession(*loaded, **LENGTH, **options).ask(QUESTION, image))


def by_batch(loaded, image, options, _folder):
    request = {"prompt": QUESTION, "images": [image], **options}
    (response,) = jvlm_mlx.batch_generate(*loaded, [request], **LENGTH)
    assert response.error is None


def by_subcommand(*arguments):
    def ask(_loaded, image, options, folder):
        model = ["--model", str(image.parents[1] / "tiny"), "--max-tokens", "1", "--quiet"]
        flags = ["--no-do-resize"] if options else []
        output = {"output": str(folder / "out.jsonl")}
        given = [argument.format(**output) for argument in arguments]
        asked = ["-i", str(image), "-p", QUESTION]
        assert main([given[0], *asked, *given[1:], *model, *flags]) == EXIT_OK

    return ask


def by_file_of_requests(_loaded, image, options, folder):
    file = folder / "requests.jsonl"
    file.write_text(json.dumps({"prompt": QUESTION, "images": [str(image)], **options}))
    model = ["--model", str(image.parents[1] / "tiny"), "--max-tokens", "1", "--quiet"]
    assert main(["batch", str(file), "-o", str(folder / "out.jsonl"), *model]) == EXIT_OK


WAYS = {
    "processor": by_call,
    "apply_chat_template": by_template,
    "generate": by_generate,
    "stream_generate": by_stream,
    "ChatSession": by_chat,
    "batch_generate": by_batch,
    "jvlm generate": by_subcommand("generate"),
    "jvlm batch": by_subcommand("batch", "-o", "{output}"),
    "file of requests": by_file_of_requests,
}


@pytest.fixture
def prompts(monkeypatch):
    """Every prompt that is made: its tokens, where its images begin, and which these are."""
    made = []
    place_images = processor.place_images

    def watch(*arguments):
        prompt = place_images(*arguments)
        images = [image.digest for image in prompt.images]
        made.append((prompt.token_ids.tolist(), prompt.starts, images))
        return prompt

    monkeypatch.setattr(processor, "place_images", watch)
    return made


# 300 x 200 pixels are brought to 294 x 196 first: 2 x 4 tiles; as they are, they need 3 x 4.
@pytest.mark.parametrize(("options", "tokens"), [({}, 154), ({"do_resize": False}, 199)])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_makes_one_prompt_and_the_same(
    tiny, golden_folder, tmp_path, prompts, way, options, tokens
):
    image = golden_folder / "images" / "shapes.png"
    expected = tiny[1].prepare(QUESTION, [image], options=ImageOptions(**options))
    WAYS[way](tiny, image, options, tmp_path)
    assert prompts == [prompts[0]] * 2
    assert expected.image_tokens == tokens
