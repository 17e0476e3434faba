"""A window with an image, a question and its answer: how an app embeds this package.

The model loads and answers in a thread of its own; the window stays responsive, shows the answer
while it is made, and can stop it. What happens there arrives as events in a queue, since only the
thread that made a window of Tk may touch it.
"""

import argparse
import io
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from .cli.arguments import (
    add_cache_argument,
    add_generation_arguments,
    add_model_arguments,
    caches,
    generation_options,
    load_model,
)
from .cli.main import EXIT_OK
from .cli.progress_bars import ProgressBars
from .cli.screen_images import is_screen_image, screen_images
from .errors import JvlmError, RequestError
from .files import reason
from .generate import stream_generate
from .generation.caches import GenerationCaches
from .model import Model
from .processing.documents import expand
from .processing.image_formats import SUFFIXES
from .processing.image_io import open_image
from .processing.processor import Processor
from .units import plural

THUMBNAIL = 480, 320
"""Most pixels across and down that the window shows of an image."""
_POLL = 30
"""Milliseconds between two looks at the queue."""
_HINT = "Click to choose an image"
_SCREEN_BUTTONS = (("Paste image", "clipboard:"), ("Screenshot", "screenshot:"))


class _Thread:
    """Runs jobs in order, in a thread that no closed window waits for.

    Loading may be a download of gigabytes, and a PDF may take half a minute.
    """

    def __init__(self, name: str) -> None:
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job()


class Assistant:
    """Opens images and answers questions in threads of its own; the events say how far it is.

    An event is a function to call in the window's thread, and what to call it with.

    Args:
        load: returns model and processor; called by `load`, in the thread that answers.
        options: of answers.
        cache: what answers leave for later ones.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Model, Processor]],
        options: dict[str, Any],
        cache: GenerationCaches,
    ) -> None:
        self.events: queue.SimpleQueue[tuple[Callable[..., None], Any]] = queue.SimpleQueue()
        self._options, self._cache = options, cache
        self._load = load
        self._loaded: tuple[Model, Processor] | None = None
        self._answers, self._images = _Thread("answers"), _Thread("images")
        self._cancel = threading.Event()

    def load(self, done: Callable[..., None], failed: Callable[..., None]) -> None:
        """Load the model; before `done` is called, no question can be asked."""

        def work() -> None:
            self._loaded = self._load()

        self._submit(self._answers, work, done, failed)

    def open(self, source: str, shown: Callable[..., None], failed: Callable[..., None]) -> None:
        """Open an image; `shown` gets its pages, their name and a PNG of the first one."""

        def work() -> Any:
            found = screen_images(source) if is_screen_image(source) else [source]
            pages = [page for one in found for page in expand(one)]
            image = open_image(pages[0])
            image.thumbnail(THUMBNAIL)
            stream = io.BytesIO()
            image.save(stream, "PNG")
            return pages, stream.getvalue()

        self._submit(self._images, work, shown, failed)

    def ask(
        self,
        question: str,
        images: list[Any],
        said: Callable[..., None],
        done: Callable[..., None],
        failed: Callable[..., None],
    ) -> None:
        """Answer a question: `said` gets the text as it is made, `done` a line about it."""
        self._cancel = cancel = threading.Event()

        def work() -> str:
            assert self._loaded is not None
            model, processor = self._loaded
            responses = stream_generate(
                model, processor, question, images, caches=self._cache, cancel=cancel,
                **self._options,
            )  # fmt: skip
            with closing(responses):
                for response in responses:
                    self.events.put((said, response.text))
            return (
                f"{response.generation_tokens} tokens, {response.generation_tps:.1f} tokens/s,"
                f" ended by {response.finish_reason}"
            )

        self._submit(self._answers, work, done, failed)

    def stop(self) -> None:
        """End the answer that is being made, within one token."""
        self._cancel.set()

    def close(self) -> None:
        """End the answer, and wait for that; what is being loaded or opened is left alone."""
        self.stop()
        for thread in (self._answers, self._images):
            thread.jobs.put(None)
        if self._loaded is not None:
            self._answers.thread.join()

    def _submit(
        self,
        thread: _Thread,
        work: Callable[[], Any],
        done: Callable[..., None],
        failed: Callable[..., None],
    ) -> None:
        def run() -> None:
            try:
                self.events.put((done, work()))
            except JvlmError as error:
                self.events.put((failed, str(error)))
            except BaseException as error:  # a mistake of this program, which must not hide here
                self.events.put((_raise, error))

        thread.jobs.put(run)


def _raise(error: BaseException) -> None:
    raise error


class Window:
    """The window, and what its buttons and keys do.

    Raises:
        RequestError: Python has no tkinter, or there is no display.
    """

    def __init__(self, assistant: Assistant) -> None:
        self._tk, ttk, self.root = _toolkit()
        self._assistant = assistant
        self._failure: BaseException | None = None
        self._waiting, self._answering = 1, False
        """How many things must be loaded or opened before a question can be asked."""
        self.images: list[Any] = []
        root = self.root
        root.title("jvlm")
        root.report_callback_exception = self._remember
        root.protocol("WM_DELETE_WINDOW", root.quit)
        root.columnconfigure(0, weight=1)
        root.rowconfigure(3, weight=1)
        self.well = ttk.Label(root, text=_HINT, anchor="center", padding=12, relief="groove")
        self.well.grid(row=0, columnspan=2, sticky="ew", padx=12, pady=12)
        self.screen = ttk.Frame(root)
        self.screen.grid(row=1, columnspan=2, pady=(0, 12))
        self.question = ttk.Entry(root)
        self.question.grid(row=2, column=0, sticky="ew", padx=12)
        self.button = ttk.Button(root, text="Ask", command=self.ask, state="disabled")
        self.button.grid(row=2, column=1, padx=(0, 12))
        self.answer = self._tk.Text(root, wrap="word", height=8, width=60, state="disabled")
        self.answer.grid(row=3, columnspan=2, sticky="nsew", padx=12, pady=12)
        self.status = ttk.Label(root, text="the model is loading", padding=(12, 0, 12, 8))
        self.status.grid(row=4, columnspan=2, sticky="ew")
        self.well.bind("<Button-1>", lambda _: self.choose())
        self.question.bind("<Return>", lambda _: self.ask())
        root.bind("<Escape>", lambda _: assistant.stop())
        if root.tk.call("tk", "windowingsystem") == "aqua":
            for text, source in _SCREEN_BUTTONS:
                show = partial(self.show, source)
                ttk.Button(self.screen, text=text, command=show).pack(side="left", padx=4)
            # Files that are dropped on the app's icon, in the Dock or in the Finder.
            root.createcommand("::tk::mac::OpenDocument", lambda *files: self.show(files[0]))
        self.question.focus_set()
        assistant.load(self._is_ready, self._has_failed)

    def run(self) -> None:
        """Show the window until it is closed; what goes wrong inside of it is raised here."""
        try:
            self.root.after(0, self._poll)
            self.root.mainloop()
        finally:
            self._assistant.close()
            self.root.destroy()
        if self._failure is not None:
            raise self._failure

    def choose(self) -> None:
        """Let the user choose a file."""
        from tkinter.filedialog import askopenfilename

        kinds = [("Images", " ".join((*SUFFIXES, ".pdf"))), ("All files", "*")]
        if path := askopenfilename(parent=self.root, filetypes=kinds):
            self.show(path)

    def show(self, source: str) -> None:
        """Show an image, which the next questions are about."""
        self._waiting += 1
        self._update(f"{source} is being opened")
        self._assistant.open(source, partial(self._is_open, source), self._is_not_open)

    def ask(self) -> None:
        """Ask what is in the field; or stop, if an answer is being made."""
        if self._answering:
            self._assistant.stop()
            return
        question = self.question.get().strip()
        if not question or self._waiting:
            return
        self._write("", replace=True)
        self._answering = True
        self._update("Escape stops the answer")
        self._assistant.ask(question, self.images, self._write, self._is_done, self._has_failed)

    def _is_ready(self, _: None) -> None:
        self._waiting -= 1
        self._update("ready")

    def _is_open(self, source: str, opened: tuple[list[Any], bytes]) -> None:
        self.images, png = opened
        # Tk keeps no reference to it, so it would vanish.
        self._thumbnail = self._tk.PhotoImage(master=self.root, data=png)
        self.well.configure(image=self._thumbnail, text=Path(source).name, compound="top")
        self._waiting -= 1
        self._update(f"{source}: {plural(len(self.images), 'page')}")

    def _is_not_open(self, message: str) -> None:
        self._waiting -= 1
        self._update(message)

    def _is_done(self, summary: str) -> None:
        self._answering = False
        self._update(summary)

    def _has_failed(self, message: str) -> None:
        self._answering = False
        self._update(message)

    def _update(self, status: str) -> None:
        self.status["text"] = status
        self.button["text"] = "Stop" if self._answering else "Ask"
        self.button["state"] = "disabled" if self._waiting and not self._answering else "normal"

    def _write(self, text: str, *, replace: bool = False) -> None:
        self.answer["state"] = "normal"
        if replace:
            self.answer.delete("1.0", "end")
        self.answer.insert("end", text)
        self.answer.see("end")
        self.answer["state"] = "disabled"

    def _poll(self) -> None:
        while not self._assistant.events.empty():
            function, argument = self._assistant.events.get()
            function(argument)
        self.root.after(_POLL, self._poll)

    def _remember(self, _kind: type[BaseException], error: BaseException, _trace: Any) -> None:
        """Keep what was raised in a callback, which Tk would only print; Ctrl-C, too."""
        self._failure = error
        self.root.quit()


def _toolkit() -> tuple[Any, Any, Any]:
    """Return the modules of Tk and a window."""
    try:
        import tkinter
        from tkinter import ttk
    except ImportError:
        version = ".".join(map(str, sys.version_info[:2]))
        raise RequestError(
            f"this Python has no tkinter; with Homebrew, brew install python-tk@{version}"
        ) from None
    try:
        return tkinter, ttk, tkinter.Tk(className="jvlm")
    except tkinter.TclError as error:
        raise RequestError(f"no window can be opened: {reason(error)}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument(
        "-i", "--image", metavar="IMAGE", help="image to begin with: a path, a URL, clipboard:"
    )
    add_cache_argument(parser)
    add_model_arguments(parser)
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the window until it is closed, and return the exit code."""
    options = generation_options(arguments)
    load = partial(load_model, arguments, ProgressBars(shown=False))
    assistant = Assistant(load, options, caches(arguments))
    try:
        window = Window(assistant)
    except BaseException:
        assistant.close()
        raise
    if arguments.image is not None:
        window.show(arguments.image)
    window.run()
    return EXIT_OK


if __name__ == "__main__":
    # The module that the package has imported does the work, not this second copy of it.
    from .cli.main import run_subcommand

    sys.exit(run_subcommand("window"))
