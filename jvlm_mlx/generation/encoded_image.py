"""An image that the vision tower has seen, for any number of questions."""

from dataclasses import dataclass

import mlx.core as mx

from ..config.image_config import ImageConfig
from ..errors import ImageError
from ..processing.image_processor import PromptImage
from ..processing.image_tokens import ImageTokenIds
from ..processing.tiling import ImageLayout


@dataclass(frozen=True, eq=False)
class EncodedImage(PromptImage):
    """An image's features with everything a prompt must know of it. Made by `encode_image`.

    It may be used wherever an image may, from any thread, as often as wanted, with the model
    that it was made with.
    """

    name: str
    """What messages call it."""
    digest: str
    """Of its pixels and config."""
    model: str
    """Key of the model that encoded it, see `model_key`."""
    config: ImageConfig
    """How it was tiled, options of the request included."""
    token_ids: ImageTokenIds
    layout: ImageLayout
    features: mx.array
    """(N, hidden_size) one for each patch token, evaluated; ordered by tile and window."""

    @property
    def nbytes(self) -> int:
        """Device memory of the features."""
        return self.features.nbytes

    def check_model(self, key: str) -> None:
        """Refuse an image of another model.

        Raises:
            ImageError: says so.
        """
        if self.model != key:
            raise ImageError(
                f"{self.name} was encoded by another model; encode it again with the model in use"
            )
