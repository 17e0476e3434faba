"""Flags that users of mlx-lm, of mlx-vlm and of the release's own script type without reading: each
does through the whole command what it says in Python."""

import io
import json
import sys

import pytest

import jvlm_mlx
from jvlm_mlx.cli.generate_questions import DEFAULT_QUESTION
from jvlm_mlx.cli.main import main

TEXT = {"type": "text", "text": "What?"}
IMAGE = {"type": "image"}
LABELS = [{"type": "text", "text": f"Image {number}: "} for number in (1, 2)]


def message(*content):
    return [{"role": "user", "content": list(content)}]


# flags, and for Python: prompt, images, options
FLAGS = {
    "one flag with two images": (["--image", "dot", "square"], "What?", ["dot", "square"], {}),
    "a flag for each image": (["-i", "dot", "-i", "square"], "What?", ["dot", "square"], {}),
    "mlx-lm: sampling": (
        ["--temp", "0.7", "--top-p", "0.9", "--min-p", "0.01", "--top-k", "40", "--seed", "3"],
        "What?", [], {"temperature": 0.7, "top_p": 0.9, "min_p": 0.01, "top_k": 40, "seed": 3},
    ),
    "mlx-lm: system prompt": (
        ["--system-prompt", "Be brief."], "What?", [], {"system": "Be brief."},
    ),
    "mlx-lm: remote code": (["--trust-remote-code"], "What?", [], {}),
    "mlx-vlm: verbose": (["-i", "dot", "--verbose"], "What?", ["dot"], {}),
    "the script: text first": (
        ["-i", "dot", "--prompt-first"], message(TEXT, IMAGE), ["dot"], {},
    ),
    "the script: numbered images": (
        ["-i", "dot", "square", "--image-labels"],
        message(LABELS[0], IMAGE, LABELS[1], IMAGE, TEXT), ["dot", "square"], {},
    ),
    "the script: fewer tiles": (
        ["-i", "shapes", "--max-crops", "2"], "What?", ["shapes"], {"max_crops": 2},
    ),
    "the script: fewer pixels": (
        ["-i", "shapes", "--max-pixels", "40000"], "What?", ["shapes"], {"max_pixels": 40_000},
    ),
    "the script: no question": (["-i", "dot"], DEFAULT_QUESTION, ["dot"], {}),
}  # fmt: skip


@pytest.fixture
def files(golden_folder):
    return {name: golden_folder / "images" / f"{name}.png" for name in ("dot", "square", "shapes")}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_mean_what_they_mean_elsewhere(name, tiny, golden_folder, files, capsys, monkeypatch):
    flags, prompt, images, options = FLAGS[name]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    question = [] if prompt == DEFAULT_QUESTION else ["-p", "What?"]
    given = [str(files.get(flag, flag)) for flag in flags]
    model = ["--model", str(golden_folder / "tiny")]
    assert main(["generate", *model, *given, *question, "--max-tokens", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    sources = [files[image] for image in images]
    expected = jvlm_mlx.generate(*tiny, prompt, sources, max_tokens=4, **options)
    assert answer["token_ids"] == list(expected.token_ids)
    assert answer["prompt_tokens"] == expected.prompt_tokens
    assert tuple(answer["tiles"]) == expected.tiles
