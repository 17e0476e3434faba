"""Flags that users of mlx-lm, of mlx-vlm and of the release's own script type without reading: each
does through the whole command what it says in Python."""

import importlib
import io
import json
import shlex
import sys

import pytest

import jvlm_mlx
from jvlm_mlx.cli.generate_questions import DEFAULT_QUESTION
from jvlm_mlx.cli.main import main
from jvlm_mlx.cli.parser import CommandParser

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


@pytest.mark.parametrize(
    ("subcommand", "line", "expected"),
    [
        (  # the release's script
            "generate",
            "-m M -i a.png -i b.png -p One? -p Two? --map --prompt-first --image-labels"
            " --max-tokens 1024 --max-crops 12 --max-pixels 100000 --stream",
            {"model": "M", "image": ["a.png", "b.png"], "prompt": ["One?", "Two?"], "map": True,
             "prompt_first": True, "image_labels": True, "max_tokens": 1024, "max_crops": 12,
             "max_pixels": 100_000, "stream": True},
        ),
        (  # mlx-vlm
            "generate",
            "--model M --image a.png b.png --prompt One? --system Brief. --max-tokens 9"
            " --temperature 0.5 --top-p 0.9 --top-k 5 --min-p 0.1 --repetition-penalty 1.1"
            " --max-kv-size 1024 --kv-bits 8 --kv-group-size 64 --prefill-step-size 512"
            " --adapter-path A --revision r --seed 1 --verbose",
            {"model": "M", "image": ["a.png", "b.png"], "prompt": ["One?"], "system": "Brief.",
             "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
             "repetition_penalty": 1.1, "max_kv_size": 1024, "kv_bits": 8, "kv_group_size": 64,
             "prefill_step_size": 512, "revision": "r", "seed": 1, "verbose": True},
        ),
        (  # mlx-lm
            "generate",
            "--model M --prompt One? --system-prompt Brief. --temp 0.5 --top-p 0.9"
            " --extra-eos-token a b --prefill-response Well --prompt-cache-file F --max-tokens 9",
            {"system": "Brief.", "temperature": 0.5, "extra_eos_token": ["a", "b"],
             "prefill_response": "Well", "prompt_cache_file": "F"},
        ),
        (
            "chat",
            "--model M --temp 0.5 --top-p 0.9 --max-tokens 9 --max-kv-size 1024 --seed 1",
            {"model": "M", "temperature": 0.5, "max_kv_size": 1024},
        ),
        (
            "convert",
            "--hf-path jinaai/jina-vlm --mlx-path out -q --q-bits 8 --q-group-size 32",
            {"quantize": True, "q_bits": 8, "q_group_size": 32},
        ),
        (
            "train",
            "--model M --train --data d --iters 5 --fine-tune-type lora --batch-size 2"
            " --learning-rate 1e-4 --steps-per-report 1 --steps-per-eval 5 --save-every 5"
            " --adapter-path A --max-seq-length 512 --grad-checkpoint --mask-prompt --seed 1"
            " --grad-accumulation-steps 2 --num-layers 8",
            {"model": "M", "iters": 5, "fine_tune_type": "lora", "batch_size": 2,
             "max_seq_length": 512, "grad_checkpoint": True, "grad_accumulation_steps": 2},
        ),
        (
            "fuse",
            "--model M --adapter-path A --save-path out",
            {"model": "M"},
        ),
        ("serve", "--model M --host 127.0.0.1 --port 8080", {"model": "M", "port": 8080}),
    ],
)  # fmt: skip
def test_every_subcommand_reads_flags_of_other_programs(subcommand, line, expected):
    parser = CommandParser()
    importlib.import_module(f"jvlm_mlx.{subcommand}").add_arguments(parser)
    parsed = vars(parser.parse_args(shlex.split(line)))
    assert {name: parsed.get(name) for name in expected} == expected
