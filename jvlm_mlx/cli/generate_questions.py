"""Which questions `jvlm generate` was asked: flags, globs and standard input become a list."""

import argparse
import glob
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from ..processing.chat_template import RenderedPrompt
from ..processing.processor import Processor
from ..processing.sources import Page, is_url, source_name
from .screen_images import is_screen_image, screen_images
from .standard_streams import read_bytes

DEFAULT_QUESTION = "Describe the image in 100 words"
"""What the release's own script asks about an image without a question."""
_STDIN = "-"

Image = str | bytes | Page
"""A path or an address, what came through standard input, or what was copied."""


@dataclass(frozen=True)
class Question:
    """One question and the images it is about."""

    text: str
    images: tuple[Image, ...]

    @property
    def title(self) -> str:
        """Heading of its answer if there are several."""
        names = [source_name(image) for image in self.images]
        return f"== {', '.join(names)}: {self.text}" if names else f"== {self.text}"

    def content(self, *, prompt_first: bool, image_labels: bool) -> str | list[dict[str, Any]]:
        """Return the content of the message that asks it, text before or after the images.

        With labels, `Image 1: ` precedes the first of several images, and so on.
        """
        labeled = image_labels and len(self.images) > 1
        if not prompt_first and not labeled:
            return self.text  # all images go in front of it
        parts: list[dict[str, Any]] = []
        for number in range(1, len(self.images) + 1):
            if labeled:
                parts.append({"type": "text", "text": f"Image {number}: "})
            parts.append({"type": "image"})
        parts.insert(0 if prompt_first else len(parts), {"type": "text", "text": self.text})
        return parts


def add_question_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that ask."""
    group = parser.add_argument_group("question")
    group.add_argument(
        "-i", "--image", action="extend", nargs="+", default=[], metavar="IMAGE",
        help="path, URL, data URI, quoted pattern like 'scans/*.png', or - for standard input;"
        " on a Mac also clipboard:, screenshot: (chosen with the mouse) or screenshot:screen",
    )  # fmt: skip
    group.add_argument(
        "-p", "--prompt", action="append", metavar="TEXT",
        help="the question, or - for standard input, which is also read without this flag;"
        " given as often as -i, the first is about the first image, and so on",
    )  # fmt: skip
    group.add_argument(
        "--map", action="store_true", help="ask every question about every image, one at a time"
    )
    group.add_argument("--system", "--system-prompt", metavar="TEXT", help="a message in front")
    group.add_argument("--prompt-first", action="store_true", help="the text before the images")
    group.add_argument(
        "--image-labels", action="store_true", help="number several images: Image 1, Image 2, ..."
    )
    group.add_argument(
        "--prefill-response", metavar="TEXT", help="let the answer continue this text"
    )
    group.add_argument(
        "--extra-eos-token", "--eos-tokens", nargs="+", default=[], metavar="TOKEN",
        help="tokens that end the answer, beside the model's own",
    )  # fmt: skip


def read_questions(arguments: argparse.Namespace) -> list[Question]:
    """Return what was asked, in order; images and texts may come from standard input.

    Raises:
        RequestError: nothing was asked, standard input is needed twice or empty, or questions
            and images do not fit together.
    """
    sources = [source for image in arguments.image for source in _expand(image)]
    given: list[str] = arguments.prompt or []
    if (sources + given).count(_STDIN) > 1:
        raise RequestError("standard input can be one image or one question, not both or twice")
    images: list[Image] = [read_bytes("-i -") if one == _STDIN else one for one in sources]
    texts = [_read_text() if text == _STDIN else text for text in given]
    if not texts:
        texts = [DEFAULT_QUESTION if _STDIN in sources else _question_without_flag(bool(images))]
    if arguments.map:
        return [Question(text, (image,)) for text in texts for image in images] or [
            Question(text, ()) for text in texts
        ]
    if len(texts) == 1:
        return [Question(texts[0], tuple(images))]
    if not images:
        return [Question(text, ()) for text in texts]
    if len(texts) != len(images):
        raise RequestError(
            f"there are {len(texts)} questions (-p) and {len(images)} images (-i): give as many of"
            " one as of the other, or --map to ask every question about every image"
        )
    return [Question(text, (image,)) for text, image in zip(texts, images, strict=True)]


def _expand(source: str) -> Sequence[str | Page]:
    """Return the files that a pattern matches, what is on the screen, or a source as it is."""
    if is_screen_image(source):
        return screen_images(source)
    if is_url(source):
        return [source]
    # `Path` would raise where this is no name, or of a user who does not exist.
    path = os.path.expanduser(source)  # noqa: PTH111
    if os.path.isdir(path):  # noqa: PTH112
        raise RequestError(
            f"{source} is a folder; name its images, as in '{source.rstrip('/')}/*.jpg', or ask"
            " about each with `jvlm batch --images`"
        )
    if not glob.has_magic(source) or os.path.exists(path):  # noqa: PTH110
        return [source]
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
    if not found:
        raise RequestError(f"no file matches {source}")
    return found


def _read_text() -> str:
    if sys.stdin.isatty():
        raise RequestError("-p -: standard input is a terminal; type the question after -p")
    return _decoded(sys.stdin.read())


def _question_without_flag(has_image: bool) -> str:
    """Return what comes through a pipe, or the default question about an image."""
    text = "" if sys.stdin.isatty() else _decoded(sys.stdin.read())
    if text:
        return text
    if not sys.stdin.isatty() and _is_pipe_or_file():
        raise RequestError("standard input is empty: give a question with -p, or send one")
    if not has_image:
        raise RequestError("there is nothing to answer: give a question with -p, or an image")
    return DEFAULT_QUESTION


def _is_pipe_or_file() -> bool:
    """Whether somebody sends something: neither a terminal nor, as under cron, /dev/null."""
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):  # it is no file
        return False


def _decoded(text: str) -> str:
    """Return a text that came through standard input; bytes of no text are lone surrogates."""
    text = text.strip()
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(f"the question on standard input is no {sys.stdin.encoding} text")
    return text


def prefilled_prompt(
    processor: Processor,
    question: Question,
    content: str | list[dict[str, Any]],
    arguments: argparse.Namespace,
) -> str | list[dict[str, Any]] | RenderedPrompt:
    """Return the prompt of a question, which ends with the prefix of the answer if it has one."""
    prefix = arguments.prefill_response
    if prefix is None:
        return content if isinstance(content, str) else [{"role": "user", "content": content}]
    if isinstance(content, str):
        images = [{"type": "image"} for _ in question.images]
        content = [*images, {"type": "text", "text": content}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    messages.append({"role": "assistant", "content": prefix})
    rendered = processor.apply_chat_template(messages, add_generation_prompt=False)
    prefix = prefix.rstrip()  # as some templates do
    end = rendered.rindex(prefix) + len(prefix)  # what follows would end the answer
    return RenderedPrompt(rendered[:end], [place for place in rendered.literals if place < end])


def extra_stop_tokens(processor: Processor, spellings: Sequence[str]) -> dict[str, Any]:
    """Return the option that ends answers at these tokens too; none if there are none.

    Raises:
        RequestError: a text is not exactly one token.
    """
    if not spellings:
        return {}
    tokenizer, found = processor.tokenizer, set(processor.tokenizer.stop_token_ids)
    for spelling in spellings:
        ids = tokenizer.encode(spelling)
        if len(ids) != 1:
            raise RequestError(
                f"--extra-eos-token: {spelling!r} is {len(ids)} tokens, not one; give --stop to"
                " end at a text"
            )
        found.update(ids)
    return {"stop_token_ids": frozenset(found)}
