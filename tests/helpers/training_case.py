"""What the tests of training share: a few rows, config, and batches of them."""

import dataclasses
import json

import numpy as np
from PIL import Image

from jvlm_mlx.cli.main import EXIT_ERROR, run_subcommand
from jvlm_mlx.training import LoaderConfig, ModuleConfig, TrainingConfig, training_feed
from jvlm_mlx.training.data_limits import DataLimits
from jvlm_mlx.training.mixture import read_mixture
from jvlm_mlx.training.prepare_data import prepare_data
from jvlm_mlx.training.processes import Processes

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 60, 230)}
QUESTION = "Which color?"


def write_rows(folder):
    """Write pictures of one color each, questions about them, and a mixture with texts."""
    rows = []
    for name, color in COLORS.items():
        Image.new("RGB", (60, 60), color).save(folder / f"{name}.png")
        content = [{"type": "image", "path": f"{name}.png"}, {"type": "text", "text": QUESTION}]
        rows.append(_row(content, name))
    texts = [_row(f"{a} + {b}?", str(a + b)) for a in range(2) for b in range(2)]
    for name, some in (("colors", rows), ("sums", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    sources = [
        {"name": "colors", "path": "colors.jsonl", "kind": "instructions", "weight": 1.0},
        {"name": "sums", "path": "sums.jsonl", "kind": "text", "weight": 1.0},
    ]
    (folder / "mixture.json").write_text(json.dumps({"sources": sources}))
    return folder / "mixture.json"


def _row(content, answer):
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    }


def make_data(file, processor):
    limits = DataLimits(max_length=400, max_crops=1, min_pixels=None, max_pixels=None)
    return prepare_data(read_mixture(file), processor, limits)


def feed_config(**changes):
    values = {
        "batch_size": 4,
        "seed": 0,
        "text_share": 0.5,
        "single_source": False,
        "single_source_batches": 0,
        "bucket_batches": 1,
        "pad_to_multiple": 1,
        "cache_bytes": 10**8,
    }
    return LoaderConfig(**values | changes)


def make_feed(file, processor, **changes):
    return training_feed(make_data(file, processor), feed_config(**changes), Processes())


def part(**changes):
    values = {
        "trainable": True,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "decay": "constant",
        "floor": 0.0,
    }
    return ModuleConfig(**values | changes)


def make_config(**changes):
    values = {
        "vision_tower": part(),
        "connector": part(),
        "decoder": part(),
        "steps": 10,
        "accumulate": 1,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "max_grad_norm": None,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "compile": False,
        "seed": 0,
        "validate_every": None,
        "save_every": None,
        "keep": 2,
        "report_every": 1,
        "adapter": None,
    }
    return TrainingConfig(**values | changes)


def joined(batches):
    """One batch with the rows of several of the same length and number of tiles."""
    first = batches[0]
    fields = {}
    for field in dataclasses.fields(first):
        values = [getattr(batch, field.name) for batch in batches]
        if isinstance(values[0], np.ndarray):
            fields[field.name] = np.concatenate(values)
        elif isinstance(values[0], int):
            fields[field.name] = sum(values)
        else:
            fields[field.name] = values[0] if values[0] is None else sum(values, ())
    return type(first)(**fields)


def run_arguments(model, rows, output):
    """What every short run on the command line is asked for."""
    return [
        "--model", model, "--data", rows, "--output", output,
        "--batch-size", 4, "--max-crops", 1, "--dtype", "float32", "--bucket-batches", 1,
    ]  # fmt: skip


def run_command(capsys, verb, *arguments):
    """Run a verb: its exit code, what it printed, and what it said."""
    code = run_subcommand(verb, [str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def refusal_of_training(capsys, *arguments):
    """The one line that a refusal is."""
    code, out, err = run_command(capsys, "train", *arguments)
    assert code == EXIT_ERROR
    assert out == ""
    (line,) = err.splitlines()
    return line
