"""Everything that a user can correct, as exceptions with one clear line each.

Command lines print the message and exit; an app may catch `JvlmError` and show it. Programming
errors (a wrong shape given to a module, say) are ordinary `ValueError` and `TypeError`.
"""


class JvlmError(Exception):
    """Base of every error this package raises for bad input. The message says what to do."""


class CheckpointError(JvlmError):
    """A checkpoint cannot be found or read: missing files, wrong names, wrong shapes."""


class UnsupportedSettingError(CheckpointError):
    """A setting of a checkpoint that changes the mathematics and is not implemented."""


class ImageError(JvlmError):
    """An image cannot be opened or has a size the model cannot take."""


class ImageTooLargeError(ImageError):
    """An image has more pixels than are decoded."""


class PromptError(JvlmError):
    """A prompt does not fit: images and placeholders differ, or it is too long."""


class RequestError(JvlmError):
    """Options of a request contradict each other or the model."""


class ConversionError(JvlmError):
    """A checkpoint cannot be written: something else is in its place, or the disk is full."""


class SessionError(JvlmError):
    """A saved conversation cannot be read or written, or belongs to another model."""


class DataError(JvlmError):
    """Training data cannot be used: one line says why, and one more names each bad example."""


class TrainingError(JvlmError):
    """A training run cannot start, resume or be written."""


_OUT_OF_MEMORY = ("insufficient memory", "[metal::malloc]", "out of memory", "unable to allocate")


def explained(error: BaseException) -> BaseException:
    """Return an error that says what to do, where MLX says only that memory ran out."""
    if isinstance(error, RuntimeError | MemoryError):
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(one in text.lower() for one in _OUT_OF_MEMORY):
            found = RequestError(
                "the device ran out of memory: lower max_memory, max_crops, max_tokens or the batch"
                f" size, or take a model of fewer bits ({text[:120]})"
            )
            found.__cause__ = error
            return found
    return error
