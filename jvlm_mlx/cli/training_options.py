"""The options of `train`: on the command line, in a recipe file, and in the record of a run."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..checkpoint.hub import DEFAULT_REPOSITORY
from ..config.json_file import read_json
from ..errors import RequestError
from ..training.modules import PARTS
from ..training.training_config import (
    ADAPTERS,
    DECAYS,
    DTYPES,
    AdapterOptions,
    ModuleConfig,
    TrainingConfig,
)

Values = dict[str, Any]
"""Options by name, as in a recipe file."""


@dataclass(frozen=True)
class Option:
    """One option; its name has underscores in a recipe and hyphens on the command line."""

    name: str
    default: Any
    help: str
    type: Any = str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    many: bool = False
    """Whether it takes one value or more."""

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--{self.name.replace('_', '-')}"


def _switch(name: str, text: str) -> Option:
    return Option(name, False, text, type=bool)


_DATA = (
    Option("model", DEFAULT_REPOSITORY, "what to begin with: folder or repository",
           metavar="DIR_OR_REPO"),
    Option("revision", None, "branch, tag or commit of a repository"),
    Option("data", None, "mixture file (.json), or one file of rows (.jsonl)", metavar="FILE"),
    Option("validation", None, "the same, for the validation loss", metavar="FILE"),
    Option("text_share", None, "share of rows without images; else by the weights of sources",
           float, metavar="SHARE"),
    Option("batches", "mixed", "rows of all sources in a batch, or of one source",
           choices=("mixed", "single-source")),
    Option("single_source_steps", 0, "begin with single-source batches for so many steps", int,
           metavar="STEPS"),
    Option("batch_size", 4, "rows of a batch", int, metavar="ROWS"),
    Option("max_length", None, "refuse rows of more tokens; else the model's context", int,
           metavar="TOKENS"),
    Option("bucket_batches", 16, "batches drawn at a time, so that rows of like size share one",
           int, metavar="BATCHES"),
    Option("pad_to_multiple", 1, "make lengths of batches a multiple of this", int,
           metavar="TOKENS"),
    Option("image_cache", 1.0, "memory for images that will be used again", float,
           metavar="GB"),
    Option("max_crops", None, "most tiles of an image; else the checkpoint's", int,
           metavar="TILES"),
)  # fmt: skip
_LENGTH = (
    Option("steps", None, "updates of the weights", int),
    Option("epochs", None, "instead of steps: how often to draw as many rows as there are; of a"
           " file of one kind, these are all of them", float),
    Option("accumulate", 1, "batches that make up one update", int, metavar="BATCHES"),
    Option("seed", 0, "of the order of rows and of dropout", int),
)  # fmt: skip
_OPTIMIZER = (
    Option("betas", [0.9, 0.95], "of AdamW", float, metavar="BETA", many=True),
    Option("eps", 1e-8, "of AdamW", float),
    Option("weight_decay", 0.01, "of AdamW; not for norms, biases and tables", float),
    Option("max_grad_norm", 1.0, "longest gradient of all parts together; 0 for no limit", float),
    Option("dtype", "bfloat16", "compute in this; trained weights are float32 beside that",
           choices=DTYPES),
    _switch("gradient_checkpointing", "less memory, more time: compute activations twice"),
    _switch("compile", "compile whole batches, once for every shape that occurs"),
    Option("freeze", [], "parts that stay as they are", choices=PARTS, metavar="PART", many=True),
)  # fmt: skip
_RATES = (
    Option("learning_rate", None, "highest rate of every part", float),
    Option("warmup_steps", None, "steps until it is reached; else a tenth of all, and for the"
           " connector a hundredth", int, metavar="STEPS"),
    Option("decay", "cosine", "the way down after that", choices=DECAYS),
    Option("floor", 0.1, "where it ends, as a share of the highest", float, metavar="SHARE"),
)  # fmt: skip
_FULL_RATES = {"vision_tower": 6e-6, "connector": 2e-4, "decoder": 2e-5}
_ADAPTER_RATE = 1e-4
_ADAPTER = (
    Option("adapter", "none", "train small matrices beside the weights; none: the weights",
           choices=("none", *ADAPTERS)),
    Option("adapter_parts", ["decoder"], "parts that get an adapter", choices=PARTS,
           metavar="PART", many=True),
    Option("adapter_layers", None, "last layers of tower and decoder with adapters; else all",
           int, metavar="LAYERS"),
    Option("adapter_keys", None, "layers with adapters, like attention.qkv; else every linear one",
           metavar="NAME", many=True),
    Option("rank", 8, "of an adapter", int),
    Option("scale", 20.0, "factor on what an adapter adds", float),
    Option("dropout", 0.0, "share of an adapter's inputs left out in training", float,
           metavar="SHARE"),
)  # fmt: skip
_OUTPUT = (
    Option("output", None, "folder of the result", metavar="DIR"),
    Option("validate_every", 100, "steps between validations", int, metavar="STEPS"),
    Option("save_every", 500, "steps between checkpoints; 0 for none", int, metavar="STEPS"),
    Option("keep", 2, "checkpoints that are kept", int, metavar="CHECKPOINTS"),
    Option("report_every", 1, "steps between lines of metrics", int, metavar="STEPS"),
    _switch("chart", "draw the losses into training/loss.png"),
)  # fmt: skip


def _part_options() -> tuple[Option, ...]:
    return tuple(
        Option(f"{part}_{option.name}", None, f"{option.name.replace('_', ' ')} of the {part}"
               .replace("vision_tower", "vision tower"), option.type, option.choices,
               option.metavar)
        for part in PARTS
        for option in _RATES
    )  # fmt: skip


_GROUPS = {
    "model and data": _DATA,
    "length": _LENGTH,
    "learning rates": (*_RATES, *_part_options()),
    "optimizer": _OPTIMIZER,
    "adapter": _ADAPTER,
    "output": _OUTPUT,
}
OPTIONS = {option.name: option for group in _GROUPS.values() for option in group}
DEFAULTS: Values = {name: option.default for name, option in OPTIONS.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options; those that are not given do not appear in the result."""
    for title, options in _GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            details: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": option.name}
            shown = option.default
            if option.type is bool:
                details["action"] = argparse.BooleanOptionalAction
            else:
                details |= {
                    "type": option.type,
                    "choices": option.choices,
                    "metavar": option.metavar,
                    "nargs": "+" if option.many else None,
                }
                if shown not in (None, []):
                    words = shown if isinstance(shown, list) else [shown]
                    details["help"] = f"{option.help} (default: {' '.join(map(str, words))})"
            details.setdefault("help", option.help)
            group.add_argument(option.flag, **details)


class _RecipeParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{self.prog}: {message}")


def read_recipe(file: Path) -> Values:
    """Return the options of a recipe file: a JSON object with the options' names.

    Raises:
        RequestError: it cannot be read, or an option in it does not exist or has a wrong value.
    """
    content = read_json(file, RequestError)
    if not isinstance(content, dict):
        raise RequestError(f"{file} is no recipe; expected an object with names of options")
    unknown = [name for name in content if name not in OPTIONS]
    if unknown:
        raise RequestError(
            f"{file}: {', '.join(unknown)} is no option of train; names are those of the command"
            " line, with underscores"
        )
    # Read as the command line would be, so that both allow the same.
    parser = _RecipeParser(prog=str(file), add_help=False, allow_abbrev=False)
    add_options(parser)
    given: list[str] = []
    empty: Values = {}
    for name, value in content.items():
        option = OPTIONS[name]
        if value is None or (value == [] and isinstance(option.default, list)):
            empty[name] = option.default if value is None else []
        elif value == []:
            raise RequestError(f"{file}: {name} cannot be []")
        elif isinstance(value, bool) or option.type is bool:
            if not isinstance(value, bool) or option.type is not bool:
                raise RequestError(f"{file}: {name} cannot be {json.dumps(value)}")
            given.append(option.flag if value else f"--no-{option.flag[2:]}")
        elif isinstance(value, list) and option.many:
            given += [option.flag, *map(str, value)]
        elif isinstance(value, str | int | float):
            # Joined, so that a value may begin with a hyphen.
            given += [option.flag, str(value)] if option.many else [f"{option.flag}={value}"]
        else:
            raise RequestError(f"{file}: {name} cannot be {json.dumps(value)}")
    return vars(parser.parse_args(given)) | empty


def given_options(arguments: argparse.Namespace) -> Values:
    """Return the options that were given on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in OPTIONS}


def training_config(values: Mapping[str, Any], steps: int) -> TrainingConfig:
    """Return the config that options stand for.

    Args:
        values: all options by name.
        steps: updates of the weights.

    Raises:
        RequestError: a value makes no sense.
    """
    if len(values["betas"]) != 2:
        raise RequestError(f"betas are two numbers; found {len(values['betas'])}")
    adapter = None
    if values["adapter"] != "none":
        keys = values["adapter_keys"]
        adapter = AdapterOptions(
            kind=values["adapter"],
            parts=tuple(values["adapter_parts"]),
            rank=values["rank"],
            scale=values["scale"],
            dropout=values["dropout"],
            num_layers=values["adapter_layers"],
            keys=None if keys is None else tuple(keys),
        )
    return TrainingConfig(
        vision_tower=_part_config(values, "vision_tower", steps),
        connector=_part_config(values, "connector", steps),
        decoder=_part_config(values, "decoder", steps),
        steps=steps,
        accumulate=values["accumulate"],
        betas=(values["betas"][0], values["betas"][1]),
        eps=values["eps"],
        weight_decay=values["weight_decay"],
        max_grad_norm=values["max_grad_norm"] or None,
        dtype=values["dtype"],
        gradient_checkpointing=values["gradient_checkpointing"],
        compile=values["compile"],
        seed=values["seed"],
        validate_every=values["validate_every"] or None,
        save_every=values["save_every"] or None,
        keep=values["keep"],
        report_every=values["report_every"],
        adapter=adapter,
    )


def _part_config(values: Mapping[str, Any], part: str, steps: int) -> ModuleConfig:
    def choose(name: str, otherwise: Any) -> Any:
        for given in (values[f"{part}_{name}"], values[name]):
            if given is not None:
                return given
        return otherwise

    is_full = values["adapter"] == "none"
    return ModuleConfig(
        trainable=part not in values["freeze"],
        learning_rate=choose("learning_rate", _FULL_RATES[part] if is_full else _ADAPTER_RATE),
        warmup_steps=choose("warmup_steps", steps // (100 if part == "connector" else 10)),
        decay=choose("decay", None),
        floor=choose("floor", None),
    )
