"""Make one ordinary checkpoint of a model and its adapters.

Quantized layers become ordinary ones, unless the result is quantized again with -q.
"""

import argparse
import sys
from pathlib import Path

from .checkpoint.hub import DEFAULT_REPOSITORY
from .checkpoint.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .config.dtypes import FLOAT_DTYPES
from .conversion.recipes import MODES, RECIPES
from .training.fusing import fuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "--model", default=DEFAULT_REPOSITORY, metavar="DIR_OR_REPO",
        help="folder of a checkpoint, or repository on the Hugging Face Hub",
    )  # fmt: skip
    parser.add_argument("--revision", help="branch, tag or commit of a repository")
    parser.add_argument(
        "--adapter-path", type=Path, required=True, metavar="DIR", help="folder of the adapters"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the folder to write"
    )
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, help="of the result; else as stored")
    parser.add_argument("-q", "--quantize", action="store_true", help="quantize the result")
    parser.add_argument("--q-bits", type=int, choices=AFFINE_BITS, help="bits per weight; else 4")
    parser.add_argument(
        "--q-group-size", type=int, choices=AFFINE_GROUP_SIZES, help="weights per scale; else 64"
    )
    parser.add_argument("--q-mode", choices=MODES, help="format of quantization; else affine")
    parser.add_argument("--recipe", choices=RECIPES, help="which layers get how many bits")
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Fuse, and return the exit code."""
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        path = fuse(
            arguments.model,
            arguments.adapter_path,
            arguments.output,
            revision=arguments.revision,
            dtype=arguments.dtype,
            force=arguments.force,
            quantize=arguments.quantize,
            q_bits=arguments.q_bits,
            q_group_size=arguments.q_group_size,
            q_mode=arguments.q_mode,
            recipe=arguments.recipe,
            show_progress=None if bars.shown else False,
            progress=bars.show,
        )
    print(f"written: {path}")
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("fuse"))
