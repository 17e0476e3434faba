"""How a conversation becomes a prompt: processor_config.json."""

from dataclasses import dataclass

from .config_reader import ConfigReader, boolean


@dataclass(frozen=True)
class PromptConfig:
    """What shapes the prompt beside the chat template itself."""

    always_start_with_space: bool
    """Whether the first message starts with a space, as every later one does."""

    @classmethod
    def read(cls, reader: ConfigReader) -> "PromptConfig":
        """Read the contents of processor_config.json; of an empty object if there is no file.

        A missing key counts as true. The model was trained with the space, and a checkpoint
        lost the file or the key when another tool converted it. (The reference implementation
        takes false then, which does not happen with the released checkpoint.)

        Raises:
            CheckpointError: the setting is neither true nor false.
        """
        # Class names select code elsewhere; the template is read elsewhere.
        reader.harmless("auto_map", "processor_class", "chat_template")
        return cls(always_start_with_space=reader.read("always_start_with_space", boolean, True))
