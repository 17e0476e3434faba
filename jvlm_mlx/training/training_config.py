"""What one training run is asked to do, checked before anything is loaded."""

import math
from dataclasses import dataclass, fields

from ..errors import RequestError
from .modules import PARTS

DECAYS = ("cosine", "linear", "constant")
DTYPES = ("float32", "bfloat16")
ADAPTERS = ("lora", "dora")


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """How one part of the model is trained."""

    trainable: bool
    """False leaves the part as it is."""
    learning_rate: float
    """Highest learning rate, reached after the warm-up."""
    warmup_steps: int
    """Steps in which the learning rate grows from zero."""
    decay: str
    """`cosine`, `linear` or `constant`: the way from there to the floor."""
    floor: float
    """Learning rate of the last step, as a share of the highest."""

    def check(self, part: str) -> None:
        """Refuse what makes no sense.

        Raises:
            RequestError: naming the part and the setting.
        """
        if not 0 < self.learning_rate < math.inf:
            raise RequestError(
                f"{part}: learning rate {self.learning_rate} must be above 0 and finite"
            )
        if self.warmup_steps < 0:
            raise RequestError(f"{part}: {self.warmup_steps} warm-up steps must not be negative")
        if self.decay not in DECAYS:
            raise RequestError(f"{part}: decay {self.decay} is not one of {', '.join(DECAYS)}")
        if not 0 <= self.floor <= 1:
            raise RequestError(f"{part}: floor {self.floor} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Small trainable matrices beside layers that stay as they are."""

    kind: str
    """`lora` or `dora`."""
    parts: tuple[str, ...]
    """Parts of the model whose linear layers get an adapter."""
    rank: int
    scale: float
    """Factor on what an adapter adds."""
    dropout: float
    """Share of an adapter's inputs that are left out while training."""
    num_layers: int | None
    """Last layers of tower and decoder that get adapters; None for all."""
    keys: tuple[str, ...] | None
    """Endings of the names of layers, like `attention.qkv`; None for every linear layer."""

    def __post_init__(self) -> None:
        if self.kind not in ADAPTERS:
            raise RequestError(f"adapter {self.kind} is not one of {', '.join(ADAPTERS)}")
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise RequestError(
                f"adapter parts {', '.join(unknown) or '(none)'}: give some of {', '.join(PARTS)}"
            )
        if self.rank < 1:
            raise RequestError(f"adapter rank {self.rank} must be at least 1")
        if not math.isfinite(self.scale):
            raise RequestError(f"adapter scale {self.scale} must be finite")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"adapter dropout {self.dropout} must be at least 0 and below 1")
        if self.num_layers is not None and self.num_layers < 1:
            raise RequestError(f"adapter layers {self.num_layers} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A training run. Nothing has a default: the command line has them."""

    vision_tower: ModuleConfig
    connector: ModuleConfig
    decoder: ModuleConfig
    steps: int
    """Updates of the weights."""
    accumulate: int
    """Batches whose gradients make up one update."""
    betas: tuple[float, float]
    """Of AdamW."""
    eps: float
    """Of AdamW."""
    weight_decay: float
    """Of AdamW, for what `parts.decays` says."""
    max_grad_norm: float | None
    """Longest gradient, all parts together; None for no limit."""
    dtype: str
    """What is computed in: `float32` or `bfloat16`. Trained weights are float32 beside that."""
    gradient_checkpointing: bool
    """Whether activations within layers are computed twice instead of kept."""
    compile: bool
    """Whether whole batches are compiled, once for every shape of a batch that occurs."""
    seed: int
    """Of everything random in a step."""
    validate_every: int | None
    """Steps between validations; None for none."""
    save_every: int | None
    """Steps between checkpoints; None for none but the last."""
    keep: int
    """Most checkpoints that are kept."""
    report_every: int
    """Steps between lines of metrics."""
    adapter: AdapterOptions | None
    """None trains the weights themselves."""

    def __post_init__(self) -> None:
        for part in PARTS:
            self.part(part).check(part)
        counts = ("steps", "accumulate", "keep", "report_every")
        for name in (*counts, "validate_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} {value} must be at least 1")
        if not any(self.part(part).trainable for part in self.trained_parts):
            raise RequestError("nothing is left to train: every part is frozen")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise RequestError(f"betas {self.betas} must be at least 0 and below 1")
        if not 0 < self.eps < math.inf:
            raise RequestError(f"eps {self.eps} must be above 0 and finite")
        if not 0 <= self.weight_decay < math.inf:
            raise RequestError(f"weight_decay {self.weight_decay} must be at least 0 and finite")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise RequestError(f"max_grad_norm {self.max_grad_norm} must be above 0 and finite")
        if not 0 <= self.seed < 2**64:
            raise RequestError(f"seed {self.seed} must be at least 0 and below 2**64")
        if self.dtype not in DTYPES:
            raise RequestError(f"dtype {self.dtype} is not one of {', '.join(DTYPES)}")

    def part(self, part: str) -> ModuleConfig:
        """Return the config of a part, by its name."""
        config = getattr(self, part)
        assert isinstance(config, ModuleConfig)
        return config

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Parts with parameters that change, in the order of `PARTS`."""
        candidates = PARTS if self.adapter is None else self.adapter.parts
        return tuple(part for part in PARTS if part in candidates and self.part(part).trainable)


def changed_fields(one: TrainingConfig, other: TrainingConfig) -> list[str]:
    """Return the names of the config in which two runs differ."""
    return [
        field.name
        for field in fields(TrainingConfig)
        if getattr(one, field.name) != getattr(other, field.name)
    ]
