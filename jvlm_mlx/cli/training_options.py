"""The options of `train` on the command line and in a config file, JSON or YAML."""

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint.hub import DEFAULT_REPOSITORY
from ..config.json_file import quoted, read_json
from ..errors import RequestError
from ..files import local_path, reason
from ..training.training_config import ALIASES, OPTIONS, TrainingConfig
from .arguments import size

_PATHS = {
    "model": ("what to begin with: folder or repository", "DIR_OR_REPO"),
    "revision": ("branch, tag or commit of a repository", None),
    "data": (
        "file of examples (.jsonl), mixture (.json), or folder with train.jsonl and valid.jsonl",
        "PATH",
    ),
    "validation": ("the same, for the validation loss", "PATH"),
    "output": ("folder of the result", "DIR"),
    "resume_adapter_file": ("adapter to begin with: its file or folder", "PATH"),
}
_PATH_ALIASES = {"adapter_path": "output"}
"""mlx-lm's name."""
_UNNEEDED = ("train", "mask_prompt")
"""Flags of mlx-lm that say what happens anyway: only answers are learned."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all flags; options that are not given do not appear in the result."""
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE",
        help="JSON or YAML file with these options by name; the command line counts more",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="continue from the newest checkpoint in the output; with more --iters, lengthen it",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    group = parser.add_argument_group("model, data and output")
    for name, (text, metavar) in _PATHS.items():
        default = f" (default: {DEFAULT_REPOSITORY})" if name == "model" else ""
        group.add_argument(
            _flag(name), default=argparse.SUPPRESS, help=text + default, metavar=metavar
        )
    group.add_argument(
        "--chart", action="store_true", default=argparse.SUPPRESS,
        help="draw the losses into training/loss.png",
    )  # fmt: skip
    groups: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        title = option.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(_flag(name), **_details(name, option, option.metadata["help"]))
    hidden = {**ALIASES, **_PATH_ALIASES}
    for alias, name in hidden.items():
        details: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        details["help"] = argparse.SUPPRESS
        if name in OPTIONS:
            details = _details(name, OPTIONS[name], argparse.SUPPRESS)
        parser.add_argument(_flag(alias), **details)
    parser.add_argument("--recipe", dest="config", type=Path, help=argparse.SUPPRESS)
    for name in _UNNEEDED:
        parser.add_argument(_flag(name), action="store_true", help=argparse.SUPPRESS)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _details(name: str, option: Any, text: str) -> dict[str, Any]:
    kind, length = option.metadata["kind"], option.metadata["length"]
    details: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if kind.type is bool:
        return details | {"action": argparse.BooleanOptionalAction}
    if option.default not in (None, ()) and text is not argparse.SUPPRESS:
        shown = option.default if length is not None else [option.default]
        details["help"] = f"{text} (default: {' '.join(map(str, shown))})"
    return details | {
        "type": size if name == "image_cache" else kind.type,
        "metavar": option.metadata["metavar"],
        "nargs": None if length is None else "*",
    }


def option_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the config file and, before those, of the command line.

    Raises:
        RequestError: the file cannot be read, or has an option that does not exist.
    """
    names = {*_PATHS, *OPTIONS, "chart"}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if arguments.config is None:
        return given
    return _read_config(local_path(arguments.config, RequestError), names) | given


def _read_config(file: Path, names: set[str]) -> dict[str, Any]:
    is_yaml = file.suffix in (".yaml", ".yml")
    content = _read_yaml(file) if is_yaml else read_json(file, RequestError)
    if not isinstance(content, dict):
        raise RequestError(f"{file} is no config; expected an object with names of options")
    values: dict[str, Any] = {}
    lora = content.pop("lora_parameters", None)
    if isinstance(lora, dict):  # as mlx-lm has it
        content |= {"lora_keys" if name == "keys" else name: value for name, value in lora.items()}
    for given, value in content.items():
        name = ALIASES.get(given) or _PATH_ALIASES.get(given, given)
        if given in _UNNEEDED:
            continue
        if name not in names:
            raise RequestError(
                f"{file}: {quoted(given)} is no option of train; names are those of the command"
                " line, with underscores"
            )
        if value is None:
            continue
        if name in OPTIONS:
            values[name] = _typed(file, name, value)
        elif isinstance(value, bool) if name == "chart" else isinstance(value, str):
            values[name] = value
        else:
            raise RequestError(f"{file}: {name} cannot be {quoted(value)}")
    return values


def _typed(file: Path, name: str, value: Any) -> Any:
    """Return a value of an option, as `TrainingConfig` takes it."""
    kind = OPTIONS[name].metadata["kind"]
    try:
        if name == "image_cache" and isinstance(value, str):
            value = size(value)
        elif kind.type is float and isinstance(value, str):
            value = float(value)  # YAML reads 1e-5 as a text
        TrainingConfig().changed({name: value})
    except (argparse.ArgumentTypeError, ValueError):
        raise RequestError(f"{file}: {name} cannot be {quoted(value)}") from None
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from None
    return value


def _read_yaml(file: Path) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise RequestError(
            f"{file}: YAML needs PyYAML: pip install pyyaml, or write the config as JSON"
        ) from None
    try:
        text = file.read_bytes()[: 2**20]
        # References to what was said before make a small file stand for a huge value.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise RequestError(f"{file}: aliases (*name) are not supported; write the value again")
        return yaml.safe_load(text)
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {reason(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"{file} is no YAML: {reason(error)}") from None
