"""Flags of the release's script, mlx-lm and mlx-vlm, as their users type them."""

import importlib
import shlex

import pytest

from jvlm_mlx.cli.parser import CommandParser


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
            "--hf-path jinaai/jina-vlm --mlx-path out -q --q-bits 8 --q-group-size 32 --q-mode affine",
            {"quantize": True, "q_bits": 8, "q_group_size": 32, "q_mode": "affine"},
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
def test_flags_of_other_programs_mean_the_same(subcommand, line, expected):
    parser = CommandParser()
    importlib.import_module(f"jvlm_mlx.{subcommand}").add_arguments(parser)
    parsed = vars(parser.parse_args(shlex.split(line)))
    assert {name: parsed.get(name) for name in expected} == expected
