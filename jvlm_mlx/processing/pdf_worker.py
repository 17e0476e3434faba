"""Reads a PDF in a process of its own, which has limits: run as a script, not imported.

    pdf_worker.py sizes FIRST LAST MEMORY SECONDS FILE     page count and sizes in points
    pdf_worker.py render PAGE PIXELS MEMORY SECONDS FILE   width, height, and the pixels in RGB

FILE is `-` for standard input. The answer is a line of JSON; a page's pixels follow it.
"""

import contextlib
import json
import math
import os
import resource
import sys
import threading
import time

MAX_SIDE = 20_000
"""Pixels of a rendered page; a narrow page is scaled down to it."""


def main() -> None:
    """Answer one request."""
    what, first, second, memory, seconds, file = sys.argv[1:]
    # What the system does not limit is watched, while PDFium works outside of Python.
    threading.Thread(target=watch, args=(int(memory),), daemon=True).start()
    for limit, value in ((resource.RLIMIT_AS, int(memory)), (resource.RLIMIT_CPU, int(seconds))):
        with contextlib.suppress(ValueError, OSError):  # macOS does not have all of them
            resource.setrlimit(limit, (value, value))
    try:
        import pypdfium2  # under the limits

        document = pypdfium2.PdfDocument(sys.stdin.buffer.read() if file == "-" else file)
        if what == "sizes":
            pages = range(int(first) - 1, min(int(second), len(document)))
            answer = {"pages": len(document), "sizes": [document.get_page_size(p) for p in pages]}
            data = b""
        else:
            page = document[int(first) - 1]
            width, height = page.get_size()
            scale = math.sqrt(int(second) / max(width * height, 1e-6))
            scale = min(scale, MAX_SIDE / max(width, height, 1e-6))
            image = page.render(scale=scale).to_pil().convert("RGB")
            answer, data = {"size": image.size}, image.tobytes()
    except MemoryError:
        answer, data = {"error": "it takes too much memory"}, b""
    except Exception as error:  # whatever a damaged file leads to
        answer, data = {"error": " ".join(str(error).split()) or type(error).__name__}, b""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + data)


def watch(memory: int) -> None:
    """End this process when it has held more than `memory` bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit < memory:
        time.sleep(0.02)
    os._exit(1)


if __name__ == "__main__":
    main()
