"""Draw an image that the model in this package can read, and show what to ask.

The demo model is very small and knows only such images. They are none of those that it learned
from.
"""

import argparse
import io
import shlex
import sys
from pathlib import Path

from ..cli.main import EXIT_OK
from ..errors import RequestError
from ..files import atomic_file
from .tasks import IMAGE_TASKS, LANGUAGES, example_at

_DEFAULT_TASK = "small_number"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo.png"), metavar="FILE",
        help="image to write; - for standard output, and the questions go to standard error",
    )  # fmt: skip
    parser.add_argument(
        "--task", choices=IMAGE_TASKS, default=_DEFAULT_TASK, help="what to ask first"
    )
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="language to ask in")
    parser.add_argument("--seed", type=int, default=1, help="another number, another image")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Write the image, print the questions, and return the exit code."""
    output: Path = arguments.output
    to_stdout = output == Path("-")
    if not to_stdout and output.suffix.lower() != ".png":
        raise RequestError(f"{output} must end in .png, for that is what is written")
    example = example_at(arguments.seed, 0, (arguments.task,), (arguments.language,), held_out=True)
    assert example.image is not None
    encoded = io.BytesIO()
    example.image.save(encoded, "PNG")
    # The same command may be repeated: it draws the same image.
    if to_stdout:
        sys.stdout.buffer.write(encoded.getvalue())
    elif not _contains(output, encoded.getvalue()):
        if output.exists() and not arguments.force:
            raise RequestError(f"{output} exists already; give another --output, or --force")
        with atomic_file(output, RequestError) as file:
            file.write_bytes(encoded.getvalue())
    image = shlex.quote(str(output))
    lines = [f"{output} shows: {example.caption}"]
    for turn in example.turns:
        prompt = shlex.quote(turn.question)
        command = f"python -m jvlm_mlx.generate --model demo --image {image} --prompt {prompt}"
        lines += [f"\n# right answer: {turn.answer}", command]
    print("\n".join(lines), file=sys.stderr if to_stdout else sys.stdout)
    return EXIT_OK


def _contains(file: Path, content: bytes) -> bool:
    try:
        return file.is_file() and file.read_bytes() == content
    except OSError:
        return False


if __name__ == "__main__":
    from ..cli.main import run_subcommand

    sys.exit(run_subcommand("demo"))
