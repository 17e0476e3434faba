"""Show what an answer looked at: tiles, pooling weights, and the attention of each answer token.

The answer goes to standard output, the image into a PNG; with `-o -` the PNG goes to standard
output, and the answer to standard error. Attention says what the decoder read,
not why it answered so.
"""

import argparse
import sys
from pathlib import Path

from .cli.arguments import (
    add_generation_arguments,
    add_model_arguments,
    generation_options,
    load_model,
)
from .cli.batch_requests import STANDARD_STREAM
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .cli.screen_images import is_screen_image, screen_images
from .cli.standard_streams import read_bytes
from .errors import RequestError
from .evaluation.attention_image import draw_explanation
from .evaluation.attention_maps import Explanation as Explanation
from .evaluation.attention_maps import explain as explain
from .files import atomic_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "-i", "--image", required=True, metavar="IMAGE", help="one image, as for generate"
    )
    parser.add_argument("-p", "--prompt", required=True, help="the question")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE.png",
        help="image to write; - for standard output",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, draw, and return the exit code."""
    to_stdout = arguments.output == STANDARD_STREAM
    if not to_stdout and arguments.output.suffix.lower() != ".png":
        raise RequestError(f"{arguments.output} must end in .png, for that is what is written")
    options = generation_options(arguments)
    image = arguments.image
    if image == str(STANDARD_STREAM):
        image = read_bytes("-i -")
    elif is_screen_image(image):
        (image,) = screen_images(image)
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        model, processor = load_model(arguments, bars)
    explanation = explain(model, processor, image, arguments.prompt, **options)
    drawn = draw_explanation(explanation)
    if to_stdout:
        drawn.save(sys.stdout.buffer, "PNG")
    else:
        with atomic_file(arguments.output, RequestError) as temporary:
            drawn.save(temporary, "PNG")
    print(explanation.text, file=sys.stderr if to_stdout else sys.stdout)
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("explain"))
