"""What config.json says about the network: tower, connector, decoder."""

import dataclasses
from dataclasses import dataclass

from ..errors import CheckpointError
from .blocks import AttentionConfig, BlockConfig, MLPConfig, RopeConfig
from .config_reader import ConfigReader, boolean, count, integers, size, sizes

MODEL_TYPES = ("jvlm", "jina_vlm")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower (SigLIP2)."""

    hidden_size: int
    num_hidden_layers: int
    """Layers of the checkpoint; `num_used_layers` of them are needed."""
    block: BlockConfig
    image_size: tuple[int, int]
    """Height and width of a tile in pixels."""
    patch_size: int
    """Side of a square patch in pixels."""
    num_channels: int
    patch_embedding_bias: bool
    final_norm: bool
    """Whether the last hidden state is normalized; without, it is the last layer's output again."""
    feature_layers: tuple[int, ...]
    """Indices into the list [output of layer 0, output of layer 1, ..., final norm] of the hidden
    states that are concatenated, in this order. Counted from zero; never negative."""

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
        return self.final_norm and max(self.feature_layers) == self.num_hidden_layers

    @classmethod
    def read(cls, reader: ConfigReader) -> "VisionConfig":
        """Read `vision_config`, but for the connector and the output size."""
        reader.only("linear_patch_embedding", True)
        reader.only("pre_lnorm", False)
        reader.only("use_cls_token", False)
        reader.only("use_absolute_positional_embeddings", True)
        reader.only("n_channels", 3)
        # Interpolation of the position table is for sizes other than the trained one only.
        reader.harmless("model_type", "patch_dropout", "positional_interpolation")
        hidden_size = reader.read("hidden_size", size)
        num_layers = reader.read("n_layers", size)
        final_norm = reader.read("post_lnorm", boolean)
        image_size = reader.read("input_size", sizes)
        patch_size = reader.read("patch_size", size)
        if len(image_size) != 2 or min(image_size) < patch_size:
            raise CheckpointError(
                f"{reader.name('input_size')} must have two numbers, not below patch_size"
                f" {patch_size}"
            )
        states = num_layers + 1
        layers = reader.read("vit_layers", integers)
        if not layers or any(not -states <= layer < states for layer in layers):
            raise CheckpointError(
                f"{reader.name('vit_layers')} = {list(layers)}: expected indices from"
                f" {-states} to {states - 1}, since there are {states} hidden states"
            )
        return cls(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            block=BlockConfig.read(reader.section("block_config"), hidden_size),
            image_size=(image_size[0], image_size[1]),
            patch_size=patch_size,
            num_channels=3,
            patch_embedding_bias=reader.read("patch_embedding_bias", boolean, True),
            final_norm=final_norm,
            feature_layers=tuple(layer % states for layer in layers),
        )


@dataclass(frozen=True)
class ConnectorConfig:
    """The connector: attention pooling over small windows, then a projection."""

    pad_embed: bool
    """Whether padding patches are marked by a learned vector."""
    pooling: AttentionConfig
    pooling_size: tuple[int, int]
    """Height and width of a pooled window in patches."""
    projector: MLPConfig
    output_size: int
    """Width of a pooled and projected vector: the decoder's hidden size."""

    @classmethod
    def read(cls, vision: ConfigReader, tower: VisionConfig) -> "ConnectorConfig":
        """Read `vision_config.vl_connector_config` and `vision_config.output_size`."""
        reader = vision.section("vl_connector_config")
        reader.only("pooling_type", "attention_meanq")
        reader.only("projector_type", "mlp")
        reader.only("padding_embed_type", "pad_and_partial_pad", None)
        # `spatial_merge_size` repeats the pooling size for tools that expect that name.
        reader.harmless("projector_dropout", "feature_dropout", "spatial_merge_size")
        pooling = reader.section("attn_pooling_config")
        for key in ("q_lnorm", "k_lnorm"):
            pooling.only(key, False)
        return cls(
            pad_embed="padding_embed_type" in reader,
            pooling=AttentionConfig.read(pooling, tower.feature_size),
            pooling_size=(reader.read("pooling_h", size), reader.read("pooling_w", size)),
            projector=MLPConfig.read(reader.section("mlp_projector_config"), tower.hidden_size),
            output_size=vision.read("output_size", size),
        )


@dataclass(frozen=True)
class DecoderConfig:
    """The language model (Qwen3)."""

    hidden_size: int
    num_hidden_layers: int
    block: BlockConfig
    vocab_size: int
    """Tokens that can be produced: columns of the logits."""
    embedding_size: int
    """Rows of the first embedding table; ids from here on read the second."""
    additional_vocab_size: int
    """Rows of the second embedding table: added tokens, which cannot be produced."""
    scale_embeddings: bool
    """Whether input embeddings are multiplied by the square root of the hidden size."""
    rope: RopeConfig
    context_size: int
    """Maximum number of tokens, prompt and answer together."""

    @property
    def embedding_rows(self) -> int:
        """Rows of both embedding tables together."""
        return self.embedding_size + self.additional_vocab_size

    @classmethod
    def read(cls, reader: ConfigReader) -> "DecoderConfig":
        """Read `text_config`, but for the tied head."""
        reader.only("rope", True)
        reader.only("partial_rotary_factor", 1.0)
        reader.harmless("model_type", "embedding_dropout", "tie_word_embeddings")
        hidden_size = reader.read("hidden_size", size)
        num_layers = reader.read("n_layers", size, reader.read("num_hidden_layers", size, 0))
        if num_layers < 1:
            raise CheckpointError(f"{reader.name('n_layers')} is missing")
        vocab_size = reader.read("vocab_size", size)
        context_size = reader.read("max_position_embeddings", size, 0) or reader.read(
            "max_sequence_length", size
        )
        reader.harmless("max_sequence_length")
        block = BlockConfig.read(reader.section("block_config"), hidden_size)
        if block.attention.head_dim % 2:
            raise CheckpointError(
                f"{reader.name('block_config.attn_config.head_dim')} is"
                f" {block.attention.head_dim}; expected an even number, for rotary positions"
            )
        return cls(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            block=block,
            vocab_size=vocab_size,
            embedding_size=reader.read("embedding_size", size, vocab_size),
            additional_vocab_size=reader.read("additional_vocab_size", count, 0),
            scale_embeddings=reader.read("normalize_input_embeds", boolean, False),
            rope=RopeConfig.read(reader),
            context_size=context_size,
        )


@dataclass(frozen=True)
class ModelConfig:
    """The whole network."""

    tower: VisionConfig
    connector: ConnectorConfig
    decoder: DecoderConfig
    tie_word_embeddings: bool
    """Whether the head is the first embedding table."""

    def with_biases(self, *modules: str) -> "ModelConfig":
        """Return a copy that adds biases to queries, keys and values in some modules.

        The reference implementation stores such biases, and adds them, although its config says
        there are none. They are zeros in the release, and dropped; a checkpoint whose biases
        are not needs this copy.

        Args:
            modules: of `tower`, `pooling` and `decoder`.
        """
        tower, connector, decoder = self.tower, self.connector, self.decoder
        replace = dataclasses.replace

        def biased(block: BlockConfig) -> BlockConfig:
            return replace(block, attention=block.attention.with_biases())

        if "tower" in modules:
            tower = replace(tower, block=biased(tower.block))
        if "pooling" in modules:
            connector = replace(connector, pooling=connector.pooling.with_biases())
        if "decoder" in modules:
            decoder = replace(decoder, block=biased(decoder.block))
        return replace(self, tower=tower, connector=connector, decoder=decoder)

    @classmethod
    def read(cls, reader: ConfigReader) -> "ModelConfig":
        """Read the contents of config.json.

        Raises:
            UnsupportedSettingError: a setting that changes the mathematics is not implemented.
            CheckpointError: a setting is missing or malformed, or two do not fit together.
        """
        reader.choice("model_type", MODEL_TYPES, MODEL_TYPES[0])
        # Class names point at code elsewhere; token ids are read from the tokenizer and
        # generation config; dtypes from the tensors themselves.
        reader.harmless("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version")
        reader.harmless("bos_token_id", "eos_token_id", "pad_token_id", "image_token_index")
        reader.harmless("quantization", "quantization_config", "use_cache")
        # What this package's conversion notes about itself.
        reader.harmless("jvlm_mlx")
        vision, text = reader.section("vision_config"), reader.section("text_config")
        tower = VisionConfig.read(vision)
        config = cls(
            tower=tower,
            connector=ConnectorConfig.read(vision, tower),
            decoder=DecoderConfig.read(text),
            tie_word_embeddings=reader.read(
                "tie_word_embeddings",
                boolean,
                text.read("tie_word_embeddings", boolean, False),
            ),
        )
        if config.connector.output_size != config.decoder.hidden_size:
            raise CheckpointError(
                f"{vision.name('output_size')} {config.connector.output_size} differs from"
                f" {text.name('hidden_size')} {config.decoder.hidden_size}"
            )
        return config
