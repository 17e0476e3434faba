"""Uses the window like a person, and prints what was there to be seen, one JSON object.

    python -m tests.helpers.window_driver CHECKPOINT IMAGE

It runs in a process of its own: Tk aborts a process in which another thread frees its objects.
"""

import json
import sys

import jvlm_mlx
from jvlm_mlx import window as module
from jvlm_mlx.generation.caches import GenerationCaches
from jvlm_mlx.processing.sources import Page

CHECKPOINT, IMAGE = sys.argv[1:]


class Person:
    """Steps that wait for the window, one after the other."""

    def __init__(self, window):
        self.window = window
        self.seen = {}
        self.steps = iter(self.script())
        window.root.after(1, self.go_on)

    def go_on(self):
        wait = next(self.steps, None)
        if wait is None:
            self.window.root.quit()
        else:
            self.until(wait)

    def until(self, condition):
        self.window.root.after(5, self.go_on if condition() else lambda: self.until(condition))

    def state(self):
        window = self.window
        return {
            "status": window.status["text"],
            "button": window.button["text"],
            "enabled": str(window.button["state"]) == "normal",
            "answer": window.answer.get("1.0", "end-1c"),
            "well": window.well["text"],
            "thumbnail": bool(window.well["image"]),
        }

    def press(self, widget, key):
        widget.focus_force()
        self.window.root.update_idletasks()
        widget.event_generate(key)

    def script(self):
        window = self.window
        settled = lambda: not window._waiting and not window._answering  # noqa: E731
        self.seen["at first"] = self.state()
        yield settled
        self.seen["loaded"] = self.state()
        window.show("/no/such.png")
        self.seen["opening"] = self.state()
        yield settled
        self.seen["missing"] = self.state()
        window.show(IMAGE)
        yield settled
        self.seen["opened"] = self.state()
        self.press(window.question, "<Return>")  # nothing to ask
        window.question.insert(0, "What?")
        self.press(window.question, "<Return>")
        self.seen["asked"] = self.state()
        yield settled
        self.seen["answered"] = self.state()
        window._assistant._options["max_tokens"] = 400
        window.button.invoke()
        yield lambda: window.answer.get("1.0", "end-1c")
        self.press(window.root, "<Escape>")
        yield settled
        self.seen["stopped by key"] = self.state()
        window.button.invoke()
        yield lambda: window.answer.get("1.0", "end-1c")
        window.button.invoke()
        yield settled
        self.seen["stopped by button"] = self.state()
        window._assistant._options["max_tokens"] = -1
        window.button.invoke()
        yield settled
        self.seen["refused"] = self.state()
        sys.modules["tkinter.filedialog"].askopenfilename = lambda **_: ""
        window.choose()
        sys.modules["tkinter.filedialog"].askopenfilename = lambda **_: IMAGE
        window.choose()
        yield settled
        self.seen["chosen"] = self.state()
        png = module.Path(IMAGE).read_bytes()
        module.screen_images = lambda _: [Page(png, 1, "the clipboard", None)]
        window.show("clipboard:")
        yield settled
        self.seen["pasted"] = self.state()
        window.button.invoke()  # refused again: the answer's thread has survived everything
        yield settled
        self.seen["last"] = self.state()


def main():
    import tkinter.filedialog  # noqa: F401

    assistant = module.Assistant(
        lambda: jvlm_mlx.load(CHECKPOINT),
        {"max_tokens": 8, "stop_token_ids": ()},
        GenerationCaches(),
    )
    window = module.Window(assistant)
    person = Person(window)
    window.run()
    print(json.dumps(person.seen))


if __name__ == "__main__":
    main()
