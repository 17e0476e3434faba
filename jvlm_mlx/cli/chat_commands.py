"""What a line that is typed in a chat does: a command, images, or a question."""

import functools
import re
import shlex
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

from ..errors import ImageError, RequestError, SessionError
from ..files import local_path
from ..generation.options import GenerationOptions
from ..generation.response import GenerationResponse
from ..generation.session import ChatSession
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.messages import collect_images
from ..processing.processor import Processor
from ..processing.sources import is_url, source_name
from ..units import bytes_text, plural
from .chat_lines import take_images
from .formatting import summarize
from .screen_images import is_screen_image, screen_images

_COMMAND = re.compile(r"/([a-z]*)(?:\s+(.*))?", re.DOTALL)
_LEAVE = ("exit", "quit")
"""Without a slash, too: nobody asks a model that."""

Ask: TypeAlias = Callable[..., Generator[GenerationResponse, None, None]]
"""Begins an answer; takes `progress` and `cancel` as `ChatSession.ask` does."""


class Command(NamedTuple):
    """One command."""

    run: Callable[["Conversation", str], str | Ask]
    """Called with what follows the command's name; returns what to show, or begins an answer."""
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
        self.last_response: GenerationResponse | None = None
        """Of the last answer."""

    def react(self, line: str) -> str | Ask:
        """Run a command or take images, and return what to show; or begin an answer.

        Raises:
            JvlmError: the command does not exist or fails, or an image cannot be opened.
            EOFError: it is the command to leave.
        """
        if line.lower() in _LEAVE:
            raise EOFError
        found = _COMMAND.fullmatch(line)
        if found is not None:
            name = _ALIASES.get(found[1], found[1])
            if name not in COMMANDS:
                raise RequestError(f"there is no command /{name}; /help lists them")
            return COMMANDS[name].run(self, (found[2] or "").strip())
        paths, question = take_images(line)
        shown = self.add_images(paths)
        return functools.partial(self._ask, question) if question else shown

    def add_images(self, sources: list[str]) -> str:
        """Open images for the next question; either all of them are taken or none."""
        image_options = GenerationOptions(**self.session.options).image_options
        processor = self.processor.image_processor
        opened = [
            processor.open(page, image_options)
            for named in sources
            for source in (screen_images(named) if is_screen_image(named) else [named])
            for page in processor.expand(source, image_options)
        ]
        for image in opened:
            image.load()
        self.pending += opened
        return "\n".join(_describe(image) for image in opened)

    def _ask(self, question: str, **hooks: Any) -> Generator[GenerationResponse, None, None]:
        return self.session.ask(question, self.pending, **hooks)


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
    if is_url(text):
        return False
    try:
        return local_path(text, ImageError).exists()
    except ImageError:
        return False  # several paths, perhaps; opening them tells what is wrong


def _images(conversation: Conversation, _: str) -> str:
    lines = [_describe(image) for image in conversation.session.images]
    lines += [f"{_describe(image)}, for the next question" for image in conversation.pending]
    return "\n".join(f"{number}  {line}" for number, line in enumerate(lines, 1)) or "no images"


def _drop(conversation: Conversation, rest: str) -> str:
    before, pending = len(conversation.session.images), len(conversation.pending)
    if not pending:
        raise RequestError("/drop: no image waits for the next question")
    number = before + pending if not rest else int(rest) if rest.isdecimal() else 0
    if not before < number <= before + pending:
        raise RequestError(
            f"/drop: {rest} is no image that waits for the next question; /images numbers them"
        )
    return f"dropped {conversation.pending.pop(number - before - 1).name}"


def _retry(conversation: Conversation, _: str) -> Ask:
    return conversation.session.retry


def _undo(conversation: Conversation, _: str) -> str:
    images = collect_images([conversation.session.undo()])
    conversation.pending = [*images, *conversation.pending]
    waiting = f"; {plural(len(images), 'image')} for the next question" if images else ""
    return f"the last question and its answer are removed{waiting}"


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
    if conversation.last_response is not None:
        lines.append(summarize(conversation.last_response))
    for name, stats in conversation.session.caches.stats().items():
        lines.append(
            f"cached {name}: {stats.entries} in {bytes_text(stats.nbytes)} of"
            f" {bytes_text(stats.max_bytes)}, {stats.hits} hits, {stats.misses} misses,"
            f" {stats.evictions} evictions"
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
            'A line that ends with \\ continues in the next; so does everything between two """.',
            "An image file that is dropped here is shown with the question. Tab completes.",
            "Ctrl-C stops an answer, Ctrl-D leaves.",
        )
    )


def _exit(_conversation: Conversation, _: str) -> str:
    raise EOFError


COMMANDS = {
    "image": Command(_image, "IMAGE...", "show images with the next question; also clipboard:"),
    "images": Command(_images, "", "list the images of the conversation"),
    "drop": Command(_drop, "[NUMBER]", "drop an image that waits; the last one, or by its number"),
    "retry": Command(_retry, "", "answer the last question again"),
    "undo": Command(_undo, "", "remove the last question and its answer"),
    "reset": Command(_reset, "", "begin a new conversation"),
    "save": Command(_save, "FILE", "save the conversation"),
    "load": Command(_load, "FILE", "resume a saved conversation"),
    "stats": Command(_stats, "", "show sizes, speeds and caches"),
    "help": Command(_help, "", "show this"),
    "exit": Command(_exit, "", "leave; so do /quit, exit and quit"),
}
_ALIASES = {"quit": "exit"}


def describe_session(session: ChatSession) -> str:
    """Return how far a conversation has come."""
    messages, images = plural(len(session.history), "message"), plural(len(session.images), "image")
    return f"a conversation of {messages} and {images}"


def _describe(image: PromptImage) -> str:
    layout = image.layout
    return f"{image.name}: {layout.num_tiles} tiles, {layout.num_tokens} tokens"
