"""What config.json says about the network: tower, connector, decoder."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .blocks import AttentionSettings, BlockSettings, MLPSettings
from .config_reader import SettingsReader, boolean, count, integers, positive, size, sizes

MODEL_TYPES = ("jvlm", "jina_vlm")

ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": ("factor",),
    "longrope": ("original_max_position_embeddings", "short_factor", "long_factor"),
}  # fmt: skip
"""Kinds of `rope_scaling`, and what each needs. `dynamic` is missing: its angles depend on the
length reached, which keys in a cache were not computed with."""


@dataclass(frozen=True)
class TowerSettings:
    """The vision tower (SigLIP2)."""

    hidden_size: int
    num_hidden_layers: int
    """Layers of the checkpoint; `num_used_layers` of them are needed."""
    block: BlockSettings
    image_size: tuple[int, int]
    """Height and width of a tile in pixels."""
    patch_size: int
    """Side of a square patch in pixels."""
    num_channels: int
    patch_embedding_bias: bool
    final_norm: bool
    """Whether the list of hidden states ends with a normalised one."""
    feature_layers: tuple[int, ...]
    """Places in the list [output of layer 0, output of layer 1, ..., final norm] whose vectors
    are concatenated, in this order. Counted from zero; never negative."""

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a tile."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in a tile."""
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def patch_values(self) -> int:
        """Numbers in a flattened patch."""
        return self.patch_size * self.patch_size * self.num_channels

    @property
    def feature_size(self) -> int:
        """Width of the concatenated features."""
        return self.hidden_size * len(self.feature_layers)

    @property
    def num_used_layers(self) -> int:
        """Layers up to the last one that a feature needs; later ones are never run."""
        return min(max(self.feature_layers) + 1, self.num_hidden_layers)

    @property
    def uses_final_norm(self) -> bool:
        """Whether a feature is the output of the final norm."""
        return max(self.feature_layers) == self.num_hidden_layers

    @classmethod
    def read(cls, config: SettingsReader) -> "TowerSettings":
        """Read `vision_config`, but for the connector and the output size."""
        config.only("linear_patch_embedding", True)
        config.only("pre_lnorm", False)
        config.only("use_cls_token", False)
        config.only("use_absolute_positional_embeddings", True)
        config.only("n_channels", 3)
        # Interpolation of the position table is for sizes other than the trained one only.
        config.harmless("model_type", "patch_dropout", "positional_interpolation")
        hidden_size = config.read("hidden_size", size)
        num_layers = config.read("n_layers", size)
        final_norm = config.read("post_lnorm", boolean)
        image_size = config.read("input_size", sizes)
        if len(image_size) != 2:
            raise CheckpointError(f"{config.name('input_size')} must have two numbers")
        states = num_layers + final_norm
        layers = config.read("vit_layers", integers)
        if not layers or any(not -states <= layer < states for layer in layers):
            raise CheckpointError(
                f"{config.name('vit_layers')} = {list(layers)}: expected places from"
                f" {-states} to {states - 1}, since there are {states} hidden states"
            )
        return cls(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            block=BlockSettings.read(config.section("block_config"), hidden_size),
            image_size=(image_size[0], image_size[1]),
            patch_size=config.read("patch_size", size),
            num_channels=3,
            patch_embedding_bias=config.read("patch_embedding_bias", boolean, True),
            final_norm=final_norm,
            feature_layers=tuple(layer % states for layer in layers),
        )


@dataclass(frozen=True)
class ConnectorSettings:
    """The connector: attention pooling over small windows, then a projection."""

    pad_embed: bool
    """Whether padding patches are marked by a learned vector."""
    pooling: AttentionSettings
    pooling_size: tuple[int, int]
    """Height and width of a pooled window in patches."""
    projector: MLPSettings
    output_size: int
    """Width of a pooled and projected vector: the decoder's hidden size."""

    @classmethod
    def read(cls, vision: SettingsReader, tower: TowerSettings) -> "ConnectorSettings":
        """Read `vision_config.vl_connector_config` and `vision_config.output_size`."""
        config = vision.section("vl_connector_config")
        config.only("pooling_type", "attention_meanq")
        config.only("projector_type", "mlp")
        config.only("padding_embed_type", "pad_and_partial_pad", None)
        # `spatial_merge_size` repeats the pooling size for tools that expect that name.
        config.harmless("projector_dropout", "feature_dropout", "spatial_merge_size")
        pooling = config.section("attn_pooling_config")
        for key in ("q_lnorm", "k_lnorm"):
            pooling.only(key, False)
        return cls(
            pad_embed="padding_embed_type" in config,
            pooling=AttentionSettings.read(pooling, tower.hidden_size),
            pooling_size=(config.read("pooling_h", size), config.read("pooling_w", size)),
            projector=MLPSettings.read(config.section("mlp_projector_config"), tower.hidden_size),
            output_size=vision.read("output_size", size),
        )


@dataclass(frozen=True)
class DecoderSettings:
    """The language model (Qwen3)."""

    hidden_size: int
    num_hidden_layers: int
    block: BlockSettings
    vocab_size: int
    """Tokens that can be produced: columns of the logits."""
    embedding_size: int
    """Rows of the first embedding table; ids from here on read the second."""
    additional_vocab_size: int
    """Rows of the second embedding table: added tokens, which cannot be produced."""
    scale_embeddings: bool
    """Whether input embeddings are multiplied by the square root of the hidden size."""
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    """Passed to mlx-lm's RoPE as it stands."""
    context_size: int
    """Most tokens of prompt and answer together."""

    @classmethod
    def read(cls, config: SettingsReader) -> "DecoderSettings":
        """Read `text_config`, but for the tied head."""
        config.only("rope", True)
        config.only("partial_rotary_factor", 1.0)
        config.harmless("model_type", "embedding_dropout", "tie_word_embeddings")
        hidden_size = config.read("hidden_size", size)
        num_layers = config.read("n_layers", size, config.read("num_hidden_layers", size, 0))
        if num_layers < 1:
            raise CheckpointError(f"{config.name('n_layers')} is missing")
        vocab_size = config.read("vocab_size", size)
        context_size = config.read("max_position_embeddings", size, 0) or config.read(
            "max_sequence_length", size
        )
        config.harmless("max_sequence_length")
        return cls(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            block=BlockSettings.read(config.section("block_config"), hidden_size),
            vocab_size=vocab_size,
            embedding_size=config.read("embedding_size", size, vocab_size),
            additional_vocab_size=config.read("additional_vocab_size", count, 0),
            scale_embeddings=config.read("normalize_input_embeds", boolean, False),
            rope_theta=config.read("rope_theta", positive),
            rope_scaling=_read_rope_scaling(config),
            context_size=context_size,
        )


@dataclass(frozen=True)
class ModelSettings:
    """The whole network."""

    tower: TowerSettings
    connector: ConnectorSettings
    decoder: DecoderSettings
    tie_word_embeddings: bool
    """Whether the head is the first embedding table."""

    def with_decoder_biases(self) -> "ModelSettings":
        """Return a copy whose decoder adds biases to queries, keys and values.

        Released checkpoints carry such biases although their settings say there are none.
        They are zeros there, and dropped; a checkpoint whose biases are not needs this copy.
        """
        attention = dataclasses.replace(
            self.decoder.block.attention, projection_biases=(True, True, True)
        )
        block = dataclasses.replace(self.decoder.block, attention=attention)
        return dataclasses.replace(self, decoder=dataclasses.replace(self.decoder, block=block))

    @classmethod
    def read(cls, config: SettingsReader) -> "ModelSettings":
        """Read the contents of config.json.

        Raises:
            UnsupportedSettingError: a setting that changes the mathematics is not implemented.
            CheckpointError: a setting is missing or malformed, or two do not fit together.
        """
        config.choice("model_type", MODEL_TYPES, MODEL_TYPES[0])
        # Class names point at code elsewhere; token ids are read from the tokenizer and
        # generation settings; dtypes from the tensors themselves.
        config.harmless("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version")
        config.harmless("bos_token_id", "eos_token_id", "pad_token_id", "image_token_index")
        config.harmless("quantization", "quantization_config", "use_cache")
        # What this package's conversion notes about itself.
        config.harmless("jvlm_mlx")
        vision, text = config.section("vision_config"), config.section("text_config")
        tower = TowerSettings.read(vision)
        settings = cls(
            tower=tower,
            connector=ConnectorSettings.read(vision, tower),
            decoder=DecoderSettings.read(text),
            tie_word_embeddings=config.read(
                "tie_word_embeddings",
                boolean,
                text.read("tie_word_embeddings", boolean, False),
            ),
        )
        if settings.connector.output_size != settings.decoder.hidden_size:
            raise CheckpointError(
                f"{vision.name('output_size')} {settings.connector.output_size} differs from"
                f" {text.name('hidden_size')} {settings.decoder.hidden_size}"
            )
        return settings


def _read_rope_scaling(config: SettingsReader) -> dict[str, Any] | None:
    scaling = config.read("rope_scaling", _mapping, None)
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        config.refuse("rope_scaling", scaling, f"rope_type {' or '.join(ROPE_TYPES)}")
    missing = [key for key in ROPE_TYPES[kind] if key not in scaling]
    if missing:
        raise CheckpointError(f"{config.name('rope_scaling')} has no {', '.join(missing)}")
    return scaling


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("a JSON object")
    return value
