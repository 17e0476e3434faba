"""How much work a model is: operations and bytes, from its config alone.

A product of (m, k) and (k, n) is 2 m k n operations; norms, activations and softmax are left
out, as is usual. Attention of L tokens to S tokens with H heads of D is 4 L S H D operations.
"""

from jvlm_mlx.config.blocks import AttentionConfig, MLPConfig
from jvlm_mlx.config.model_config import ModelConfig


def attention_weights(config: AttentionConfig, hidden_size: int) -> int:
    """Return the weights of an attention block: q, k, v and output projections."""
    return hidden_size * (2 * config.query_size + 2 * config.key_value_size)


def mlp_weights(config: MLPConfig, input_size: int, output_size: int) -> int:
    """Return the weights of an MLP."""
    return config.intermediate_size * (input_size * (1 + config.gated) + output_size)


def tower_operations(config: ModelConfig, *, layers: int | None = None) -> int:
    """Return the operations of the vision tower for one tile.

    Args:
        config: of the model.
        layers: how many are run; None for those that a feature needs.
    """
    tower = config.tower
    attention, patches = tower.block.attention, tower.num_patches
    weights = attention_weights(attention, tower.hidden_size)
    weights += mlp_weights(tower.block.mlp, tower.hidden_size, tower.hidden_size)
    layer = 2 * patches * weights + 4 * patches**2 * attention.query_size
    embedding = 2 * patches * tower.patch_values * tower.hidden_size
    return embedding + layer * (tower.num_used_layers if layers is None else layers)


def connector_operations(config: ModelConfig, windows: int) -> int:
    """Return the operations of the connector for so many windows."""
    tower, connector = config.tower, config.connector
    pooling = connector.pooling
    patches = connector.pooling_size[0] * connector.pooling_size[1]
    weights = tower.feature_size * (pooling.query_size + 2 * patches * pooling.key_value_size)
    weights += pooling.query_size * tower.hidden_size
    weights += mlp_weights(connector.projector, tower.hidden_size, connector.output_size)
    return windows * (2 * weights + 4 * patches * pooling.query_size)


def decoder_layer_weights(config: ModelConfig) -> int:
    """Return the weights of one decoder layer, without its norms."""
    decoder = config.decoder
    return attention_weights(decoder.block.attention, decoder.hidden_size) + mlp_weights(
        decoder.block.mlp, decoder.hidden_size, decoder.hidden_size
    )


def prefill_operations(config: ModelConfig, tokens: int, *, attention: bool = True) -> int:
    """Return the operations of reading a prompt, head left out: it is run for one token.

    Args:
        config: of the model.
        tokens: of the prompt.
        attention: whether the part that grows with the square of `tokens` counts.
    """
    decoder = config.decoder
    # Causal: each token sees itself and what came before it, half of all pairs.
    pairs = 2 * tokens**2 * decoder.block.attention.query_size if attention else 0
    layer = 2 * tokens * decoder_layer_weights(config) + pairs
    return decoder.num_hidden_layers * layer


def kv_bytes_per_token(config: ModelConfig, bytes_per_value: float = 2) -> float:
    """Return the bytes of one token in the KV cache of all layers."""
    decoder = config.decoder
    values = 2 * decoder.num_hidden_layers * decoder.block.attention.key_value_size
    return values * bytes_per_value


def decode_bytes(config: ModelConfig, tokens: int, bytes_per_value: float) -> float:
    """Return the bytes that one decode step must read: every layer, the head, the KV cache.

    Args:
        config: of the model.
        tokens: in the cache.
        bytes_per_value: of weights and KV cache.
    """
    decoder = config.decoder
    weights = decoder.num_hidden_layers * decoder_layer_weights(config)
    weights += decoder.hidden_size * decoder.vocab_size
    return weights * bytes_per_value + tokens * kv_bytes_per_token(config, bytes_per_value)
