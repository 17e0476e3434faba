"""Config of what tower, connector and decoder are built of: norms, attention, MLPs, blocks,
and rotary positions as far as mlx-lm's RoPE and the reference implementation agree on them."""

from dataclasses import dataclass, replace
from typing import Any

from ..errors import CheckpointError
from .config_reader import MAX_INTEGER, ConfigReader, boolean, number, positive, size

MAX_THETA = 1e30
"""Frequencies beyond it are no float32 numbers any more."""
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}  # fmt: skip
"""Kinds of `rope_scaling`, and what each needs. `dynamic` and `longrope` are missing: their angles
depend on the length reached, which the keys in a cache were not computed with."""

ACTIVATIONS = {
    "silu": "silu", "swish": "silu",
    "gelu": "gelu", "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
}  # fmt: skip
"""Names of activations, and which of the three implemented ones each means."""
DEFAULT_EPS = 1e-5


@dataclass(frozen=True)
class NormConfig:
    """A LayerNorm (`layer`) or RMSNorm (`rms`) with learned scale."""

    kind: str
    """`layer` or `rms`."""
    eps: float
    """Added to the variance."""
    bias: bool
    """Whether a LayerNorm also has a learned shift."""

    @classmethod
    def read(cls, reader: ConfigReader) -> "NormConfig":
        """Read an `lnorm_config` object.

        `low_precision` differs from `default` in mixed-precision training alone.
        """
        reader.only("with_affine", True)
        kind = reader.choice("type", ("default", "low_precision", "rms"), "default")
        bias = reader.read("bias", boolean, False)
        if kind == "rms" and bias:
            reader.refuse("bias", True, "false, since an RMSNorm has none")
        return cls(
            kind="rms" if kind == "rms" else "layer",
            eps=reader.read("eps", positive, DEFAULT_EPS),
            bias=bias,
        )


@dataclass(frozen=True)
class AttentionConfig:
    """Multi-head attention. Query, key and value projections are stored as one."""

    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int
    """Key and value heads; fewer than query heads means grouped-query attention."""
    head_dim: int
    """Size of one head."""
    scale: float
    """Factor on the scores, before the softmax."""
    projection_biases: tuple[bool, bool, bool]
    """Whether the query, key and value projections have a bias."""
    output_bias: bool
    """Whether the output projection has a bias."""
    q_norm: NormConfig | None
    """Norm over each query head, before RoPE."""
    k_norm: NormConfig | None
    """Norm over each key head, before RoPE."""

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def has_projection_bias(self) -> bool:
        """Whether any of query, key and value has a bias, and so the fused projection."""
        return any(self.projection_biases)

    def with_biases(self) -> "AttentionConfig":
        """Return a copy that adds biases to queries, keys and values."""
        return replace(self, projection_biases=(True, True, True))

    @classmethod
    def read(cls, reader: ConfigReader, hidden_size: int) -> "AttentionConfig":
        """Read an `attn_config` or `attn_pooling_config`, of projections from `hidden_size`."""
        reader.only("sliding_window", -1, None)
        reader.only("clip_qkv", None)
        for key in ("v_lnorm", "o_lnorm", "inner_lnorm"):
            reader.only(key, False)
        # Fused attention computes scores in float32 anyway, so `fp32` changes nothing.
        reader.harmless("fp32", "dropout")
        heads = reader.read("n_heads", size)
        head_dim = reader.read("head_dim", size, hidden_size // heads)
        if "head_dim" not in reader and hidden_size % heads:
            raise CheckpointError(
                f"{reader.name('head_dim')} is missing, and n_heads {heads} does not divide the"
                f" width {hidden_size}"
            )
        key_value_heads = reader.read("n_kv_heads", size, heads)
        if heads % key_value_heads:
            raise CheckpointError(
                f"{reader.name('n_kv_heads')} {key_value_heads} does not divide n_heads {heads}"
            )
        q_norm = reader.read("q_lnorm", boolean, False)
        k_norm = reader.read("k_lnorm", boolean, False)
        if q_norm or k_norm:
            reader.only("qkv_lnorm_on_heads", True)
        else:
            reader.harmless("qkv_lnorm_on_heads")
        norm = None
        if q_norm or k_norm:
            norm = NormConfig.read(reader.optional_section("lnorm_config"))
        reader.harmless("lnorm_config")
        return cls(
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=head_dim,
            # The reference implementation takes 0 for null.
            scale=reader.read("softmax_scale", number, 0.0) or head_dim**-0.5,
            projection_biases=(
                reader.read("q_bias", boolean, False),
                reader.read("k_bias", boolean, False),
                reader.read("v_bias", boolean, False),
            ),
            output_bias=reader.read("o_bias", boolean, False),
            q_norm=norm if q_norm else None,
            k_norm=norm if k_norm else None,
        )


@dataclass(frozen=True)
class MLPConfig:
    """Two projections with an activation between them, gated or not."""

    intermediate_size: int
    """Width between the projections (of one half, if gated)."""
    activation: str
    """`silu`, `gelu` or `gelu_pytorch_tanh`."""
    gated: bool
    """Whether the up projection holds a value half (first) and a gate half (second)."""
    bias: bool
    """Whether both projections have a bias."""

    @classmethod
    def read(cls, reader: ConfigReader, hidden_size: int) -> "MLPConfig":
        """Read an `ffn_config` or `mlp_projector_config` object."""
        reader.only("inner_lnorm", False)
        reader.harmless("lnorm_config")
        ratio = reader.read("ratio", positive, 4.0)
        width = min(ratio * hidden_size, float(MAX_INTEGER))
        return cls(
            intermediate_size=reader.read("size", size, max(1, int(width))),
            activation=ACTIVATIONS[
                reader.choice("activation_type", tuple(ACTIVATIONS), "silu", fold_case=True)
            ],
            gated=reader.read("gated_activation", boolean, True),
            bias=reader.read("bias", boolean, False),
        )


@dataclass(frozen=True)
class BlockConfig:
    """One pre-norm transformer block."""

    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig

    @classmethod
    def read(cls, reader: ConfigReader, hidden_size: int) -> "BlockConfig":
        """Read a `block_config` object."""
        reader.only("postnorm", False)
        reader.only("attn_lscale_init", None)
        reader.only("ffn_lscale_init", None)
        reader.harmless("residual_dropout", "residual_response_dropout", "residual_path_dropout")
        return cls(
            attention=AttentionConfig.read(reader.section("attn_config"), hidden_size),
            mlp=MLPConfig.read(reader.section("ffn_config"), hidden_size),
            norm=NormConfig.read(reader.optional_section("lnorm_config")),
        )


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
        kind = scaling.choice("rope_type", tuple(_ROPE_KEYS), "default")
        if "rope_type" not in scaling:
            # The reference implementation knows this older key not, and would not scale.
            scaling.only("type", None, "default")
        scaling.harmless("type")
        if kind == "default":
            scaling.harmless(*_ROPE_KEYS["llama3"])
            return cls(theta, None)
        values: dict[str, Any] = {"rope_type": kind}
        for key in _ROPE_KEYS[kind]:
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
