"""Images, as files, data URIs, URLs and arrays."""

import base64
import contextlib
import http.server
import threading

import numpy as np

from tests.fuzz.mutators import mutate_bytes
from tests.fuzz.workplace import Workplace


class ImageTargets(Workplace):
    """Whatever is opened as an image."""

    def fuzz_image(self, chance):
        data = mutate_bytes(chance, chance.choice(self.images))
        self.processor.image_processor(data, max_crops=chance.choice((None, 1, 4)))

    def fuzz_data_uri(self, chance):
        data = base64.b64encode(chance.choice(self.images))
        uri = b"data:image/png;base64," + data
        text = mutate_bytes(chance, uri[:200]) + uri[200:]
        self.processor.image_processor(text.decode("latin-1"))

    def fuzz_array(self, chance):
        dtype = chance.choice((np.uint8, np.int16, np.float32, np.bool_, np.uint16, object))
        shape = [chance.choice((0, 1, 2, 3, 4, 50)) for _ in range(chance.randrange(5))]
        self.processor.image_processor(np.zeros(shape, dtype))

    def fuzz_url(self, chance):
        if not hasattr(self, "port"):
            self._start_web_server()
        self.reply = self._reply(chance)
        self.processor.image_processor(f"http://127.0.0.1:{self.port}/image.png")

    def _reply(self, chance):
        body = mutate_bytes(chance, chance.choice(self.images))[:20000]
        length = chance.choice((len(body), len(body) + 10, max(0, len(body) - 10), 10**12, -1))
        status = chance.choice((200, 200, 200, 404, 500, 429, 301, 302, 307, 100, 999))
        places = ("/again", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://[", "//", "\x00")
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n"
        if 300 <= status < 400:
            head += f"Location: {chance.choice(places)}\r\n"
        head += f"Content-Type: {chance.choice(('image/png', 'text/html', ''))}\r\n\r\n"
        data = head.encode("latin-1") + body
        return mutate_bytes(chance, data[:200]) + data[200:] if chance.random() < 0.4 else data

    def _start_web_server(self):
        targets = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(OSError):
                    self.wfile.write(targets.reply)
                self.close_connection = True

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.cleanup.callback(server.server_close)
        self.cleanup.callback(server.shutdown)
        self.port = server.server_address[1]
