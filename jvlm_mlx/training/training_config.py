"""The options of a training run: one table that Python, the command line and config files share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..config.image_config import ImageOptions
from ..config.json_file import quoted
from ..errors import RequestError

MODULES = ("vision_tower", "connector", "decoder")
"""What has learning rates of its own. Embedding tables and head belong to the decoder."""
DEFAULT_ITERS = 1000
MAX_ITERS = 10**8 - 1
"""Checkpoints are numbered with eight digits."""
_FULL_RATES = {"vision_tower": 6e-6, "connector": 2e-4, "decoder": 2e-5}
_ADAPTER_RATE = 1e-4


@dataclass(frozen=True)
class Kind:
    """Which values an option takes."""

    type: type
    expected: str
    accepts: Callable[[Any], bool]

    def convert(self, value: Any) -> Any:
        """Return a value as this type.

        Raises:
            TypeError: it is of another type, or out of range.
        """
        if isinstance(value, bool) != (self.type is bool):
            raise TypeError
        if self.type is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, self.type) or not self.accepts(value):
            raise TypeError
        return value


def _whole(low: int, high: int) -> Kind:
    return Kind(int, f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def _one_of(*choices: str) -> Kind:
    return Kind(str, f"one of {', '.join(choices)}", lambda value: value in choices)


_COUNT = _whole(1, MAX_ITERS)
_COUNT_OR_NONE = _whole(0, MAX_ITERS)
_POSITIVE = Kind(float, "a finite number above 0", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = Kind(float, "a finite number of at least 0", lambda value: 0 <= value < math.inf)
_FINITE = Kind(float, "a finite number", math.isfinite)
_FRACTION = Kind(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE = Kind(float, "a number of at least 0 and below 1", lambda value: 0 <= value < 1)
_SWITCH = Kind(bool, "true or false", lambda _: True)
_TEXT = Kind(str, "a text", bool)
_MODULE = _one_of(*MODULES)
_DECAY = _one_of("cosine", "linear", "constant")


def _option(
    group: str,
    kind: Kind,
    default: Any,
    text: str,
    metavar: str | None = None,
    *,
    length: range | None = None,
    alias: str | None = None,
) -> Any:
    """Declare an option; its default is None where it follows from others.

    `length` is how many values there may be, if there may be several; `alias` is what earlier
    versions called it.
    """
    metadata = {"group": group, "kind": kind, "help": text, "metavar": metavar, "length": length}
    return field(default=default, metadata={**metadata, "alias": alias})


def _rate_option(module: str, name: str) -> Any:
    """Declare how the learning rate of a module, or of all, changes."""
    kind, default, text, metavar = _RATES[name]
    # A module has what all have, unless it has its own.
    default = None if module else default
    of = f" of the {module.replace('_', ' ')}" if module else ""
    alias = f"{module}_warmup_steps".removeprefix("_") if name == "warmup_iters" else None
    return _option("learning rates", kind, default, text.format(of), metavar, alias=alias)


_RATES = {
    "learning_rate": (_POSITIVE, None, "highest learning rate{}; else by module", None),
    "warmup_iters": (_COUNT_OR_NONE, None, "iterations until it is reached{}; else a tenth of all,"
                     " for the connector a hundredth", "ITERS"),
    "decay": (_DECAY, "cosine", "decay of the learning rate{} after that", None),
    "floor": (_FRACTION, 0.1, "last learning rate{} as a fraction of the highest", "FRACTION"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of a training run, each with a default, checked before anything is loaded.

    An iteration is one update of the weights. Where an option counts iterations, 0 means never.

    Raises:
        RequestError: a value is of the wrong type or out of range; names the option.
    """

    batch_size: int = _option("data", _whole(1, 2**16), 4, "examples of a batch")
    max_seq_length: int | None = _option(
        "data", _COUNT, None, "refuse examples of more tokens; else the model's context",
        "TOKENS", alias="max_length")  # fmt: skip
    max_crops: int | None = _option(
        "data", _COUNT_OR_NONE, None, "most tiles of an image beside its thumbnail; else the"
        " checkpoint's", "TILES")  # fmt: skip
    min_pixels: int | None = _option("data", _COUNT, None, "enlarge images of a smaller area")
    max_pixels: int | None = _option("data", _COUNT, None, "reduce images of a larger area")
    text_fraction: float | None = _option(
        "data", _FRACTION, None, "fraction of examples without images; else by the weights of"
        " sources, and in a single file as it is", "FRACTION", alias="text_share")  # fmt: skip
    single_source: bool = _option(
        "data", _SWITCH, False, "take all examples of a batch from one source")  # fmt: skip
    single_source_iters: int = _option(
        "data", _COUNT_OR_NONE, 0, "begin with single-source batches for so many iterations",
        "ITERS", alias="single_source_steps")  # fmt: skip
    bucket_batches: int = _option(
        "data", _whole(1, 2**12), 16, "batches among which examples are sorted by length",
        "BATCHES")  # fmt: skip
    pad_to_multiple: int = _option(
        "data", _whole(1, 2**12), 1, "make lengths of batches a multiple of this",
        "TOKENS")  # fmt: skip
    image_cache: int = _option(
        "data", _whole(0, 2**50), 10**9, "memory for images that will be used again",
        "SIZE")  # fmt: skip

    iters: int | None = _option(
        "length", _COUNT, None, f"updates of the weights; else {DEFAULT_ITERS}",
        alias="steps")  # fmt: skip
    epochs: float | None = _option(
        "length", _POSITIVE, None, "instead of iterations: how often to draw as many examples as"
        " there are; of a single file, these are all of them")  # fmt: skip
    grad_accumulation_steps: int = _option(
        "length", _whole(1, 2**16), 1, "batches that make up one iteration", "BATCHES",
        alias="accumulate")  # fmt: skip
    seed: int = _option("length", _whole(0, 2**64 - 1), 0, "of the order of examples and dropout")

    fine_tune_type: str = _option(
        "what is trained", _one_of("lora", "dora", "full"), "lora",
        "adapters (lora, dora), or the weights themselves (full)", alias="adapter")  # fmt: skip
    freeze: tuple[str, ...] = _option(
        "what is trained", _MODULE, (), "modules that stay as they are", "MODULE",
        length=range(0, 4))  # fmt: skip
    lora_modules: tuple[str, ...] = _option(
        "what is trained", _MODULE, ("decoder",), "modules that get adapters", "MODULE",
        length=range(1, 4), alias="adapter_parts")  # fmt: skip
    num_layers: int | None = _option(
        "what is trained", _whole(-1, 10**6), None, "last layers of tower and decoder that get"
        " adapters; else, or with -1, all", "LAYERS", alias="adapter_layers")  # fmt: skip
    lora_keys: tuple[str, ...] | None = _option(
        "what is trained", _TEXT, None, "layers that get adapters, like attention.qkv; else every"
        " linear one", "NAME", length=range(1, 10**4), alias="adapter_keys")  # fmt: skip
    rank: int = _option("what is trained", _whole(1, 2**14), 8, "of an adapter")
    scale: float = _option("what is trained", _FINITE, 20.0, "factor on what an adapter adds")
    dropout: float = _option(
        "what is trained", _BELOW_ONE, 0.0, "fraction of an adapter's inputs left out in training",
        "FRACTION")  # fmt: skip

    learning_rate: float | None = _rate_option("", "learning_rate")
    warmup_iters: int | None = _rate_option("", "warmup_iters")
    decay: str = _rate_option("", "decay")
    floor: float = _rate_option("", "floor")
    vision_tower_learning_rate: float | None = _rate_option("vision_tower", "learning_rate")
    vision_tower_warmup_iters: int | None = _rate_option("vision_tower", "warmup_iters")
    vision_tower_decay: str | None = _rate_option("vision_tower", "decay")
    vision_tower_floor: float | None = _rate_option("vision_tower", "floor")
    connector_learning_rate: float | None = _rate_option("connector", "learning_rate")
    connector_warmup_iters: int | None = _rate_option("connector", "warmup_iters")
    connector_decay: str | None = _rate_option("connector", "decay")
    connector_floor: float | None = _rate_option("connector", "floor")
    decoder_learning_rate: float | None = _rate_option("decoder", "learning_rate")
    decoder_warmup_iters: int | None = _rate_option("decoder", "warmup_iters")
    decoder_decay: str | None = _rate_option("decoder", "decay")
    decoder_floor: float | None = _rate_option("decoder", "floor")

    betas: tuple[float, float] = _option(
        "optimizer", _BELOW_ONE, (0.9, 0.95), "of AdamW", "BETA", length=range(2, 3))  # fmt: skip
    eps: float = _option("optimizer", _POSITIVE, 1e-8, "of AdamW")
    weight_decay: float = _option(
        "optimizer", _NOT_NEGATIVE, 0.01, "of AdamW; not for norms, biases and tables")  # fmt: skip
    max_grad_norm: float = _option(
        "optimizer", _NOT_NEGATIVE, 1.0, "longest gradient of all modules together; 0 for no"
        " limit")  # fmt: skip
    dtype: str = _option(
        "optimizer", _one_of("float32", "bfloat16"), "bfloat16", "compute in this; trained weights"
        " are float32 beside that")  # fmt: skip
    grad_checkpoint: bool = _option(
        "optimizer", _SWITCH, False, "less memory, more time: compute activations twice",
        alias="gradient_checkpointing")  # fmt: skip
    compile: bool = _option(
        "optimizer", _SWITCH, False, "compile whole batches, once for every shape that"
        " occurs")  # fmt: skip

    steps_per_report: int = _option(
        "output", _COUNT, 1, "iterations between reports", "ITERS", alias="report_every"
    )
    steps_per_eval: int = _option(
        "output", _COUNT_OR_NONE, 100, "iterations between validations", "ITERS",
        alias="validate_every")  # fmt: skip
    save_every: int = _option(
        "output", _COUNT_OR_NONE, 500, "iterations between checkpoints", "ITERS")  # fmt: skip
    keep: int = _option("output", _COUNT, 2, "checkpoints that are kept", "CHECKPOINTS")

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, _checked(name, option, getattr(self, name)))
        if self.iters is not None and self.epochs is not None:
            raise RequestError("give the length of the training as either iters or epochs")
        if self.is_full and len(set(self.freeze)) == len(MODULES):
            raise RequestError("nothing is left to train: every module is frozen")
        if not self.is_full and not set(self.lora_modules) - set(self.freeze):
            raise RequestError(
                "nothing is left to train: every module with adapters is frozen; change freeze or"
                " lora_modules"
            )

    @property
    def is_full(self) -> bool:
        """Whether the weights themselves are trained."""
        return self.fine_tune_type == "full"

    @property
    def image_options(self) -> ImageOptions:
        """For all images."""
        return ImageOptions(
            max_crops=self.max_crops, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )

    @property
    def trained_modules(self) -> tuple[str, ...]:
        """Modules with parameters that change, in the order of `MODULES`."""
        candidates = MODULES if self.is_full else self.lora_modules
        return tuple(name for name in MODULES if name in candidates and name not in self.freeze)

    def rates(self, module: str, iters: int) -> "Rates":
        """Return the learning rates of a module in a run of so many iterations."""
        own, common = (
            {name: getattr(self, f"{prefix}{name}")
             for name in ("learning_rate", "warmup_iters", "decay", "floor")}
            for prefix in (f"{module}_", "")
        )  # fmt: skip
        chosen = {name: common[name] if value is None else value for name, value in own.items()}
        if chosen["learning_rate"] is None:
            chosen["learning_rate"] = _FULL_RATES[module] if self.is_full else _ADAPTER_RATE
        if chosen["warmup_iters"] is None:
            chosen["warmup_iters"] = iters // (100 if module == "connector" else 10)
        return Rates(**chosen)

    def changed(self, values: Mapping[str, Any]) -> "TrainingConfig":
        """Return a copy with other values of some options.

        Raises:
            RequestError: there is no such option, or as for the class.
        """
        for name in values:
            if name not in OPTIONS:
                raise RequestError(f"{quoted(name)} is no option of training")
        return replace(self, **values)

    def non_defaults(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by name."""
        return {
            name: getattr(self, name)
            for name, option in OPTIONS.items()
            if getattr(self, name) != option.default
        }


@dataclass(frozen=True)
class Rates:
    """How the learning rate of one module changes over a run."""

    learning_rate: float
    """Highest rate."""
    warmup_iters: int
    """Iterations in which it is reached in a straight line."""
    decay: str
    """`cosine`, `linear` or `constant`."""
    floor: float
    """Rate of the last iteration, as a fraction of the highest."""


OPTIONS = {option.name: option for option in fields(TrainingConfig)}
ALIASES = {
    option.metadata["alias"]: name
    for name, option in OPTIONS.items()
    if option.metadata["alias"] is not None
}
"""Names of earlier versions."""


def _checked(name: str, option: Any, value: Any) -> Any:
    if value is None and option.default is None:
        return None
    kind, length = option.metadata["kind"], option.metadata["length"]
    several = length is not None
    try:
        if not several:
            return kind.convert(value)
        if not isinstance(value, list | tuple) or len(value) not in length:
            raise TypeError
        return tuple(kind.convert(one) for one in value)
    except (TypeError, OverflowError):
        expected = kind.expected
        if several:
            count = f"{length[0]}" if len(length) == 1 else f"{length[0]} or more"
            expected = f"a list of {count}, each {expected}"
        raise RequestError(f"{name} is {quoted(value)}; expected {expected}") from None


def module_of(path: str) -> str:
    """Return the module that a parameter of the model belongs to, by its path."""
    first = path.split(".", 1)[0]
    return "decoder" if first == "lm_head" else first


def decays(path: str, dimensions: int) -> bool:
    """Return whether weight decay applies to a parameter of so many dimensions.

    It does for the matrices of linear layers and adapters. Scales of norms and biases keep their
    size, and so do tables, of which one step sees few rows.
    """
    tables = ("embedding", "embedding.weight", "pad_embed", "position_embedding")
    return (dimensions > 1 and not path.endswith(tables)) or path.endswith("patch_embedding.weight")
