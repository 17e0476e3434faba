"""All config of a checkpoint folder, read together and compared with each other."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .config_reader import ConfigReader
from .generation_config import NO_TOKENS, GenerationDefaults, token_ids
from .image_config import ImageConfig
from .model_config import ModelConfig
from .prompt_config import PromptConfig

logger = logging.getLogger(__name__)

MAX_NAMES = 20
"""Unknown settings that a warning lists."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What the JSON files of a checkpoint say."""

    model: ModelConfig
    image: ImageConfig
    prompt: PromptConfig
    generation: GenerationDefaults
    """With the stop ids of config.json as well."""
    image_processor: ConfigReader
    """The image config as it was read, for the token ids it repeats."""

    @classmethod
    def read(cls, files: dict[str, Any]) -> "CheckpointConfig":
        """Read config.

        Args:
            files: contents of `config.json` and `preprocessor_config.json`, and of
                `processor_config.json` and `generation_config.json` where they exist.

        Raises:
            UnsupportedSettingError: a setting asks for mathematics that is not implemented.
            CheckpointError: a setting is missing or malformed, or two contradict each other.
        """
        reader = ConfigReader(files["config.json"], "config.json")
        processor = ConfigReader(files.get("processor_config.json", {}), "processor_config.json")
        defaults = GenerationDefaults.read(
            ConfigReader(files.get("generation_config.json", {}), "generation_config.json")
        )
        # Newer tools save the image config inside processor_config.json.
        if "preprocessor_config.json" in files:
            image = ConfigReader(files["preprocessor_config.json"], "preprocessor_config.json")
            processor.harmless("image_processor")
        elif "image_processor" in processor:
            image = processor.section("image_processor")
        else:
            raise CheckpointError("the checkpoint has no preprocessor_config.json")
        config = cls(
            model=ModelConfig.read(reader),
            image=ImageConfig.read(image),
            prompt=PromptConfig.read(processor),
            generation=dataclasses.replace(
                defaults,
                stop_token_ids=defaults.stop_token_ids
                | reader.read("eos_token_id", token_ids, NO_TOKENS),
            ),
            image_processor=image,
        )
        config._check()
        unread = reader.unread() + image.unread() + processor.unread()
        if unread:
            names = sorted({name if len(name) <= 80 else f"{name[:77]}..." for name in unread})
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            logger.warning("settings without effect here: %s%s", ", ".join(names[:MAX_NAMES]), more)
        return config

    def _check(self) -> None:
        tower, connector, image = self.model.tower, self.model.connector, self.image
        for what, processed, expected in (
            ("tile size", image.tile_size, tower.image_size),
            ("patch size", image.patch_size, tower.patch_size),
            ("pooling size", image.pooling_size, connector.pooling_size),
        ):
            if processed != expected:
                raise CheckpointError(
                    f"preprocessor_config.json has a {what} of {processed},"
                    f" config.json of {expected}"
                )
