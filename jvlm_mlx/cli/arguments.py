"""Groups of flags that subcommands share, and how they become a model, options and caches."""

import argparse
import logging
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoint.hub import DEFAULT_REPOSITORY
from ..checkpoint.loader import load
from ..checkpoint.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from ..config.dtypes import FLOAT_DTYPES
from ..config.json_file import quoted, read_json
from ..conversion.recipes import MODES, RECIPES
from ..diagnostics.machine import SLOW_BLAS, has_slow_blas
from ..errors import RequestError
from ..files import local_path
from ..generation.batching import DEFAULT_BATCH_SIZE
from ..generation.caches import DEFAULT_MAX_BYTES, GenerationCaches
from ..generation.options import KV_BITS, GenerationOptions
from ..model import Model
from ..processing.image_formats import silence_libtiff
from ..processing.processor import Processor
from ..units import bytes_text, parse_bytes
from .progress_bars import ProgressBars

logger = logging.getLogger(__name__)


def size(text: str) -> int:
    """Read a size like `8GB` as bytes, for `add_argument`."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _memory(text: str) -> int:
    if not (found := size(text)):
        raise argparse.ArgumentTypeError(f"{text} is no memory; give a size like 8GB or 500MB")
    return found


def _wired(text: str) -> int | str:
    return text if text == "none" else _memory(text)


def _schema(text: str) -> dict[str, Any]:
    schema = read_json(local_path(Path(text), RequestError), RequestError)
    if not isinstance(schema, dict):
        raise RequestError(f"{text} is no JSON Schema: {quoted(schema)}")
    return schema


class _Option(NamedTuple):
    """The flag of one generation option."""

    name: str
    """Of the option in `GenerationOptions`."""
    flags: tuple[str, ...]
    help: str
    details: dict[str, Any]


def _option(flags: str, text: str, **details: Any) -> _Option:
    first, *_ = names = tuple(flags.split())
    return _Option(first.removeprefix("--").replace("-", "_"), names, text, details)


_ANSWER_OPTIONS = (
    _option("--max-tokens", "most tokens of the answer", type=int, metavar="TOKENS"),
    _option("--temperature --temp", "0 takes the most probable token every time", type=float),
    _option("--top-p", "sample among the most probable tokens that have this probability together",
            type=float, metavar="P"),
    _option("--top-k", "sample among this many most probable tokens; 0 for all", type=int,
            metavar="K"),
    _option("--min-p", "leave out tokens below this fraction of the highest probability",
            type=float, metavar="P"),
    _option("--seed", "make sampling repeatable", type=int),
    _option("--repetition-penalty", "divide the scores of recent tokens by this", type=float,
            metavar="FACTOR"),
    _option("--repetition-context-size", "how many recent tokens penalties look at", type=int,
            metavar="TOKENS"),
    _option("--presence-penalty", "subtract this from the scores of recent tokens", type=float,
            metavar="SCORE"),
    _option("--frequency-penalty", "the same for every time they occurred", type=float,
            metavar="SCORE"),
    _option("--stop", "end the answer at this text; may be repeated", action="append",
            metavar="TEXT"),
    _option("--schema --json-schema", "file of a JSON Schema that answers satisfy; needs the extra"
            " structured", type=_schema, metavar="FILE"),
    _option("--repetition-guard", "end an answer that goes round in circles (the default)",
            action=argparse.BooleanOptionalAction),
    _option("--prompt-lookup", "draft tokens from what was said before, and verify several at once:"
            " the same answers, sooner where they copy; for one answer at a time",
            action=argparse.BooleanOptionalAction),
)  # fmt: skip
_MEMORY_OPTIONS = (
    _option("--max-kv-size", "keep this many tokens in the KV cache; the prompt always stays",
            type=int, metavar="TOKENS"),
    _option("--kv-bits", "quantize the KV cache to this many bits", type=int, choices=KV_BITS),
    _option("--kv-group-size", "values that share a scale in a quantized KV cache", type=int,
            metavar="VALUES"),
    _option("--prefill-step-size", "prompt tokens computed at once", type=int, metavar="TOKENS"),
    _option("--tile-group-size", "tiles encoded at once on a GPU; more need more memory", type=int,
            metavar="TILES"),
    _option("--max-memory", "compute no more at once than fits into this much memory, like 8GB",
            type=_memory, metavar="SIZE"),
    _option("--wired-limit", "memory that the system keeps in place for the GPU, like 8GB, or none"
            " to leave its limit alone; else what it recommends", type=_wired, metavar="SIZE"),
)  # fmt: skip
_IMAGE_OPTIONS = (
    _option("--max-crops", "most tiles of an image beside its thumbnail; fewer are faster and show"
            " less, 0 only the thumbnail", type=int,
            metavar="TILES"),
    _option("--min-pixels", "enlarge images of a smaller area", type=int, metavar="PIXELS"),
    _option("--max-pixels", "reduce images of a larger area", type=int, metavar="PIXELS"),
    _option("--do-resize", "resize an image to whole patches before it is cut, as the processor"
            " does; the release's script does so only with --max-pixels, else --no-do-resize",
            action=argparse.BooleanOptionalAction),
)  # fmt: skip
_GROUPS = (
    ("answer", _ANSWER_OPTIONS),
    ("images", _IMAGE_OPTIONS),
    ("KV cache and memory", _MEMORY_OPTIONS),
)
_OPTIONS = tuple(option for _, options in _GROUPS for option in options)
SWITCHES = tuple(
    option.name
    for option in _OPTIONS
    if option.details.get("action") is argparse.BooleanOptionalAction
)
"""Options that are on or off."""
_UNSET = GenerationOptions()
_DEFAULTS = {
    option.name: default
    for option in _OPTIONS
    if (default := getattr(_UNSET, option.name)) not in (None, ()) and not isinstance(default, bool)
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model to load."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", default=DEFAULT_REPOSITORY, metavar="DIR_OR_REPO",
        help="folder of a checkpoint, repository on the Hugging Face Hub, or demo: a very small"
        " model in this package",
    )  # fmt: skip
    group.add_argument("--revision", help="branch, tag or commit of a repository")
    group.add_argument(
        "--dtype", metavar="TYPE",
        help=f"compute in {', '.join(FLOAT_DTYPES)}, or auto for what this machine is fastest in;"
        " or for single modules, as in tower=float16,decoder=bfloat16; else as stored",
    )  # fmt: skip
    group.add_argument(
        "--adapter-path", type=Path, metavar="DIR", help="folder of adapters trained for the model"
    )
    group.add_argument(
        "--check-weights", action="store_true", help="refuse weights that are NaN or infinite"
    )
    group.add_argument(
        "--mlx-cache-limit", type=size, metavar="SIZE",
        help="freed memory that MLX keeps for new arrays, like 500MB; else MLX's own limit",
    )  # fmt: skip
    group.add_argument(
        "--trust-remote-code", action="store_true",
        help="accepted for commands written for other tools; code of a checkpoint is never run",
    )  # fmt: skip
    # Known to users of mlx-lm, and refused with a reason rather than as unknown.
    group.add_argument("--draft-model", help=argparse.SUPPRESS)
    group.add_argument("--num-draft-tokens", help=argparse.SUPPRESS)


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of these flags, by the names that `load` has for them."""
    names = ("revision", "dtype", "adapter_path", "check_weights")
    return {name: getattr(arguments, name) for name in names}


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `GenerationOptions`, whose defaults the help names.

    Flags that are not given leave nothing behind: a saved conversation has options of its own.
    """
    for title, options in _GROUPS:
        group = parser.add_argument_group(title)
        for option in options:
            _add_option(group, option)


def add_single_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of some options of `GenerationOptions`, for a subcommand that fixes others."""
    for option in _OPTIONS:
        if option.name in names:
            _add_option(parser, option)


def _add_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup, option: _Option) -> None:
    text = option.help
    if option.name in _DEFAULTS:
        text = f"{text} (default: {_DEFAULTS[option.name]})"
    parser.add_argument(
        *option.flags, dest=option.name, default=argparse.SUPPRESS, help=text, **option.details
    )


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that bounds what requests leave for later ones."""
    parser.add_argument(
        "--cache-size", type=size, default=bytes_text(DEFAULT_MAX_BYTES), metavar="SIZE",
        help="memory for images and prompts that were seen before, like 2GB; 0 for none",
    )  # fmt: skip


def add_batch_arguments(parser: argparse.ArgumentParser, unit: str) -> None:
    """Add the flags of subcommands that answer many of a unit, such as pages, and of the model."""
    parser.add_argument(
        "--batch-size", type=int, default=DEFAULT_BATCH_SIZE, metavar=unit.upper(),
        help=f"{unit} answered at the same time; more need more memory",
    )  # fmt: skip
    parser.add_argument(
        "--retry-errors", action="store_true", help=f"answer {unit} again that ended with an error"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_cache_argument(parser)
    add_model_arguments(parser)


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how weights are quantized when a checkpoint is written."""
    group = parser.add_argument_group("quantization")
    group.add_argument("-q", "--quantize", action="store_true", help="quantize the weights")
    group.add_argument("--q-bits", type=int, choices=AFFINE_BITS, help="bits per weight; else 4")
    group.add_argument(
        "--q-group-size", type=int, choices=AFFINE_GROUP_SIZES, help="weights per scale; else 64"
    )
    group.add_argument("--q-mode", choices=MODES, help="format of quantization; else affine")
    group.add_argument(
        "--recipe", "--quant-predicate", choices=RECIPES,
        help="; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items()),
    )  # fmt: skip


def quantization_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of these flags, by the names that `convert` and `fuse` have for them."""
    names = ("quantize", "q_bits", "q_group_size", "q_mode", "recipe")
    return {name: getattr(arguments, name) for name in names}


def caches(arguments: argparse.Namespace) -> GenerationCaches:
    """Return the caches that the flag asks for."""
    return GenerationCaches(arguments.cache_size)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by the names of `GenerationOptions`."""
    given = vars(arguments)
    return {option.name: given[option.name] for option in _OPTIONS if option.name in given}


def generation_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given or have a default, by the same names.

    Raises:
        RequestError: an option is out of range; before anything is loaded.
    """
    options = {**_DEFAULTS, **given_options(arguments)}
    GenerationOptions.of(None, options)
    return options


@cache
def hint_at_slow_blas() -> None:
    """Say once per process, on standard error, where matrix products need not be that slow."""
    if has_slow_blas():
        print(f"hint: {SLOW_BLAS} and pass --dtype float32", file=sys.stderr)


def check_model_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what no model can do, and mention what has no effect.

    Raises:
        RequestError: a draft model is asked for, or a number is given instead of the model.
    """
    if arguments.draft_model is not None or arguments.num_draft_tokens is not None:
        raise RequestError(
            "--draft-model: no smaller model shares this one's tokens and sees images, so there"
            " is nothing to draft with; leave it out"
        )
    if arguments.model.isdecimal() and not Path(arguments.model).exists():
        raise RequestError(
            f"-m is the model, as in the release's script: for {arguments.model} tokens at most,"
            f" give --max-tokens {arguments.model}"
        )
    if arguments.trust_remote_code:
        logger.warning("--trust-remote-code has no effect: code of a checkpoint is never run")


def limit_mlx_cache(arguments: argparse.Namespace) -> None:
    """Set the limit on freed memory that the flag asks for."""
    if arguments.mlx_cache_limit is not None:
        mx.set_cache_limit(arguments.mlx_cache_limit)


def load_model(arguments: argparse.Namespace, bars: ProgressBars) -> tuple[Model, Processor]:
    """Load the model that the flags name, with progress.

    Raises:
        JvlmError: there is no such model, it is damaged, or a flag asks for what cannot be.
    """
    check_model_arguments(arguments)
    limit_mlx_cache(arguments)
    silence_libtiff()
    if bars.shown:
        hint_at_slow_blas()
    model, processor = load(
        arguments.model,
        **model_options(arguments),
        progress=bars.show,
        show_progress=None if bars.shown else False,
    )
    return model, processor
