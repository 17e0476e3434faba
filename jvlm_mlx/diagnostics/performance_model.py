"""What each stage of an answer asks of a machine, from config, weight format and prompt alone.

Pure arithmetic; no array is made. The kernels are those that the model's graph has on a GPU, in
order; a test counts both. A product of (m, k) and (k, n) is 2 m k n operations. Attention of L
queries to S keys with H heads of D is 4 L S H D, half of that under a causal mask. Norms,
activations and softmax count as bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..config.blocks import AttentionConfig, BlockConfig, MLPConfig
from ..config.image_config import ImageConfig
from ..config.model_config import ModelConfig
from ..processing.tiling import ImageLayout
from .roofline import Kernel, Stage, WeightFormat

KV_CACHE_STEP = 256
"""Tokens that mlx-lm's cache grows by."""


@dataclass(frozen=True)
class PromptShape:
    """How large a question is."""

    tiles: int
    windows: int
    """Pooled windows that reach the decoder."""
    tokens: int
    """Of the whole prompt."""


LONG_PROMPT = PromptShape(tiles=13, windows=1692, tokens=1781)
"""A photo of 12 tiles and a thumbnail, its 1,744 tokens, the chat template and a question."""


def attention_weights(config: AttentionConfig, hidden_size: int) -> int:
    """Return the weights of an attention block: q, k, v and output projections."""
    return hidden_size * (2 * config.query_size + 2 * config.key_value_size)


def mlp_weights(config: MLPConfig, input_size: int, output_size: int) -> int:
    """Return the weights of an MLP."""
    return config.intermediate_size * (input_size * (1 + config.gated) + output_size)


def decoder_layer_weights(config: ModelConfig) -> int:
    """Return the weights of one decoder layer, without its norms."""
    decoder = config.decoder
    return attention_weights(decoder.block.attention, decoder.hidden_size) + mlp_weights(
        decoder.block.mlp, decoder.hidden_size, decoder.hidden_size
    )


def decoded_weights(config: ModelConfig) -> int:
    """Return the weights that a decode step reads: every layer and the head."""
    decoder = config.decoder
    layers = decoder.num_hidden_layers * decoder_layer_weights(config)
    return layers + decoder.hidden_size * decoder.vocab_size


class _Kernels:
    """Makes kernels over values of one format."""

    def __init__(self, form: WeightFormat) -> None:
        self._form = form
        self.casts = form.value_bytes != 4
        """Whether float32 pixels and sums are converted on their way in and out."""

    def matmul(self, name: str, rows: float, inputs: int, outputs: int) -> Kernel:
        size = self._form.value_bytes
        weights = inputs * outputs * self._form.weight_bytes
        return Kernel(
            name, 2 * rows * inputs * outputs, weights + rows * inputs * size, rows * outputs * size
        )

    def elementwise(self, name: str, read: float, written: float) -> Kernel:
        size = self._form.value_bytes
        return Kernel(name, 0, read * size, written * size)

    def attention(
        self, queries: float, keys: float, config: AttentionConfig, *, batch: float, causal: bool
    ) -> Kernel:
        size = self._form.value_bytes
        pairs = queries * keys / 2 if causal else queries * keys
        written = batch * queries * config.query_size
        read = written + 2 * batch * keys * config.key_value_size
        return Kernel(
            "attention", 4 * batch * pairs * config.query_size, read * size, written * size
        )

    def mlp(self, rows: float, config: MLPConfig, inputs: int, outputs: int) -> Iterator[Kernel]:
        width, halves = config.intermediate_size, 1 + config.gated
        yield self.matmul("up", rows, inputs, halves * width)
        yield self.elementwise(config.activation, rows * halves * width, rows * width)
        yield self.matmul("down", rows, width, outputs)

    def block(
        self, rows: float, width: int, config: BlockConfig, attended: list[Kernel]
    ) -> Iterator[Kernel]:
        """Yield a layer's kernels; `attended` are those between its two projections."""
        attention = config.attention
        projected = attention.query_size + 2 * attention.key_value_size
        yield self.elementwise("norm", rows * width, rows * width)
        yield self.matmul("qkv", rows, width, projected)
        yield from attended
        yield self.matmul("out", rows, attention.query_size, width)
        yield self.elementwise("add", 2 * rows * width, rows * width)
        yield self.elementwise("norm", rows * width, rows * width)
        yield from self.mlp(rows, config.mlp, width, width)
        yield self.elementwise("add", 2 * rows * width, rows * width)


def tower(config: ModelConfig, tiles: int, form: WeightFormat) -> Stage:
    """Return the vision tower for some tiles at once: pixels to features."""
    vision, make = config.tower, _Kernels(form)
    rows, width = tiles * vision.num_patches, vision.hidden_size
    pixels = rows * vision.patch_values
    attention = vision.block.attention
    kernels = [make.elementwise("cast", 2 * pixels, pixels)] * make.casts
    kernels.append(make.matmul("patch embedding", rows, vision.patch_values, width))
    kernels.append(make.elementwise("position embedding", 2 * rows * width, rows * width))
    attended = make.attention(
        vision.num_patches, vision.num_patches, attention, batch=tiles, causal=False
    )
    for _ in range(vision.num_used_layers):
        kernels += make.block(rows, width, vision.block, [attended])
    if vision.uses_final_norm:
        kernels.append(make.elementwise("norm", rows * width, rows * width))
    features = rows * vision.feature_size
    kernels.append(make.elementwise("concatenate", features, features))
    # Whether a tile is padding is read off its float32 pixels.
    kernels.append(Kernel("compare", 0, 4 * pixels, pixels))
    kernels.append(Kernel("any", 0, pixels, tiles))
    kernels.append(make.elementwise("cast", tiles, tiles))
    kernels.append(make.elementwise("multiply", features, features))
    return Stage("tower", tuple(kernels))


def connector(config: ModelConfig, windows: int, form: WeightFormat) -> Stage:
    """Return the connector for some windows: features to vectors of the decoder's width."""
    part, make = config.connector, _Kernels(form)
    pooling = part.pooling
    patches = part.pooling_size[0] * part.pooling_size[1]
    width = config.tower.feature_size
    values, rows = windows * patches * width, windows * patches
    kernels = [make.elementwise("gather", values, values)]
    if part.pad_embed:
        kernels += [
            make.elementwise("gather", rows, rows),
            make.elementwise("fill", 0, width),
            make.elementwise("concatenate", 3 * width, 3 * width),
            *[make.elementwise("compare", rows, rows)] * 2,
            *[make.elementwise("select", 2 * rows, rows)] * 2,
            make.elementwise("gather", values, values),
            make.elementwise("add", 2 * values, values),
        ]
    kernels += [
        make.elementwise("fill", 0, 1),
        make.elementwise("select", values, values),
        *[make.elementwise("cast", values, 2 * values)] * make.casts,
        make.elementwise("sum", values, values / patches),
        make.elementwise("multiply", values / patches, values / patches),
        *[make.elementwise("cast", 2 * values / patches, values / patches)] * make.casts,
        make.matmul("q", windows, width, pooling.query_size),
        make.matmul("kv", rows, width, 2 * pooling.key_value_size),
    ]
    # One query and four keys of 72 values have no fused kernel.
    scores = windows * patches * pooling.num_attention_heads
    heads = windows * pooling.query_size
    products = 2 * windows * patches * pooling.query_size
    size = form.value_bytes
    kernels += [
        make.elementwise("scale", heads, heads),
        Kernel("scores", products, (heads + rows * pooling.key_value_size) * size, scores * size),
        make.elementwise("softmax", scores, scores),
        Kernel("weighted sum", products, (scores + rows * pooling.key_value_size) * size,
               heads * size),
        make.matmul("out", windows, pooling.query_size, config.tower.hidden_size),
        *make.mlp(windows, part.projector, config.tower.hidden_size, part.output_size),
    ]  # fmt: skip
    return Stage("connector", tuple(kernels))


def prefill(config: ModelConfig, tokens: int, form: WeightFormat) -> Stage:
    """Return the decoder for a whole prompt in one pass: embeddings to KV cache and hidden states.

    The head is another stage: it reads the last position alone.
    """
    decoder, make = config.decoder, _Kernels(form)
    attention, width = decoder.block.attention, decoder.hidden_size
    cached = 2 * tokens * attention.key_value_size
    attended = _projected_heads(make, tokens, attention)
    if tokens % KV_CACHE_STEP:
        room = -(-tokens // KV_CACHE_STEP) * KV_CACHE_STEP * attention.key_value_size
        attended += [make.elementwise("fill", 0, room)] * 2
        attended += [make.elementwise("cache", cached / 2, cached / 2)] * 2
    attended.append(make.attention(tokens, tokens, attention, batch=1, causal=True))
    kernels: list[Kernel] = []
    for _ in range(decoder.num_hidden_layers):
        kernels += make.block(tokens, width, decoder.block, attended)
    kernels.append(make.elementwise("norm", tokens * width, tokens * width))
    return Stage("prefill", tuple(kernels))


def head(config: ModelConfig, form: WeightFormat) -> Stage:
    """Return the head for one position: a hidden state to the most probable token."""
    decoder, make = config.decoder, _Kernels(form)
    return Stage(
        "head",
        (
            make.matmul("head", 1, decoder.hidden_size, decoder.vocab_size),
            make.elementwise("argmax", decoder.vocab_size, 1),
        ),
    )


def decode_step(config: ModelConfig, context: int, form: WeightFormat) -> Stage:
    """Return one decode step: a token id to the next, with `context` tokens in the KV cache."""
    decoder, make = config.decoder, _Kernels(form)
    attention, width = decoder.block.attention, decoder.hidden_size
    kernels = [make.elementwise("embedding", width, width)]
    if form.bits is not None:
        # Packed values, scales and biases are looked up, then unpacked.
        kernels = [make.elementwise("embedding", width / 4, width / 4)] * 3
        kernels.append(make.elementwise("dequantize", width / 4, width))
    added = attention.key_value_size
    attended = [
        *_projected_heads(make, 1, attention),
        *[make.elementwise("cache", added, added)] * 2,
        make.attention(1, context + 1, attention, batch=1, causal=False),
    ]
    for _ in range(decoder.num_hidden_layers):
        kernels += make.block(1, width, decoder.block, attended)
    kernels.append(make.elementwise("norm", width, width))
    return Stage("decode step", (*kernels, *head(config, form).kernels))


def _projected_heads(make: _Kernels, tokens: int, config: AttentionConfig) -> list[Kernel]:
    """Return what stands between the projection and the cache: norm, head weights, rotation."""
    projected = tokens * (config.query_size + 2 * config.key_value_size)
    rotated = tokens * (config.query_size + config.key_value_size)
    return [
        make.elementwise("head norm", projected, projected),
        make.elementwise("head weights", rotated, rotated),
        make.elementwise("rope", rotated, rotated),
    ]


def preprocessing(image_size: tuple[int, int], layout: ImageLayout, config: ImageConfig) -> Stage:
    """Return what numpy does with a decoded RGB image: two bilinear resizes, then tiles.

    Of each number of a result, two taps along rows and two along columns are multiplied and added.

    Args:
        image_size: height and width in pixels.
        layout: of the image.
        config: that the layout was planned with.
    """
    channels = 3

    def resize(size: tuple[int, int], new_size: tuple[int, int], source_bytes: int) -> Kernel:
        across = min(size[0], 2 * new_size[0]) * new_size[1]  # rows that carry a weight
        results = new_size[0] * new_size[1]
        return Kernel(
            "resize",
            2 * 2 * channels * (across + results),
            channels * size[0] * size[1] * source_bytes,
            channels * results * 4,
        )

    kernels = [resize(layout.resized_size, layout.canvas_size, 1)]
    if image_size != layout.resized_size:
        kernels.insert(0, resize(image_size, layout.resized_size, 1))
    if layout.canvas_size != config.tile_size:
        kernels.append(resize(layout.resized_size, config.tile_size, 1))
    values = channels * layout.num_tiles * config.tile_size[0] * config.tile_size[1] * 4
    kernels.append(Kernel("tiles", 0, values, values))
    return Stage("preprocessing", tuple(kernels), on_host=True)
