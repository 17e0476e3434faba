"""A conversation with the model, in which nothing is computed twice."""

import copy
import dataclasses
import os
import threading
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import JvlmError, RequestError, SessionError
from ..model import Model
from ..processing.image_processor import PromptImage
from ..processing.inputs import PreparedPrompt
from ..processing.messages import collect_images
from ..processing.processor import Processor, as_list
from ..progress import Progress, no_progress
from .answer import Answer, Cancelled, check_cancelled
from .caches import GenerationCaches, LayerState
from .image_encoding import EncodedImage, encode_opened_image
from .model_identity import describe, model_digest
from .options import GenerationOptions
from .prompt import PromptKey, prepare_prompt, prompt_key
from .response import GenerationResponse
from .session_file import SavedSession, read_session, write_session

Message = dict[str, Any]


class ChatSession:
    """A conversation. Each image is encoded once, and each turn prefills only what is new.

    One answer is made at a time; sessions may be used from several threads.

    Args:
        model: from `load`.
        processor: from `load`.
        system: a system message in front of everything.
        caches: shared with other sessions or answers; None for caches of its own.
        **options: of every answer, see `GenerationOptions`.

    Raises:
        RequestError: an option is out of range.
    """

    def __init__(
        self,
        model: Model,
        processor: Processor,
        system: str | None = None,
        *,
        caches: GenerationCaches | None = None,
        **options: Any,
    ) -> None:
        GenerationOptions.of(None, options)
        self.caches = GenerationCaches() if caches is None else caches
        self.system = system
        self._model = model
        self._processor = processor
        self._options = options
        self._messages: list[Message] = []
        self._answering = False

    @property
    def options(self) -> dict[str, Any]:
        """The options of every answer that were given or loaded; a copy."""
        return dict(self._options)

    @property
    def history(self) -> list[Message]:
        """The messages so far, images as `EncodedImage`; a copy."""
        # Images are shared: nothing can change them.
        return [{**message, "content": copy.copy(message["content"])} for message in self._messages]

    @property
    def images(self) -> list[EncodedImage]:
        """The images of the conversation, in order."""
        return collect_images(self._messages) if self._messages else []

    def ask(
        self,
        text: str | Sequence[dict[str, Any]],
        images: Any = None,
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> Generator[GenerationResponse, None, None]:
        """Ask the next question and answer it, token by token.

        Question and answer join the history when the answer ends, even an empty one. One that ends
        early, by closing the iterator or setting `cancel`, is stored as far as it has come; if it
        has no text by then, the history is as before the question.

        Args:
            text: the question, or its parts, as in a message.
            images: an image or a list, of any kind a question takes. In front of the text;
                or, in order, in the image parts that name no source.
            progress: as for `stream_generate`.
            cancel: as for `stream_generate`.
            **options: for this answer only. Limits on images apply to the new ones.

        Yields:
            One response for each token; the last one has a finish reason.

        Raises:
            JvlmError: bad options, question or images, before anything is done.
            RequestError: the last answer is still being made.
        """
        start = time.perf_counter()
        self._check_idle()
        request = GenerationOptions.of(self._options, options, self._processor.generation_defaults)
        processor, image_options = self._processor.image_processor, request.image_options
        sources = [
            page for source in as_list(images) for page in processor.expand(source, image_options)
        ]
        if isinstance(text, str):
            text = [{"type": "image"} for _ in sources] + [{"type": "text", "text": text}]
        question: Message = {"role": "user", "content": list(text)}
        opened = [
            processor.open(source, image_options, known=self.caches.images)
            for source in collect_images([question], sources or None)
        ]
        for image in opened:
            image.load()
        return self._answer(self._messages, question, opened, request, progress, cancel, start)

    def retry(
        self,
        *,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> Generator[GenerationResponse, None, None]:
        """Answer the last question again; arguments and responses are those of `ask`.

        The new answer replaces the old one, unless it ends early without any text.

        Raises:
            RequestError: there is no question, or an answer is still being made.
        """
        start = time.perf_counter()
        request = GenerationOptions.of(self._options, options, self._processor.generation_defaults)
        question = self._last_question()
        images = collect_images([question])
        return self._answer(self._messages[:-2], question, images, request, progress, cancel, start)

    def _answer(
        self,
        before: list[Message],
        question: Message,
        images: Sequence[PromptImage],
        request: GenerationOptions,
        progress: Progress | None,
        cancel: threading.Event | None,
        start: float,
    ) -> Generator[GenerationResponse, None, None]:
        """Answer a question that follows the messages `before`, with its images opened."""
        # Limits have been applied to the images of this question; older ones keep theirs.
        request = dataclasses.replace(
            request, max_crops=None, min_pixels=None, max_pixels=None, do_resize=None
        )
        prepared = self._prepare([*before, _with_images(question, images)], request)
        current = self._messages

        def make_answer(prepared: PreparedPrompt[PromptImage]) -> Answer:
            return Answer(
                self._model,
                self._processor,
                prepared,
                request,
                caches=self.caches,
                progress=progress,
                cancel=cancel,
                start=start,
            )

        first = make_answer(prepared)  # raises what there is to raise, before any work is done

        def encode() -> list[EncodedImage]:
            size, shown = first.make_room(), progress or no_progress
            check = partial(check_cancelled, cancel)
            return [
                encode_opened_image(
                    self._model, image, self.caches, size, shown, check, request.wired_limit
                )
                for image in images
            ]

        def responses() -> Generator[GenerationResponse, None, None]:
            self._check_idle()
            if self._messages is not current:
                raise RequestError("the conversation has continued since; ask the question again")
            self._answering = True
            texts: list[str] = []
            ended = False
            asked: Message | None = None
            try:
                try:
                    encoded = encode()
                except Cancelled:
                    # The flag is set, so this ends at once with the right response.
                    yield from first.responses()
                    return
                asked = _with_images(question, encoded)
                older = prepared.images[: len(prepared.images) - len(images)]
                answer = first
                if encoded:
                    answer = make_answer(dataclasses.replace(prepared, images=(*older, *encoded)))
                for response in answer.responses():
                    texts.append(response.text)
                    ended = response.finish_reason in ("stop", "length", "repetition")
                    yield response
            finally:
                self._answering = False
                if asked is not None and (ended or any(texts)):
                    reply = {"role": "assistant", "content": "".join(texts)}
                    self._messages = [*before, asked, reply]

        return responses()

    def reset(self) -> None:
        """Forget the conversation; system message and caches stay.

        Raises:
            RequestError: an answer is still being made.
        """
        self._check_idle()
        self._messages = []

    def undo(self) -> Message:
        """Remove the last question with its answer from the history, and return the question.

        Raises:
            RequestError: there is none, or an answer is still being made.
        """
        question = self._last_question()
        self._messages = self._messages[:-2]
        return question

    def _last_question(self) -> Message:
        self._check_idle()
        if not self._messages:
            raise RequestError("the conversation has no question yet")
        return self._messages[-2]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation with its images' features and its KV cache to a file.

        The file is whole or not there at all, whatever happens on the way.

        Raises:
            SessionError: it cannot be written.
            RequestError: an answer is still being made.
        """
        self._check_idle()
        key: PromptKey | None = None
        layers: list[LayerState] = []
        if self._messages:
            prepared = self._prepare(self._messages, GenerationOptions(), ask=False)
            key, layers = self.caches.prefixes.fetch(
                self.caches.key(self._model), prompt_key(prepared)
            )
        write_session(
            Path(path),
            SavedSession(
                fingerprint=model_digest(self._model),
                description=describe(self._model),
                system=self.system,
                options=self._options,
                messages=self._messages,
                key=key,
                layers=layers,
            ),
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Model,
        processor: Processor,
        *,
        caches: GenerationCaches | None = None,
        **options: Any,
    ) -> "ChatSession":
        """Read a conversation that `save` wrote.

        Args:
            path: of the file.
            model: the one it was saved with.
            processor: of the same checkpoint.
            caches: their size is taken. The conversation has caches of its own, for nothing from
                a file may reach other conversations; None for caches of the default size.
            **options: instead of the saved ones of the same names.

        Raises:
            SessionError: the file is damaged, of another model, or of a newer version.
        """
        saved = read_session(Path(path), model, processor, model_digest(model), describe(model))
        # What a file says of images and of the KV cache cannot be checked against weights. So
        # it serves this conversation alone.
        caches = GenerationCaches() if caches is None else caches.private()
        session = cls(model, processor, saved.system, caches=caches, **{**saved.options, **options})
        session._messages = saved.messages
        if saved.key is not None and saved.layers:
            try:
                key = prompt_key(session._prepare(saved.messages, GenerationOptions(), ask=False))
            except JvlmError as error:
                raise SessionError(f"{path} is damaged: {error}") from error
            # Another template spells the conversation in other tokens; then it is prefilled anew.
            if key.first(len(saved.key)) == saved.key:
                caches.prefixes.insert(caches.key(model), saved.key, saved.layers)
        return session

    def _prepare(
        self, messages: list[Message], options: GenerationOptions, *, ask: bool = True
    ) -> PreparedPrompt[PromptImage]:
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        prompt = self._processor.apply_chat_template(messages, add_generation_prompt=ask)
        return prepare_prompt(self._processor, prompt, collect_images(messages), None, options)

    def _check_idle(self) -> None:
        if self._answering:
            raise RequestError("the last answer is still being made; finish or close it first")


def _with_images(message: Message, images: Sequence[PromptImage]) -> Message:
    """Return a message of plain parts whose image parts name these images, in order."""
    following = iter(images)
    content = [
        {"type": "text", "text": part["text"]}
        if part.get("type") == "text"
        else {"type": "image", "image": next(following)}
        for part in message["content"]
    ]
    return {**message, "content": content}
