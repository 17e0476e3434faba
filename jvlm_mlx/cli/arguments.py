"""Flags that every verb with a model shares, and how they become a model and options."""

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint.hub import DEFAULT_REPOSITORY
from ..checkpoint.loader import load
from ..checkpoint.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES
from ..config.dtypes import FLOAT_DTYPES
from ..conversion.recipes import MODES, RECIPES
from ..generation.caches import DEFAULT_MAX_BYTES, GenerationCaches
from ..generation.options import KV_BITS, GenerationOptions
from ..model import Model
from ..processing.processor import Processor
from ..units import bytes_text, parse_bytes
from .progress_bars import ProgressBars


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model to load."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=DEFAULT_REPOSITORY, metavar="DIR_OR_REPO",
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


_FLAGS: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (
    (("-m", "--max-tokens"), "max_tokens", {"type": int}),
    (("--temperature", "--temp"), "temperature", {"type": float}),
    (("--top-p",), "top_p", {"type": float}),
    (("--top-k",), "top_k", {"type": int}),
    (("--min-p",), "min_p", {"type": float}),
    (("--seed",), "seed", {"type": int}),
    (("--repetition-penalty",), "repetition_penalty", {"type": float}),
    (("--repetition-context-size",), "repetition_context_size", {"type": int}),
    (("--presence-penalty",), "presence_penalty", {"type": float}),
    (("--frequency-penalty",), "frequency_penalty", {"type": float}),
    (("--stop",), "stop", {"action": "append", "metavar": "TEXT"}),
    (("--max-kv-size",), "max_kv_size", {"type": int, "metavar": "TOKENS"}),
    (("--kv-bits",), "kv_bits", {"type": int, "choices": KV_BITS}),
    (("--kv-group-size",), "kv_group_size", {"type": int}),
    (("--prefill-step-size",), "prefill_step_size", {"type": int, "metavar": "TOKENS"}),
    (("--tile-group-size",), "tile_group_size", {"type": int, "metavar": "TILES"}),
    (("--max-memory",), "max_memory", {"type": _memory, "metavar": "SIZE"}),
    (("--max-crops",), "max_crops", {"type": int, "metavar": "TILES"}),
    (("--min-pixels",), "min_pixels", {"type": int}),
    (("--max-pixels",), "max_pixels", {"type": int}),
)
_HELP = {
    "max_tokens": "most tokens of the answer",
    "temperature": "0 takes the likeliest token every time",
    "top_p": "sample among the likeliest tokens with this share of the probability",
    "top_k": "sample among this many likeliest tokens; 0 for all",
    "min_p": "leave out tokens below this share of the likeliest one's probability",
    "seed": "make sampling repeatable",
    "repetition_penalty": "divide the scores of recent tokens by this",
    "repetition_context_size": "how many recent tokens penalties look at",
    "presence_penalty": "subtract this from the scores of recent tokens",
    "frequency_penalty": "the same for every time they occurred",
    "stop": "end the answer at this text; may be repeated",
    "max_kv_size": "keep keys and values of this many tokens; the prompt always stays",
    "kv_bits": "quantize keys and values to this many bits",
    "kv_group_size": "values that share a scale in a quantized cache",
    "prefill_step_size": "prompt tokens read at once",
    "tile_group_size": "tiles encoded at once; more need more memory",
    "max_memory": "encode tiles in groups that fit into this much memory, like 8GB",
    "max_crops": "most tiles of an image; fewer are faster and see less",
    "min_pixels": "enlarge images of a smaller area",
    "max_pixels": "reduce images of a larger area",
}
_DEFAULTS = {
    name: getattr(GenerationOptions(), name)
    for _, name, _ in _FLAGS
    if getattr(GenerationOptions(), name) not in (None, ())
}
"""Of the options that have one."""


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `GenerationOptions`, whose defaults the help names.

    Flags that are not given leave nothing behind: a saved conversation has options of its own.
    """
    group = parser.add_argument_group("answer")
    for flags, name, details in _FLAGS:
        text = _HELP[name]
        if name in _DEFAULTS:
            text = f"{text} (default: {_DEFAULTS[name]})"
        group.add_argument(*flags, dest=name, default=argparse.SUPPRESS, help=text, **details)


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that bounds what answers remember for later ones."""
    parser.add_argument(
        "--cache-size", type=size, default=bytes_text(DEFAULT_MAX_BYTES), metavar="SIZE",
        help="memory for images and prompts that were seen before, like 2GB; 0 for none",
    )  # fmt: skip


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
    return {name: given[name] for _, name, _ in _FLAGS if name in given}


def generation_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given or have a default, by the same names."""
    return {**_DEFAULTS, **given_options(arguments)}


def load_model(arguments: argparse.Namespace, bars: ProgressBars) -> tuple[Model, Processor]:
    """Load the model that the flags name, with progress."""
    model, processor = load(
        arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        adapter_path=arguments.adapter_path,
        check_weights=arguments.check_weights,
        progress=bars.show,
        show_progress=None if bars.shown else False,
    )
    return model, processor
