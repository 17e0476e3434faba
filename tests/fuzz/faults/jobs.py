"""What writes: subcommands of every kind, with the small checkpoint, so that a run is short."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.workplace import DOT, GOLDEN, as_lines
from tests.helpers.evaluation_files import png, write_tsv

TINY = GOLDEN / "tiny"
_CONVERTED = GOLDEN / "tiny-mlx"
_TIMED = re.compile(rb'"(\w*(second|tps|memory|cached)\w*)": [0-9.e+-]+')
"""Numbers in files that differ from run to run."""


@dataclass(frozen=True)
class Job:
    """A subcommand that writes.

    Args:
        name: of the job.
        arguments: of its first run, with `{out}` for the place of the result.
        again: of a run that finds what an interrupted one left; as the first unless given.
        typed: on standard input, with `{out}`, too.
        prepare: makes what is at the place of the result before the run.
        is_whole: whether the result is at any moment what was there before, or all of the new.
    """

    name: str
    arguments: tuple
    again: Callable[[Path], tuple] | None = None
    typed: str = ""
    prepare: Callable[[Path], object] = field(default=lambda _: None)
    is_whole: bool = False

    def command(self, out, *, again=False):
        """Return name and flags of the subcommand."""
        arguments = self.again(out) if again and self.again else self.arguments
        return [str(one).format(out=out) for one in arguments]


def jobs(inputs, names=None):
    """Return jobs by name, all of them or some; what they read is made in the folder `inputs`."""
    examples = inputs / "examples.jsonl"
    image = {
        "role": "user",
        "content": [{"type": "image", "path": DOT}, {"type": "text", "text": "What?"}],
    }
    answers = [{"role": "assistant", "content": text} for text in ("A dot.", "Two of them.")]
    examples.write_bytes(as_lines({"messages": [image, answer]} for answer in answers))
    questions = write_tsv(inputs / "AI2D_TEST.tsv", _questions())
    predictions = write_tsv(
        inputs / "predictions.tsv", [row | {"prediction": "B"} for row in _questions()]
    )
    model = ("--model", TINY, "--max-tokens", 3)
    training = (
        "train", "--model", TINY, "--data", examples, "--validation", examples,
        "--output", "{out}", "--quiet", "--dtype", "float32", "--batch-size", 1, "--iters", 3,
        "--save-every", 1, "--steps-per-eval", 1, "--keep", 2,
    )  # fmt: skip
    lora = (*training, "--fine-tune-type", "lora", "--rank", 2)
    full = (*training, "--fine-tune-type", "full")
    adapter = inputs / "adapter"
    fuse = ("fuse", "--model", TINY, "--adapter-path", adapter, "--output", "{out}")
    convert = ("convert", "--hf-path", TINY, "--mlx-path", "{out}")
    asked = ("--prompt", "Hi", "--images", DOT, GOLDEN / "images" / "square.png", "--quiet")
    batch = ("batch", *model, *asked, "--output")
    evaluate = ("evaluate", "--benchmark", "AI2D_TEST", "--output", "{out}")
    explain = ("explain", *model, "--image", DOT, "--prompt", "Hi")
    made = (
        Job("convert", convert, _forced(convert), is_whole=True),
        Job(
            "convert over another", (*convert, "--force", "-q", "--q-group-size", 32),
            prepare=lambda out: shutil.copytree(_CONVERTED, out), is_whole=True,
        ),
        Job("fuse", fuse, _forced(fuse), is_whole=True),
        Job("fuse quantized", (*fuse, "-q", "--q-group-size", 32, "--force"), is_whole=True),
        Job("train adapters", lora, _resumed(lora)),
        Job("train all weights", full, _resumed(full)),
        Job("batch", (*batch, "{out}.jsonl")),
        Job("batch to a table", (*batch, "{out}.csv")),
        Job("batch to a document", (*batch, "{out}.md")),
        Job("read", ("read", *model, DOT, DOT.replace("dot", "square"), "--output", "{out}.md")),
        Job(
            "chat", ("chat", *model, "--image", DOT), typed="What?\n/save {out}.session\n",
            is_whole=True,
        ),
        Job("evaluate", (*evaluate, "--data", questions, *model, "--quiet")),
        Job("evaluate predictions", (*evaluate, "--predictions", predictions)),
        Job("explain", (*explain, "--output", "{out}.png"), is_whole=True),
        Job("draw", ("demo", "--output", "{out}.png"), is_whole=True),
        Job(
            "write questions", ("evaluate", "write-demo", "{out}.tsv", "--count", 2),
            is_whole=True,
        ),
    )  # fmt: skip
    found = {job.name: job for job in made if names is None or job.name in names}
    if any(name.startswith("fuse") for name in found):
        # In another process: this one is to be forked, which MLX does not survive once it has run.
        flags = [str(one).format(out=adapter) for one in lora[1:]]
        subprocess.run([sys.executable, "-m", "jvlm_mlx.train", *flags], check=True, stdout=-3)
    return found


def comparable(files):
    """Return the contents of files without what differs from run to run."""
    return {name: _comparable(name, data) for name, data in files.items()}


def _comparable(name, data):
    data = _TIMED.sub(rb'"\1": 0', data)
    # Responses stand in the order in which they were finished.
    return b"\n".join(sorted(data.splitlines())) if name.endswith(".jsonl") else data


def _questions():
    return [
        {"index": n, "question": "Which?", "A": "red", "B": "blue", "answer": "B", "image": png()}
        for n in range(1, 4)
    ]


def _forced(arguments):
    return lambda _: (*arguments, "--force")


def _resumed(arguments):
    def again(out):
        has_checkpoint = any((out / "training").glob("step-" + "[0-9]" * 8))
        return (*arguments, "--resume") if has_checkpoint else arguments

    return again
