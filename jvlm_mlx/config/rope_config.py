"""Rotary positions: `rope_theta` and `rope_scaling`, as far as mlx-lm's RoPE and the reference
implementation agree on what they mean. Everything else is refused by name."""

from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .config_reader import ConfigReader, number, positive, size

MAX_THETA = 1e30
"""Frequencies beyond it are no float32 numbers any more."""
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}  # fmt: skip
"""Kinds of `rope_scaling`, and what each needs. `dynamic` and `longrope` are missing: their angles
depend on the length reached, which the keys in a cache were not computed with."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions of the decoder's queries and keys."""

    theta: float
    """Base of the wavelengths."""
    scaling: dict[str, Any] | None
    """As mlx-lm's RoPE takes it; None without."""

    @classmethod
    def read(cls, reader: ConfigReader) -> "RopeConfig":
        """Read `rope_theta` and `rope_scaling` of `text_config`.

        Raises:
            UnsupportedSettingError: a kind or a key of scaling is not implemented.
            CheckpointError: a number is missing or out of range.
        """
        theta = reader.read("rope_theta", positive)
        if not 1 < theta <= MAX_THETA:
            raise CheckpointError(
                f"{reader.name('rope_theta')} is {theta}; expected a number above 1 and up to"
                f" {MAX_THETA:.0e}"
            )
        scaling = reader.optional_section("rope_scaling")
        kind = scaling.choice("rope_type", tuple(_KEYS), "default")
        if "rope_type" not in scaling:
            # The reference implementation knows this older key not, and would not scale.
            scaling.only("type", None, "default")
        scaling.harmless("type")
        if kind == "default":
            scaling.harmless(*_KEYS["llama3"])
            return cls(theta, None)
        values: dict[str, Any] = {"rope_type": kind}
        for key in _KEYS[kind]:
            read = size if key == "original_max_position_embeddings" else positive
            values[key] = scaling.read(key, read)
        if kind == "llama3" and values["low_freq_factor"] >= values["high_freq_factor"]:
            raise CheckpointError(
                f"{scaling.name('high_freq_factor')} {values['high_freq_factor']} is not above"
                f" low_freq_factor {values['low_freq_factor']}"
            )
        if kind == "yarn":
            scaling.only("attention_factor", None)
            scaling.only("truncate", True, None)
            for key in ("beta_fast", "beta_slow"):
                if key in scaling:
                    values[key] = scaling.read(key, positive)
            # The reference implementation takes the two together, or neither.
            scales = {key: scaling.read(key, number, 0.0) for key in ("mscale", "mscale_all_dim")}
            if all(scales.values()):
                values |= scales
        return cls(theta, values)
