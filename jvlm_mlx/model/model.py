"""Jina-VLM: tower, connector and decoder together."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from .. import _mlx_lm
from ..config.model_config import ModelConfig
from .connector import Connector
from .decoder import Decoder
from .layers import Block, Linear
from .vision import VisionTower
from .windows import WindowPlan, plan_windows

HostArray = npt.NDArray[Any]
Array = mx.array | HostArray | list[Any]
"""What the model takes as input: arrays, or nested lists of numbers."""

TILE_GROUP_SIZE = 4
"""Tiles that go through the tower at once, unless said otherwise: enough to keep a GPU busy
(2,916 patches at the released size), few enough to leave memory flat however many images."""


class Model(nn.Module):
    """The whole network, from token ids and tiles to logits.

    Index arrays (`image_input_idx`, `attention_mask`) are read on the host while the graph is
    built. Given as numpy arrays, as the processor makes them, nothing waits for the device.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vision_tower = VisionTower(config.tower)
        self.connector = Connector(
            config.tower.feature_size, config.tower.hidden_size, config.connector
        )
        self.decoder = Decoder(config.decoder)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)
        self.config = config
        # MLX does not survive a fork, so a model can be used in the process that made it only.
        self.process_id = os.getpid()
        # Inference is the default; training calls `train()`.
        self.eval()

    @property
    def layers(self) -> list[Block]:
        """The decoder's layers, where mlx-lm looks for them."""
        return self.decoder.layers

    @property
    def dtype(self) -> mx.Dtype:
        """What the decoder computes in, and the KV cache holds."""
        return self.decoder.norm.weight.dtype

    @property
    def feature_dtype(self) -> mx.Dtype:
        """What image features come in; they are cast to the decoder's dtype when merged."""
        return self.connector.dtype or self.vision_tower.dtype

    def prepare(self) -> None:
        """Evaluate all weights and what is derived from them, so that any thread may call this."""
        for layer in (*self.vision_tower.layers, *self.decoder.layers):
            layer.attention.prepare()
        # Tables of rotary positions are no parameters.
        mx.eval(self.arrays(derived=True))

    def arrays(self, *, derived: bool = False) -> list[mx.array]:
        """Return all weights, in an order that stays: in a fraction of `parameters`' time.

        Every request looks at them, to see whether they have been replaced.

        Args:
            derived: also what is derived from weights, and tables.
        """
        found: list[mx.array] = []
        pending: list[Any] = [self]
        while pending:
            value = pending.pop()
            if isinstance(value, mx.array):
                found.append(value)
            elif isinstance(value, dict):  # modules are dicts
                pending.extend(one for name, one in value.items() if derived or name[:1] != "_")
            elif isinstance(value, list | tuple):
                pending.extend(value)
        return found

    def make_cache(self, attention_mask: Array | None = None) -> list[Any]:
        """Return an empty KV cache, one of mlx-lm's for each layer.

        Args:
            attention_mask: (B, L) of a left-padded batch; None for rows without padding.
        """
        if attention_mask is None:
            return [_mlx_lm.KVCache() for _ in self.layers]
        padding = left_padding(attention_mask).tolist()
        return [_mlx_lm.BatchKVCache(padding) for _ in self.layers]

    def plan(
        self,
        image_input_idx: Array,
        sequence_length: int,
        tile_group_size: int = TILE_GROUP_SIZE,
    ) -> WindowPlan:
        """Plan which windows are computed and where they go; see `windows.plan_windows`."""
        tower, connector = self.config.tower, self.config.connector
        return plan_windows(
            np.asarray(image_input_idx),
            sequence_length,
            tower.patch_grid,
            connector.pooling_size,
            tile_group_size,
        )

    def encode_groups(
        self,
        pixel_values: Array,
        image_masks: Array,
        plan: WindowPlan,
    ) -> Iterator[mx.array]:
        """Yield the features of one group of tiles after the other, not yet evaluated.

        Args:
            pixel_values: (B, T, P, patch values).
            image_masks: (B, T, P).
            plan: of this batch.

        Yields:
            (windows of the group, hidden_size).
        """
        # (B, T, P, V) -> (B T, P, V) and (B, T, P) -> (B T, P)
        pixels, masks = _as_array(pixel_values), _as_array(image_masks)
        pixels, masks = pixels.reshape(-1, *pixels.shape[2:]), masks.reshape(-1, masks.shape[-1])
        features = None
        for group in plan.groups:
            tiles = _take_rows(pixels, group.tiles)
            if features is not None:
                # Left to itself, the scheduler works on all groups side by side and holds the
                # activations of all of them.
                (tiles,) = mx.depends([tiles], [features])
            features = self.connector(
                self.vision_tower(tiles),
                _take_rows(masks, group.tiles),
                mx.array(group.patches),
                mx.array(group.inside),
            )
            yield features

    def encode_images(
        self,
        pixel_values: Array,
        image_masks: Array,
        image_input_idx: Array,
        *,
        tile_group_size: int = TILE_GROUP_SIZE,
    ) -> mx.array:
        """Return one vector for each window that reaches the decoder.

        Args:
            pixel_values: (B, T, P, patch values).
            image_masks: (B, T, P).
            image_input_idx: (B, T, W) position of each window's token, negative if dropped.
            tile_group_size: tiles in the tower at once; peak memory grows with it.

        Returns:
            (N, hidden_size), ordered by row, tile and window.
        """
        length = int(np.max(np.asarray(image_input_idx), initial=0)) + 1
        plan = self.plan(image_input_idx, length, tile_group_size)
        return self._encode(pixel_values, image_masks, plan)

    def _encode(
        self,
        pixel_values: Array,
        image_masks: Array,
        plan: WindowPlan,
    ) -> mx.array:
        groups: list[mx.array] = []
        for features in self.encode_groups(pixel_values, image_masks, plan):
            groups.append(features)
        if not groups:
            return mx.zeros((0, self.config.decoder.hidden_size), self.dtype)
        return mx.concatenate(groups)

    def merge(
        self, embeddings: mx.array, features: mx.array, sources: mx.array | HostArray
    ) -> mx.array:
        """Add features to the embeddings of their patch tokens.

        Args:
            embeddings: (B, L, hidden_size) of all tokens.
            features: (N, hidden_size) of the kept windows.
            sources: (B, L) index of the feature of each token, or -1 for none.

        Returns:
            (B, L, hidden_size). A gather and an addition, however many images.
        """
        count = len(features)
        if count == 0:
            return embeddings
        features = features.astype(embeddings.dtype)
        # What tokens without a feature take. Minus zero: x - 0.0 is x, bit for bit, for every x,
        # while 0.0 would turn a -0.0 into 0.0.
        nothing = mx.broadcast_to(mx.array(-0.0, features.dtype), (1, features.shape[-1]))
        if isinstance(sources, mx.array):
            indices = mx.where(sources < 0, count, sources)
        else:
            indices = mx.array(np.where(sources < 0, count, sources))
        return embeddings + mx.concatenate([features, nothing])[indices]

    def embed(
        self,
        input_ids: Array,
        *,
        pixel_values: Array | None = None,
        image_masks: Array | None = None,
        image_input_idx: Array | None = None,
        tile_group_size: int = TILE_GROUP_SIZE,
    ) -> mx.array:
        """Return the embeddings of a prompt with its images, (B, L, hidden_size)."""
        embeddings = self.decoder.embed(_as_array(input_ids))
        if pixel_values is None:
            return embeddings
        if image_masks is None or image_input_idx is None:
            raise ValueError("pixel_values need image_masks and image_input_idx beside them")
        plan = self.plan(image_input_idx, embeddings.shape[1], tile_group_size)
        return self.merge(embeddings, self._encode(pixel_values, image_masks, plan), plan.sources)

    def head(self, hidden: mx.array) -> mx.array:
        """Return logits (..., vocabulary) of hidden states (..., hidden_size).

        The head has no rows for the added tokens, so they can never be produced.
        """
        if "lm_head" in self:
            return self.lm_head(hidden)
        return self.decoder.embedding.as_linear(hidden)[..., : self.config.decoder.vocab_size]

    def __call__(
        self,
        input_ids: Array,
        *,
        pixel_values: Array | None = None,
        image_masks: Array | None = None,
        image_input_idx: Array | None = None,
        attention_mask: Array | None = None,
        images: Array | None = None,
        cache: Sequence[Any] | None = None,
        input_embeddings: mx.array | None = None,
        logits_to_keep: int = 0,
    ) -> mx.array:
        """Return logits.

        Arrays are those of a processor: numpy or mx arrays, or lists of numbers. Only numpy
        arrays and lists never wait for the device.

        Args:
            input_ids: (B, L) tokens; negative ids are padding.
            pixel_values: (B, T, P, patch values) tiles, or None without images.
            image_masks: (B, T, P) beside `pixel_values`.
            image_input_idx: (B, T, W) beside `pixel_values`.
            attention_mask: (B, L), False for left padding; None for no padding.
            images: the reference implementation's name of `pixel_values`.
            cache: from `make_cache`, extended in place. For a left-padded batch it must have
                been made with the batch's attention mask.
            input_embeddings: (B, L, hidden_size) to be used instead of ids and images.
            logits_to_keep: how many tokens, from the end, to return logits of; 0 for all.

        Returns:
            (B, L or `logits_to_keep`, vocabulary).

        Raises:
            ValueError: pixel values come twice or without their indices, padding is not on the
                left, or a cache does not know the padding.
        """
        if images is not None and pixel_values is not None:
            raise ValueError("images and pixel_values are the same; give one of them")
        if input_embeddings is None:
            input_embeddings = self.embed(
                input_ids,
                pixel_values=images if pixel_values is None else pixel_values,
                image_masks=image_masks,
                image_input_idx=image_input_idx,
            )
        padding = None
        if attention_mask is not None and not np.all(attention_mask := np.asarray(attention_mask)):
            padding = left_padding(attention_mask)
            if cache is not None:
                if not isinstance(cache[0], _mlx_lm.BatchKVCache):
                    raise ValueError(
                        "a left-padded batch needs make_cache(attention_mask=attention_mask)"
                    )
                padding = None
        hidden = self.decoder(
            input_embeddings, cache, None if padding is None else mx.array(padding)
        )
        return self.head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)


def left_padding(attention_mask: Array) -> npt.NDArray[np.int32]:
    """Return the padding in front of each row, (B,), of an attention mask (B, L).

    Raises:
        ValueError: a row has padding behind its first token, or no token at all.
    """
    mask = np.asarray(attention_mask, dtype=bool)
    padding = np.argmax(mask, axis=1)
    if not np.array_equal(mask, np.arange(mask.shape[1]) >= padding[:, None]):
        raise ValueError("attention_mask must be left-padded: False only in front of a row")
    return padding.astype(np.int32)


def _as_array(array: Array) -> mx.array | HostArray:
    return array if isinstance(array, mx.array) else np.asarray(array)


def _take_rows(array: mx.array | HostArray, rows: npt.NDArray[np.int32]) -> mx.array:
    """Return some rows as an mx array; only they are handed to the device."""
    if isinstance(array, mx.array):
        return array[mx.array(rows)]
    return mx.array(array[rows])
