"""Names and shapes of the network's parameters, from its config alone; and where they go.

They are worked out without building a module, so that a checkpoint can be compared with its
config first: sizes that no machine could allocate are found before anything is allocated, and
names come one by one, so that a million missing layers are reported at the first.
"""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config.blocks import AttentionConfig, BlockConfig, MLPConfig, NormConfig
from ..config.model_config import ConnectorConfig, DecoderConfig, ModelConfig, VisionConfig

Shape = tuple[int, ...]
Shapes = Iterator[tuple[str, Shape]]


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Yield path and shape of every parameter of `Model(config)`, none of them quantized."""
    yield from _tower("vision_tower", config.tower)
    yield from _connector("connector", config.tower, config.connector)
    yield from _decoder("decoder", config.decoder)
    if not config.tie_word_embeddings:
        decoder = config.decoder
        yield from _linear("lm_head", decoder.hidden_size, decoder.vocab_size, bias=False)


def is_quantizable(path: str, shape: Shape) -> bool:
    """Return whether a parameter is the weight of a linear layer or an embedding table."""
    return path.endswith(".weight") and len(shape) == 2


def set_parameter(model: nn.Module, path: str, array: mx.array) -> None:
    """Put one parameter in its place.

    `model.load_weights` asks of each name in a path whether it is a number, by letting `int` fail;
    an interrupt that comes while Python puts that message together is lost.

    Raises:
        KeyError: the model has no such module.
    """
    *modules, name = path.split(".")
    module: Any = model
    for one in modules:
        module = module[int(one) if one.isdecimal() else one]
    module[name] = array


def _tower(path: str, config: VisionConfig) -> Shapes:
    size = config.hidden_size
    yield from _linear(
        f"{path}.patch_embedding", config.patch_values, size, config.patch_embedding_bias
    )
    yield f"{path}.position_embedding", (config.num_patches, size)
    for layer in range(config.num_used_layers):
        yield from _block(f"{path}.layers.{layer}", size, config.block)
    if config.uses_final_norm:
        yield from _norm(f"{path}.final_norm", size, config.block.norm)


def _connector(path: str, tower: VisionConfig, config: ConnectorConfig) -> Shapes:
    pooling, features, size = config.pooling, tower.feature_size, tower.hidden_size
    query_bias, *key_value_biases = pooling.projection_biases
    if config.pad_embed:
        yield f"{path}.pad_embed", (2, features)
    yield from _linear(f"{path}.pooling.q", features, pooling.query_size, query_bias)
    yield from _linear(
        f"{path}.pooling.kv", features, 2 * pooling.key_value_size, any(key_value_biases)
    )
    yield from _linear(f"{path}.pooling.out", pooling.query_size, size, pooling.output_bias)
    yield from _mlp(f"{path}.projector", size, config.output_size, config.projector)


def _decoder(path: str, config: DecoderConfig) -> Shapes:
    size = config.hidden_size
    yield f"{path}.embedding.weight", (config.embedding_rows, size)
    for layer in range(config.num_hidden_layers):
        yield from _block(f"{path}.layers.{layer}", size, config.block)
    yield from _norm(f"{path}.norm", size, config.block.norm)


def _block(path: str, size: int, config: BlockConfig) -> Shapes:
    yield from _norm(f"{path}.attention_norm", size, config.norm)
    yield from _attention(f"{path}.attention", size, config.attention)
    yield from _norm(f"{path}.mlp_norm", size, config.norm)
    yield from _mlp(f"{path}.mlp", size, size, config.mlp)


def _attention(path: str, size: int, config: AttentionConfig) -> Shapes:
    width = config.query_size + 2 * config.key_value_size
    yield from _linear(f"{path}.qkv", size, width, config.has_projection_bias)
    yield from _linear(f"{path}.out", config.query_size, size, config.output_bias)
    if config.q_norm:
        yield from _norm(f"{path}.q_norm", config.head_dim, config.q_norm)
    if config.k_norm:
        yield from _norm(f"{path}.k_norm", config.head_dim, config.k_norm)


def _mlp(path: str, input_size: int, output_size: int, config: MLPConfig) -> Shapes:
    halves = 2 if config.gated else 1
    yield from _linear(f"{path}.up", input_size, halves * config.intermediate_size, config.bias)
    yield from _linear(f"{path}.down", config.intermediate_size, output_size, config.bias)


def _norm(path: str, size: int, config: NormConfig) -> Shapes:
    yield f"{path}.weight", (size,)
    if config.bias:
        yield f"{path}.bias", (size,)


def _linear(path: str, input_size: int, output_size: int, bias: bool) -> Shapes:
    yield f"{path}.weight", (output_size, input_size)
    if bias:
        yield f"{path}.bias", (output_size,)
