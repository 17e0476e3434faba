"""What a line that begins with a slash does."""

import re
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import ImageError, RequestError, SessionError
from ..files import local_path
from ..generation.image_encoding import PromptImage, open_prompt_image
from ..generation.options import GenerationOptions
from ..generation.response import GenerationResponse
from ..generation.session import ChatSession
from ..model import Model
from ..processing.image_io import is_address, source_name
from ..processing.processor import Processor
from .formatting import summarize

_COMMAND = re.compile(r"/([a-z]*)(?:\s+(.*))?", re.DOTALL)


class Command(NamedTuple):
    """One command."""

    run: Callable[["Conversation", str], str]
    """Takes what follows the command's name; returns what to show."""
    arguments: str
    summary: str


class Conversation:
    """A session on the terminal, and the images that wait for the next question."""

    def __init__(
        self, model: Model, processor: Processor, session: ChatSession, options: dict[str, Any]
    ) -> None:
        self.model = model
        self.processor = processor
        self.session = session
        self.options = options
        """That go before those of a conversation that is loaded."""
        self.pending: list[PromptImage] = []
        self.last_piece: GenerationResponse | None = None
        """Of the last answer."""

    def command(self, line: str) -> str | None:
        """Run a command and return what to show; None if the line is a question.

        Raises:
            JvlmError: the command does not exist or fails.
        """
        found = _COMMAND.fullmatch(line)
        if found is None:
            return None
        name, rest = found[1], (found[2] or "").strip()
        if name not in COMMANDS:
            raise RequestError(f"there is no command /{name}; /help lists them")
        return COMMANDS[name].run(self, rest)

    def add_images(self, sources: list[str]) -> str:
        """Open images for the next question; either all of them are taken or none."""
        limits = GenerationOptions(**self.session.options).image_limits
        opened = [open_prompt_image(self.processor, source, limits) for source in sources]
        self.pending += opened
        return "\n".join(_describe(image) for image in opened)


def _image(conversation: Conversation, rest: str) -> str:
    if not rest:
        raise RequestError("/image needs a path or an address: /image photo.jpg")
    if _is_path(rest):
        return conversation.add_images([rest])
    try:
        # Terminals write a dropped file's name with backslashes or quotes.
        return conversation.add_images(shlex.split(rest))
    except ValueError as error:
        raise RequestError(f"/image: {error} in {source_name(rest)}") from None


def _is_path(text: str) -> bool:
    """Return whether all of a text, spaces and quotes included, is the path of something."""
    if is_address(text):
        return False
    try:
        return local_path(text, ImageError).exists()
    except ImageError:
        return False  # several paths, perhaps; opening them tells what is wrong


def _images(conversation: Conversation, _: str) -> str:
    lines = [_describe(image) for image in conversation.session.images]
    lines += [f"{_describe(image)}, for the next question" for image in conversation.pending]
    return "\n".join(f"{number}  {line}" for number, line in enumerate(lines, 1)) or "no images"


def _reset(conversation: Conversation, _: str) -> str:
    conversation.session.reset()
    conversation.pending = []
    return "a new conversation"


def _save(conversation: Conversation, rest: str) -> str:
    if not rest:
        raise RequestError("/save needs a file: /save talk.session")
    path = local_path(rest, SessionError)
    conversation.session.save(path)
    return f"saved to {path}"


def _load(conversation: Conversation, rest: str) -> str:
    if not rest:
        raise RequestError("/load needs a file: /load talk.session")
    conversation.session = ChatSession.load(
        local_path(rest, SessionError),
        conversation.model,
        conversation.processor,
        caches=conversation.session.caches,
        **conversation.options,
    )
    conversation.pending = []
    return describe_session(conversation.session)


def _stats(conversation: Conversation, _: str) -> str:
    lines = []
    if conversation.last_piece is not None:
        lines.append(summarize(conversation.last_piece))
    for name, stats in conversation.session.caches.stats().items():
        lines.append(
            f"{name} remembered: {stats.entries} in {stats.nbytes / 1e6:.1f} of"
            f" {stats.max_bytes / 1e6:.0f} MB, {stats.hits} found, {stats.misses} not found,"
            f" {stats.evictions} dropped"
        )
    return "\n".join(lines)


def _help(_conversation: Conversation, _: str) -> str:
    names = [f"/{name} {command.arguments}".strip() for name, command in COMMANDS.items()]
    width = max(map(len, names)) + 2
    lines = [
        f"{name:{width}}{command.summary}"
        for name, command in zip(names, COMMANDS.values(), strict=True)
    ]
    return "\n".join(
        (
            *lines,
            'A line that ends with \\ goes on in the next; so does everything between two """.',
            "Ctrl-C stops an answer, Ctrl-D leaves.",
        )
    )


def _exit(_conversation: Conversation, _: str) -> str:
    raise EOFError


COMMANDS = {
    "image": Command(_image, "IMAGE...", "show images with the next question"),
    "images": Command(_images, "", "list the images of the conversation"),
    "reset": Command(_reset, "", "begin a new conversation"),
    "save": Command(_save, "FILE", "save the conversation"),
    "load": Command(_load, "FILE", "go on with a saved conversation"),
    "stats": Command(_stats, "", "show sizes, speeds and what is remembered"),
    "help": Command(_help, "", "show this"),
    "exit": Command(_exit, "", "leave"),
}


def describe_session(session: ChatSession) -> str:
    """Return how far a conversation has come."""
    messages, images = len(session.history), len(session.images)
    return (
        f"a conversation of {messages} message{'s' * (messages != 1)}"
        f" and {images} image{'s' * (images != 1)}"
    )


def _describe(image: PromptImage) -> str:
    layout = image.layout
    return f"{image.name}: {layout.num_tiles} tiles, {layout.num_tokens} tokens"
