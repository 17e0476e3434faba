"""Convert a checkpoint to MLX, quantized or not; compare it with its source; look into one.

Without a subcommand this converts. Weights are read and written a few megabytes at a time, and
the new folder appears when it is complete.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from .checkpoint.hub import DEFAULT_REPOSITORY
from .checkpoint.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from .cli.charts import check_plot, write_plot
from .cli.conversion_report import (
    conversion_text,
    inspection_json,
    inspection_text,
    verification_json,
    verification_text,
)
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars, wants_progress
from .config.dtypes import FLOAT_DTYPES
from .conversion.converter import Conversion as Conversion
from .conversion.converter import convert as convert
from .conversion.inspection import inspect as inspect
from .conversion.recipes import MODES, QUANT_PREDICATES, RECIPES
from .conversion.verification import Bounds, check_card, update_card
from .conversion.verification import verify as verify

logger = logging.getLogger(__name__)

EXIT_VIOLATION = 3
"""`verify` found that a bound does not hold."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand and of its subcommands."""
    parser.add_argument(
        "--hf-path", "--model", "--hf-repo", default=DEFAULT_REPOSITORY, metavar="DIR_OR_REPO",
        help="the source: folder, or repository on the Hugging Face Hub",
    )  # fmt: skip
    parser.add_argument(
        "--mlx-path", type=Path, metavar="DIR", default=Path("mlx_model"),
        help="the folder to write",
    )  # fmt: skip
    parser.add_argument("--revision", help="branch, tag or commit of a repository")
    parser.add_argument(
        "--dtype", choices=FLOAT_DTYPES, help="of what is not quantized; else as stored"
    )
    parser.add_argument("-q", "--quantize", action="store_true", help="quantize")
    parser.add_argument("--q-bits", type=int, choices=AFFINE_BITS, help="bits per weight; else 4")
    parser.add_argument(
        "--q-group-size", type=int, choices=AFFINE_GROUP_SIZES, help="weights per scale; else 64"
    )
    parser.add_argument("--q-mode", choices=MODES, help="format of quantization; else affine")
    parser.add_argument(
        "--recipe", choices=RECIPES,
        help="; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items()),
    )  # fmt: skip
    parser.add_argument(
        "--quant-predicate", metavar="NAME",
        help=f"mlx-lm's name of a recipe and its bits: {', '.join(QUANT_PREDICATES)}",
    )  # fmt: skip
    parser.add_argument("-d", "--dequantize", action="store_true", help="unpack what is quantized")
    parser.add_argument("--upload-repo", metavar="REPO", help="upload the result to the Hub")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done")
    parser.add_argument("--trust-remote-code", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--force", action="store_true", help="replace an existing checkpoint")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(work=_convert)
    subcommands = parser.add_subparsers(metavar="{verify,inspect}")
    _add_verify(subcommands.add_parser("verify", help="compare a conversion with its source"))
    _add_inspect(subcommands.add_parser("inspect", help="show what a folder or file holds"))


def _add_verify(parser: argparse.ArgumentParser) -> None:
    # Options in front of the subcommand must not be overwritten by its defaults.
    unset = argparse.SUPPRESS
    parser.add_argument("source", metavar="SOURCE", help="folder or repository")
    parser.add_argument("converted", metavar="CONVERTED", help="folder or repository")
    parser.add_argument("--revision", default=unset, help="of the source")
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="what to ask")
    parser.add_argument("--images", nargs="+", metavar="IMAGE", help="what to ask about")
    parser.add_argument("--max-tokens", type=int, default=32, help="steps of each answer")
    parser.add_argument("--max-crops", type=int, metavar="TILES", help="most tiles of an image")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, default=unset, help="to load both in")
    parser.add_argument("--weights-only", action="store_true", help="ask no questions")
    group = parser.add_argument_group("bounds", "exit code 3 says that one does not hold")
    group.add_argument("--max-weight-error", type=float, metavar="FRACTION", help="of every part")
    group.add_argument("--max-kl", type=float, metavar="NATS", help="mean over all steps")
    group.add_argument("--min-top1", type=float, metavar="FRACTION", help="same argmax token")
    group.add_argument("--min-cosine", type=float, metavar="COSINE", help="image features")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the error by layer")
    parser.add_argument(
        "--update-card", action="store_true", help="write the result into CONVERTED's model card"
    )
    parser.add_argument("--quiet", action="store_true", default=unset, help="show no progress")
    parser.set_defaults(work=_verify)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DIR_OR_FILE", help="folder, file, repository or demo")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(work=_inspect)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for, and return the exit code."""
    return int(arguments.work(arguments))


def _convert(arguments: argparse.Namespace) -> int:
    if arguments.trust_remote_code:
        logger.warning("--trust-remote-code has no effect: no code of a checkpoint is ever run")
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        conversion = convert(
            arguments.hf_path,
            arguments.mlx_path,
            revision=arguments.revision,
            dtype=arguments.dtype,
            quantize=arguments.quantize,
            q_bits=arguments.q_bits,
            q_group_size=arguments.q_group_size,
            q_mode=arguments.q_mode,
            recipe=arguments.recipe,
            quant_predicate=arguments.quant_predicate,
            dequantize=arguments.dequantize,
            upload_repo=arguments.upload_repo,
            dry_run=arguments.dry_run,
            force=arguments.force,
            show_progress=None if bars.shown else False,
            progress=bars.show,
        )
    print(conversion_text(conversion))
    return EXIT_OK


def _verify(arguments: argparse.Namespace) -> int:
    # Known before minutes of measuring.
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if arguments.update_card:
        check_card(arguments.converted, weights_only=arguments.weights_only)
    with ProgressBars(wants_progress(arguments.quiet)) as bars:
        verification = verify(
            arguments.source,
            arguments.converted,
            revision=arguments.revision,
            prompts=arguments.prompts,
            images=arguments.images,
            max_tokens=arguments.max_tokens,
            max_crops=arguments.max_crops,
            dtype=arguments.dtype,
            weights_only=arguments.weights_only,
            bounds=Bounds(
                max_weight_error=arguments.max_weight_error,
                max_kl=arguments.max_kl,
                min_top1=arguments.min_top1,
                min_cosine=arguments.min_cosine,
            ),
            show_progress=None if bars.shown else False,
            progress=bars.show,
        )
    if arguments.json:
        print(json.dumps(verification_json(verification), ensure_ascii=False, allow_nan=False))
    else:
        print(verification_text(verification))
    violations = verification.violations()
    # Said before anything else can go wrong.
    for violation in violations:
        print(f"bound exceeded: {violation}", file=sys.stderr)
    if arguments.plot is not None:
        write_plot(verification, arguments.plot)
    if arguments.update_card:
        update_card(verification)
    return EXIT_VIOLATION if violations else EXIT_OK


def _inspect(arguments: argparse.Namespace) -> int:
    inspection = inspect(arguments.path)
    if arguments.json:
        print(json.dumps(inspection_json(inspection), ensure_ascii=False))
    else:
        print(inspection_text(inspection))
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("convert"))
