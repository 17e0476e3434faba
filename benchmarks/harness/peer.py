"""mlx-vlm's `jina_vlm` on the same weights: the same arrays, so a second model takes no memory.

mlx-vlm must be installed beside this project (`pip install mlx-vlm==0.7.10`); nothing else of
the project needs it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model import Model

from .models import constant


def peer_version() -> str:
    """Return the version of mlx-vlm."""
    from importlib.metadata import version

    return version("mlx-vlm")


def make_peer(model: Model) -> Any:
    """Return the peer's model, built of this model's arrays.

    Layers that this project never runs exist in the peer: they get the weights of the last
    layer that does.
    """
    from mlx_vlm.models.jina_vlm import Model as PeerModel
    from mlx_vlm.models.jina_vlm import ModelConfig

    peer = PeerModel(_peer_config(ModelConfig(), model.config))
    # Only names are copied; the initial values are never evaluated.
    peer.update(tree_unflatten(list(_renamed(model))))
    mx.eval(peer.parameters())
    return peer


def _peer_config(config_json: Any, config: ModelConfig) -> Any:
    config_json = copy.deepcopy(config_json)
    tower, decoder = config.tower, config.decoder
    vision, text = config_json.vision_config, config_json.text_config
    vision.hidden_size = tower.hidden_size
    vision.num_hidden_layers = tower.num_hidden_layers
    vision.num_attention_heads = tower.block.attention.num_attention_heads
    vision.head_dim = tower.block.attention.head_dim
    vision.patch_size, vision.image_size = tower.patch_size, tower.image_size[0]
    vision.intermediate_size = tower.block.mlp.intermediate_size
    vision.layer_norm_eps = tower.block.norm.eps
    vision.vit_layers = tower.feature_layers
    vision.output_size = config.connector.output_size
    vision.connector_hidden_size = config.connector.projector.intermediate_size
    text.hidden_size = decoder.hidden_size
    text.num_hidden_layers = decoder.num_hidden_layers
    text.num_attention_heads = decoder.block.attention.num_attention_heads
    text.num_key_value_heads = decoder.block.attention.num_key_value_heads
    text.head_dim = decoder.block.attention.head_dim
    text.vocab_size, text.additional_vocab_size = (
        decoder.embedding_size,
        decoder.additional_vocab_size,
    )
    text.intermediate_size = decoder.block.mlp.intermediate_size
    text.rms_norm_eps = decoder.block.norm.eps
    text.rope_theta = decoder.rope.theta
    return config_json


_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.out",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
}


def _renamed(model: Model) -> Iterator[tuple[str, mx.array]]:
    """Yield the peer's names with this model's arrays."""
    tower, connector, decoder = model.vision_tower, model.connector, model.decoder
    for name, array in _flat(tower.patch_embedding):
        yield f"vision_model.patch_embed.proj.{name}", array
    yield "vision_model.pos_embed", tower.position_embedding
    for index in range(model.config.tower.num_hidden_layers):
        layer = tower.layers[min(index, len(tower.layers) - 1)]
        yield from _layer(f"vision_model.layers.{index}", layer, "up")
    for name in ("weight", "bias"):
        size = (model.config.tower.hidden_size,)
        yield f"vision_model.post_norm.{name}", constant(size, model.dtype)
    yield "vl_connector.pad_embed", connector.pad_embed
    for name, array in _flat(connector.pooling):
        yield f"vl_connector.pooling.{name}", array
    yield "vl_connector.projector.gate_up.weight", connector.projector.up.weight
    yield "vl_connector.projector.down.weight", connector.projector.down.weight
    # Slices of an evaluated table are views of it.
    rows = model.config.decoder.embedding_size
    table = decoder.embedding.weight
    yield "language_model.embedding.embedding", table[:rows]
    yield "language_model.embedding.new_embedding", table[rows:]
    for index, block in enumerate(decoder.layers):
        yield from _layer(f"language_model.layers.{index}", block, "gate_up")
    yield "language_model.ln_f.weight", decoder.norm.weight
    yield "language_model.lm_head.weight", model.lm_head.weight


def _layer(prefix: str, layer: Any, up: str) -> Iterator[tuple[str, mx.array]]:
    names = {**_LAYER_NAMES, "mlp.up": f"ffn.{up}", "mlp.down": "ffn.down"}
    for name, array in _flat(layer):
        module, _, leaf = name.rpartition(".")
        yield f"{prefix}.{names[module]}.{leaf}", array


def _flat(module: Any) -> list[tuple[str, mx.array]]:
    parameters: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    return list(parameters.items())
