"""An image that the vision tower has seen, for any number of questions."""

import dataclasses
from dataclasses import dataclass

import mlx.core as mx

from ..config.image_config import ImageConfig
from ..errors import ImageError
from ..processing.image_tokens import ImageTokenIds
from ..processing.tiling import ImageLayout


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image's features with everything a prompt must know of it. Made by `encode_image`.

    It may be used wherever an image may, from any thread, as often as wanted, with the model
    that it was made with.
    """

    name: str
    """What messages call it."""
    digest: str
    """Of its pixels and config."""
    model: str
    """Fingerprint of the model that encoded it."""
    config: ImageConfig
    """How it was cut, limits included."""
    token_ids: ImageTokenIds
    layout: ImageLayout
    features: mx.array
    """(N, hidden_size) one for each patch token, evaluated; ordered by tile and window."""

    @property
    def nbytes(self) -> int:
        """Device memory of the features."""
        return self.features.nbytes

    def check_config(
        self,
        config: ImageConfig,
        token_ids: ImageTokenIds,
        *,
        max_crops: int | None,
        min_pixels: int | None,
        max_pixels: int | None,
    ) -> None:
        """Refuse an image that was cut in another way than a request wants.

        Args:
            config: of the checkpoint in use.
            token_ids: of the checkpoint in use.
            max_crops: limit of the request; None takes the image as it is.
            min_pixels: likewise.
            max_pixels: likewise.

        Raises:
            ImageError: names the first difference.
        """
        wanted = {"max_crops": max_crops, "min_pixels": min_pixels, "max_pixels": max_pixels}
        for field in dataclasses.fields(ImageConfig):
            expected = wanted.get(field.name, getattr(config, field.name))
            found = getattr(self.config, field.name)
            if expected is not None and found != expected:
                raise ImageError(
                    f"{self.name} was encoded with {field.name} {found}, not {expected};"
                    " encode it again with the config in use"
                )
        if self.token_ids != token_ids:
            raise ImageError(
                f"{self.name} was encoded for other image tokens ({self.token_ids});"
                " encode it again with the processor in use"
            )

    def check_model(self, fingerprint: str) -> None:
        """Refuse an image of another model.

        Raises:
            ImageError: says so.
        """
        if self.model != fingerprint:
            raise ImageError(
                f"{self.name} was encoded by another model ({self.model[:12]}, not"
                f" {fingerprint[:12]}); encode it again with the model in use"
            )
