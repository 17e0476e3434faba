"""Show what an answer looked at: tiles, pooling weights, and the attention of each answer token.

The answer goes to standard output, the image into a PNG. Attention says what the decoder read,
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
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .cli.screen_images import is_screen_image, screen_images
from .errors import RequestError
from .evaluation.attention_image import draw_explanation
from .evaluation.attention_maps import Explanation as Explanation
from .evaluation.attention_maps import explain as explain
from .files import atomic_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "-i", "--image", required=True, metavar="IMAGE", help="path or URL, as for generate"
    )
    parser.add_argument("-p", "--prompt", required=True, help="the question")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.png", help="image to write"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, draw, and return the exit code."""
    if arguments.output.suffix.lower() != ".png":
        raise RequestError(f"{arguments.output} must end in .png, for that is what is written")
    options = generation_options(arguments)
    image = arguments.image
    if is_screen_image(image):
        (image,) = screen_images(image)
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        model, processor = load_model(arguments, bars)
    explanation = explain(model, processor, image, arguments.prompt, **options)
    with atomic_file(arguments.output, RequestError) as temporary:
        draw_explanation(explanation).save(temporary, "PNG")
    print(explanation.text)
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("explain"))
