"""A question about a photo, stage by stage, as this project and as the peer do it."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import mlx.core as mx
from PIL import Image

from jvlm_mlx.model import Model
from jvlm_mlx.processing.image_io import open_image

from .photos import TILES, image_processor, photo_bytes, photo_inputs

STAGES = ("decode file", "preprocess", "tower", "connector", "merge", "prefill", "decode")
"""In the order of a request. The first token has come when `prefill` ends; `decode` is one more
token."""


class Pipeline:
    """The stages of one request; each reads what the one before left."""

    def __init__(self, tiles: int) -> None:
        self.tiles = tiles
        self.inputs = photo_inputs(tiles)
        self.length = self.inputs.input_ids.shape[1]
        self._file = photo_bytes(tiles)

    def stages(self) -> dict[str, Callable[[], Any]]:
        """Return the stages by name; what a stage returns is evaluated."""
        return {name: getattr(self, "_" + name.replace(" ", "_")) for name in STAGES}


class OwnPipeline(Pipeline):
    """This project's. Layers that no feature needs and windows that are dropped are not run."""

    def __init__(self, model: Model, tiles: int, tile_group_size: int) -> None:
        super().__init__(tiles)
        self._model = model
        self._processor = image_processor()
        self._plan = model.plan(self.inputs.image_input_idx, self.length, tile_group_size)

    def _decode_file(self) -> None:
        open_image(self._file)

    def _preprocess(self) -> None:
        self._processor(self._file, max_crops=TILES[self.tiles])

    def _tower(self) -> list[mx.array]:
        self._features: list[mx.array] = []
        for group in self._plan.groups:
            self._features.append(
                self._model.vision_tower(mx.array(self.inputs.pixel_values[0][group.tiles]))
            )
            mx.eval(self._features)
        return self._features

    def _connector(self) -> mx.array:
        vectors = []
        for features, group in zip(self._features, self._plan.groups, strict=True):
            masks = mx.array(self.inputs.image_masks[0][group.tiles])
            arrays = mx.array(group.patches), mx.array(group.inside)
            vectors.append(self._model.connector(features, masks, *arrays))
            mx.eval(vectors)
        self._features = []
        self._vectors = mx.concatenate(vectors)
        return self._vectors

    def _merge(self) -> mx.array:
        embeddings = self._model.decoder.embed(mx.array(self.inputs.input_ids))
        self._embeddings = self._model.merge(embeddings, self._vectors, self._plan.sources)
        return self._embeddings

    def _prefill(self) -> mx.array:
        self._cache = self._model.make_cache()
        self._model(self._ids, input_embeddings=self._embeddings[:, :-1], cache=self._cache)
        mx.eval([cache.state for cache in self._cache])
        last = self._embeddings[:, -1:]
        logits = self._model(self._ids[:, :1], input_embeddings=last, cache=self._cache)
        self._token = mx.argmax(logits[:, -1:], axis=-1)
        return self._token

    def _decode(self) -> mx.array:
        logits = self._model(self._token, cache=self._cache)
        self._token = mx.argmax(logits[:, -1:], axis=-1)
        return self._token

    @property
    def _ids(self) -> Any:
        return self.inputs.input_ids[:, :-1]


class PeerPipeline(Pipeline):
    """mlx-vlm's, through its own modules. Its generation loop does the same steps."""

    def __init__(self, peer: Any, tiles: int) -> None:
        from mlx_vlm.models.jina_vlm.image_processor import ImageProcessor

        super().__init__(tiles)
        self._peer = peer
        config = image_processor().config
        self._processor = ImageProcessor(
            max_crops=TILES[tiles], min_pixels=config.min_pixels, max_pixels=config.max_pixels
        )
        self._ids = mx.array(self.inputs.input_ids)
        # Its tokens of images are looked up like any other; ids are given, not made by it.
        self._pixels = mx.array(self.inputs.pixel_values)

    def _decode_file(self) -> None:
        Image.open(BytesIO(self._file)).convert("RGB").load()

    def _preprocess(self) -> None:
        self._processor.process_image(Image.open(BytesIO(self._file)))

    def _tower(self) -> mx.array:
        self._features = self._peer.vision_model.get_features(self._pixels[0])
        return self._features

    def _connector(self) -> mx.array:
        masks = mx.array(self.inputs.image_masks)
        self._vectors = self._peer.vl_connector(self._features[None], masks)
        self._features = None
        return self._vectors

    def _merge(self) -> mx.array:
        self._embeddings = self._peer.get_input_embeddings(
            self._ids,
            self._pixels,
            image_input_idx=mx.array(self.inputs.image_input_idx),
            cached_image_features=self._vectors,
        ).inputs_embeds
        return self._embeddings

    def _prefill(self) -> mx.array:
        from mlx_vlm.models.cache import KVCache

        language = self._peer.language_model
        self._cache = [KVCache() for _ in language.layers]
        language(self._ids[:, :-1], inputs_embeds=self._embeddings[:, :-1], cache=self._cache)
        mx.eval([cache.state for cache in self._cache])
        last = self._embeddings[:, -1:]
        logits = language(self._ids[:, -1:], inputs_embeds=last, cache=self._cache).logits
        self._token = mx.argmax(logits[:, -1:], axis=-1)
        return self._token

    def _decode(self) -> mx.array:
        logits = self._peer.language_model(self._token, cache=self._cache).logits
        self._token = mx.argmax(logits[:, -1:], axis=-1)
        return self._token
