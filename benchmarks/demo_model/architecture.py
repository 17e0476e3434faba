"""config.json and preprocessor_config.json of the demo: the release's, much smaller.

Everything that makes Jina-VLM what it is stays: features of two tower layers, an odd grid of
patches, overlapping tiles behind a thumbnail, attention pooling, gated projections, grouped
queries with norms, two embedding tables, an untied head.
"""

from typing import Any

VOCAB_SIZE = 768
ADDED_TOKENS = 16
"""Rows of the second embedding table; six are in use, as in the release."""
TILE_SIZE, PATCH_SIZE, OVERLAP_MARGINS = 72, 8, (1, 1)
"""9 x 9 patches, of which neighboring tiles share two."""

POOLING_SIZE = (2, 2)
FEATURE_LAYERS = (-2, -4)
"""In the list of four layers and the final norm: outputs of the last layer and of the one two
before, so that, as in the release, the norm is never used."""

_HIDDEN_SIZE = 128
_TOWER_LAYERS, _DECODER_LAYERS = 4, 4


def _norm(kind: str) -> dict[str, Any]:
    return {"type": kind, "eps": 1e-6, "bias": kind == "default", "with_affine": True}


def _attention(heads: int, groups: int | None, head_dim: int, kind: str) -> dict[str, Any]:
    is_decoder = kind == "rms"
    return {
        "n_heads": heads,
        "n_kv_heads": groups,
        "head_dim": head_dim,
        "softmax_scale": None,
        **{f"{name}_bias": not is_decoder for name in "qkvo"},
        "q_lnorm": is_decoder,
        "k_lnorm": is_decoder,
        "qkv_lnorm_on_heads": is_decoder,
        "lnorm_config": _norm(kind),
    }


def _mlp(size: int, activation: str, *, gated: bool, bias: bool) -> dict[str, Any]:
    return {
        "size": size,
        "activation_type": activation,
        "gated_activation": gated,
        "bias": bias,
    }


def _block(attention: dict[str, Any], mlp: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"attn_config": attention, "ffn_config": mlp, "lnorm_config": _norm(kind)}


def demo_config(
    end_of_text: int,
    *,
    pooling_size: tuple[int, int] = POOLING_SIZE,
    feature_layers: tuple[int, ...] = FEATURE_LAYERS,
) -> dict[str, Any]:
    """Return config.json.

    Args:
        end_of_text: id of the token that ends an answer and begins a prompt.
        pooling_size: rows and columns of patches that become one vector of the decoder.
        feature_layers: places in the list of the tower's layers and its final norm.
    """
    return {
        "architectures": ["JinaVLMForConditionalGeneration"],
        "model_type": "jvlm",
        "tie_word_embeddings": False,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "text_config": {
            "n_layers": _DECODER_LAYERS,
            "num_hidden_layers": _DECODER_LAYERS,
            "hidden_size": _HIDDEN_SIZE,
            "vocab_size": VOCAB_SIZE,
            "embedding_size": VOCAB_SIZE,
            "additional_vocab_size": ADDED_TOKENS,
            "max_sequence_length": 4096,
            "rope": True,
            "rope_theta": 10000,
            "rope_scaling": None,
            "normalize_input_embeds": False,
            "block_config": _block(
                _attention(4, 2, 32, "rms"), _mlp(320, "silu", gated=True, bias=False), "rms"
            ),
        },
        "vision_config": {
            "n_layers": _TOWER_LAYERS,
            "hidden_size": _HIDDEN_SIZE,
            "input_size": [TILE_SIZE, TILE_SIZE],
            "patch_size": PATCH_SIZE,
            "n_channels": 3,
            "linear_patch_embedding": True,
            "patch_embedding_bias": True,
            "use_absolute_positional_embeddings": True,
            "use_cls_token": False,
            "pre_lnorm": False,
            "post_lnorm": True,
            "vit_layers": list(feature_layers),
            "output_size": _HIDDEN_SIZE,
            "block_config": _block(
                _attention(4, None, 32, "default"),
                _mlp(384, "gelu_pytorch_tanh", gated=False, bias=True),
                "default",
            ),
            "vl_connector_config": {
                "padding_embed_type": "pad_and_partial_pad",
                "pooling_type": "attention_meanq",
                "pooling_h": pooling_size[0],
                "pooling_w": pooling_size[1],
                "projector_type": "mlp",
                "attn_pooling_config": _attention(4, None, 32, "default"),
                "mlp_projector_config": _mlp(256, "silu", gated=True, bias=False),
            },
        },
    }


def demo_images(
    token_ids: dict[str, int], *, pooling_size: tuple[int, int] = POOLING_SIZE
) -> dict[str, Any]:
    """Return preprocessor_config.json.

    Args:
        token_ids: of the added tokens, by their text.
        pooling_size: as for `demo_config`.
    """
    return {
        "base_input_size": [TILE_SIZE, TILE_SIZE],
        "patch_size": PATCH_SIZE,
        "overlap_margins": list(OVERLAP_MARGINS),
        "pooling_h": pooling_size[0],
        "pooling_w": pooling_size[1],
        "max_crops": 6,
        "min_pixels": TILE_SIZE**2,
        "max_pixels": 192**2,
        "cropping_method": "overlap-and-resize",
        "interpolation": "bilinear",
        "antialias": False,
        "resize_in_float32": False,
        "normalization_method": "minmax",
        "image_min": -1.0,
        "image_max": 1.0,
        "start_token_id": token_ids["<im_start>"],
        "end_token_id": token_ids["<im_end>"],
        "patch_token_id": token_ids["<im_patch>"],
        "column_token_id": token_ids["<im_col>"],
    }
