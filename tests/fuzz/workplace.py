"""What all kinds of fuzzing share: a folder, a small model, images, a way to run subcommands."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import jvlm_mlx
from jvlm_mlx.cli.main import run_subcommand

GOLDEN = Path(__file__).parents[1] / "golden"
DOT = str(GOLDEN / "images" / "dot.png")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [
        {"type": "image", "image": "images/dot.png"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A dot."},
    {"role": "user", "content": "Are you sure?"},
]  # fmt: skip
_FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "JPEG2000", "EPS", "TGA")
_MODES = ("RGB", "L", "P", "RGBA", "I;16", "CMYK", "1")


class Workplace:
    """Made once for each worker, which needs seconds for it.

    Args:
        folder: to work in.
    """

    def __init__(self, folder):
        self.folder = folder
        self.model, self.processor = jvlm_mlx.load(GOLDEN / "tiny")
        shutil.copytree(GOLDEN / "images", folder / "images")
        self.images = _small_images()
        self.cleanup = contextlib.ExitStack()

    def close(self):
        self.cleanup.close()

    def checkpoint(self):
        """Return a fresh copy of the small checkpoint."""
        folder = self.folder / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(GOLDEN / "tiny", folder)
        return folder

    def command(self, *arguments):
        """Run a subcommand; what it prints on standard error may not be a traceback."""
        said, printed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            try:
                code = run_subcommand(arguments[0], [str(one) for one in arguments[1:]])
            except SystemExit as error:
                code = error.code
        text = said.getvalue()
        if code not in (0, 1, 2, 3) or "Traceback" in text:
            raise AssertionError(f"exit code {code}: {text[-600:]}")
        return "used" if code == 0 else "refused"

    def train(self, data, output, *flags):
        """Train adapters for a step or two."""
        return self.command(
            "train", "--model", GOLDEN / "tiny", "--data", data, "--output", output,
            "--fine-tune-type", "lora", "--dtype", "float32", *flags,
        )  # fmt: skip

    def examples(self):
        """Return a file with a training example."""
        file = self.folder / "examples.jsonl"
        if not file.exists():
            file.write_bytes(as_lines([example()]))
        return file


def example():
    """Return a training example about an image."""
    image, text = MESSAGES[1]["content"]
    question = [{"type": "image", "path": image["image"]}, text]
    return {"messages": [{"role": "user", "content": question}, MESSAGES[2]]}


def as_lines(rows):
    """Return JSON Lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _small_images():
    """Return the bytes of an image in every format and mode that Pillow writes."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    image = Image.fromarray(noise)
    made = []
    for name in _FORMATS:
        for mode in _MODES:
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError, SystemError):
                image.convert("L" if mode == "I;16" else mode).convert(mode).save(buffer, name)
                made.append(buffer.getvalue())
    made += [file.read_bytes() for file in sorted((GOLDEN / "images").iterdir())]
    animated = io.BytesIO()
    image.save(animated, "GIF", save_all=True, append_images=[image.rotate(90)] * 3)
    progressive = io.BytesIO()
    image.save(progressive, "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08")
    return [*made, animated.getvalue(), progressive.getvalue()]
