"""How much work a model is: operations and bytes, from its settings alone.

A product of (m, k) and (k, n) is 2 m k n operations; norms, activations and softmax are left
out, as is usual. Attention of L tokens to S tokens with H heads of D is 4 L S H D operations.
"""

from jvlm_mlx.config.blocks import AttentionSettings, MLPSettings
from jvlm_mlx.config.model_config import ModelSettings


def attention_weights(settings: AttentionSettings, hidden_size: int) -> int:
    """Return the weights of an attention block: q, k, v and output projections."""
    return hidden_size * (2 * settings.query_size + 2 * settings.key_value_size)


def mlp_weights(settings: MLPSettings, input_size: int, output_size: int) -> int:
    """Return the weights of an MLP."""
    return settings.intermediate_size * (input_size * (1 + settings.gated) + output_size)


def tower_operations(settings: ModelSettings, *, layers: int | None = None) -> int:
    """Return the operations of the vision tower for one tile.

    Args:
        settings: of the model.
        layers: how many are run; None for those that a feature needs.
    """
    tower = settings.tower
    attention, patches = tower.block.attention, tower.num_patches
    weights = attention_weights(attention, tower.hidden_size)
    weights += mlp_weights(tower.block.mlp, tower.hidden_size, tower.hidden_size)
    layer = 2 * patches * weights + 4 * patches**2 * attention.query_size
    embedding = 2 * patches * tower.patch_values * tower.hidden_size
    return embedding + layer * (tower.num_used_layers if layers is None else layers)


def connector_operations(settings: ModelSettings, windows: int) -> int:
    """Return the operations of the connector for so many windows."""
    tower, connector = settings.tower, settings.connector
    pooling = connector.pooling
    patches = connector.pooling_size[0] * connector.pooling_size[1]
    weights = tower.feature_size * (pooling.query_size + 2 * patches * pooling.key_value_size)
    weights += pooling.query_size * tower.hidden_size
    weights += mlp_weights(connector.projector, tower.hidden_size, connector.output_size)
    return windows * (2 * weights + 4 * patches * pooling.query_size)


def decoder_layer_weights(settings: ModelSettings) -> int:
    """Return the weights of one decoder layer, without its norms."""
    decoder = settings.decoder
    return attention_weights(decoder.block.attention, decoder.hidden_size) + mlp_weights(
        decoder.block.mlp, decoder.hidden_size, decoder.hidden_size
    )


def prefill_operations(settings: ModelSettings, tokens: int, *, attention: bool = True) -> int:
    """Return the operations of reading a prompt, head left out: it is run for one token.

    Args:
        settings: of the model.
        tokens: of the prompt.
        attention: whether the part that grows with the square of `tokens` counts.
    """
    decoder = settings.decoder
    # Causal: each token sees itself and what came before it, half of all pairs.
    pairs = 2 * tokens**2 * decoder.block.attention.query_size if attention else 0
    layer = 2 * tokens * decoder_layer_weights(settings) + pairs
    return decoder.num_hidden_layers * layer


def kv_bytes_per_token(settings: ModelSettings, bytes_per_value: float = 2) -> float:
    """Return the bytes of one token's keys and values in all layers."""
    decoder = settings.decoder
    values = 2 * decoder.num_hidden_layers * decoder.block.attention.key_value_size
    return values * bytes_per_value


def decode_bytes(settings: ModelSettings, tokens: int, bytes_per_value: float) -> float:
    """Return the bytes that one decode step must read: every layer, the head, keys and values.

    Args:
        settings: of the model.
        tokens: in the cache.
        bytes_per_value: of weights, keys and values.
    """
    decoder = settings.decoder
    weights = decoder.num_hidden_layers * decoder_layer_weights(settings)
    weights += decoder.hidden_size * decoder.vocab_size
    return weights * bytes_per_value + tokens * kv_bytes_per_token(settings, bytes_per_value)
