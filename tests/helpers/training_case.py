"""Shared by the tests of training: a few examples, a config, and batches of them."""

import dataclasses
import json

import numpy as np
from PIL import Image

import jvlm_mlx
from jvlm_mlx import TrainingConfig
from jvlm_mlx.cli.main import EXIT_ERROR, run_subcommand
from jvlm_mlx.training.data_loader import training_loader
from jvlm_mlx.training.dataset import read_examples
from jvlm_mlx.training.examples import read_sources
from jvlm_mlx.training.model_setup import prepare_model
from jvlm_mlx.training.step import Trainer

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 60, 230)}
QUESTION = "Which color?"
MODULES = ("vision_tower", "connector", "decoder")


def write_examples(folder):
    """Write images of one color each, questions about them, and a mixture with texts."""
    examples = []
    for name, color in COLORS.items():
        Image.new("RGB", (60, 60), color).save(folder / f"{name}.png")
        content = [{"type": "image", "path": f"{name}.png"}, {"type": "text", "text": QUESTION}]
        examples.append(_example(content, name))
    texts = [_example(f"{a} + {b}?", str(a + b)) for a in range(2) for b in range(2)]
    for name, some in (("colors", examples), ("sums", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    sources = [
        {"name": "colors", "path": "colors.jsonl", "kind": "instructions", "weight": 1.0},
        {"name": "sums", "path": "sums.jsonl", "kind": "text", "weight": 1.0},
    ]
    (folder / "mixture.json").write_text(json.dumps({"sources": sources}))
    return folder / "mixture.json"


def _example(content, answer):
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    }


def make_config(**changes):
    """Full training in float32 at a constant rate, without checkpoints."""
    values = {
        "iters": 10,
        "fine_tune_type": "full",
        "dtype": "float32",
        "learning_rate": 1e-3,
        "warmup_iters": 0,
        "decay": "constant",
        "max_grad_norm": 0.0,
        "max_crops": 1,
        "bucket_batches": 1,
        "steps_per_eval": 0,
        "save_every": 0,
    }
    return TrainingConfig(**values | changes)


def make_data(file, processor):
    options = make_config().image_options
    return read_examples(read_sources(file), processor, max_seq_length=400, image_options=options)


def make_loader(file, processor, **changes):
    return training_loader(make_data(file, processor), make_config(**changes))


def make_trainer(folder, adapter=None, **changes):
    """Load a checkpoint and make it ready; returns trainer and processor."""
    model, processor = jvlm_mlx.load(folder, dtype="float32")
    config = make_config(**changes)
    prepare_model(model, config, adapter)
    return Trainer(model, config, config.iters), processor


def joined(batches):
    """One batch with the examples of several of the same length and number of tiles."""
    first = batches[0]
    fields = {}
    for field in dataclasses.fields(first):
        values = [getattr(batch, field.name) for batch in batches]
        if isinstance(values[0], np.ndarray):
            fields[field.name] = np.concatenate(values)
        else:
            fields[field.name] = None if values[0] is None else sum(values)
    return type(first)(**fields)


def run_arguments(model, data, output):
    """Flags of every short run on the command line."""
    return [
        "--model", model, "--data", data, "--output", output, "--fine-tune-type", "full",
        "--batch-size", 4, "--max-crops", 1, "--dtype", "float32", "--bucket-batches", 1,
    ]  # fmt: skip


def run_command(capsys, subcommand, *arguments):
    """Run a subcommand; returns exit code, standard output and standard error."""
    code = run_subcommand(subcommand, [str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def refusal_of_training(capsys, *arguments):
    """The one line of a refusal."""
    code, out, err = run_command(capsys, "train", *arguments)
    assert code == EXIT_ERROR
    assert out == ""
    (line,) = err.splitlines()
    return line
