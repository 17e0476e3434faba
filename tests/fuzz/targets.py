"""What is fuzzed: for each kind of input, how one is made and what takes it.

A target returns what it did with the input in a word, or raises. A `JvlmError` is an answer, too;
its message is one line. Anything else that is raised is a finding.
"""

import base64
import contextlib
import http.server
import io
import json
import random
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
from PIL import Image

import jvlm_mlx
from jvlm_mlx.cli.main import run_subcommand
from jvlm_mlx.errors import JvlmError
from tests.fuzz.mutators import as_text, mutate_bytes, mutate_json, odd_value

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "JPEG2000", "EPS", "TGA")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [
        {"type": "image", "image": "images/dot.png"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A dot."},
    {"role": "user", "content": "Are you sure?"},
]  # fmt: skip


class Targets:
    """All targets, with what they share; made once for each worker.

    Args:
        folder: to work in.
    """

    def __init__(self, folder):
        self.folder = folder
        self.model, self.processor = jvlm_mlx.load(GOLDEN / "tiny")
        shutil.copytree(GOLDEN / "images", folder / "images")
        self.images = self._make_images()
        self._cleanup = contextlib.ExitStack()

    def close(self):
        self._cleanup.close()

    @staticmethod
    def kinds():
        """Return the names of all kinds."""
        return tuple(name.removeprefix("fuzz_") for name in dir(Targets) if name[:5] == "fuzz_")

    def run(self, kind, seed):
        """Try one input; return what became of it, in a word."""
        chance = random.Random(f"{kind} {seed}")
        try:
            return getattr(self, f"fuzz_{kind}")(chance) or "used"
        except JvlmError as error:
            message = str(error)
            # Reports about training data may have a line for each example.
            if not message or ("\n" in message and not isinstance(error, jvlm_mlx.DataError)):
                raise AssertionError(f"the message is not one line: {message[:200]!r}") from error
            if len(message) > 3000:
                raise AssertionError(f"{len(message)} characters: {message[:200]!r}") from error
            return "refused"

    # --- images

    def _make_images(self):
        noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
        image = Image.fromarray(noise)
        made = []
        for name in FORMATS:
            for mode in ("RGB", "L", "P", "RGBA", "I;16", "CMYK", "1"):
                buffer = io.BytesIO()
                with contextlib.suppress(OSError, ValueError, KeyError, SystemError):
                    image.convert("L" if mode == "I;16" else mode).convert(mode).save(buffer, name)
                    made.append(buffer.getvalue())
        made += [file.read_bytes() for file in sorted((GOLDEN / "images").iterdir())]
        animated = io.BytesIO()
        image.save(animated, "GIF", save_all=True, append_images=[image.rotate(90)] * 3)
        progressive = io.BytesIO()
        image.save(progressive, "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08")
        return [*made, animated.getvalue(), progressive.getvalue()]

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

    # --- requests

    def fuzz_messages(self, chance):
        messages = mutate_json(chance, MESSAGES)
        messages = self._located(messages)
        jvlm_mlx.generate(self.model, self.processor, messages, max_tokens=2)

    def _located(self, value):
        if isinstance(value, dict):
            return {key: self._located(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._located(one) for one in value]
        return str(self.folder / value) if value == "images/dot.png" else value

    def fuzz_options(self, chance):
        options = {"max_tokens": 3, "temperature": 1.0, "seed": 1, "top_p": 0.9, "top_k": 5,
                   "min_p": 0.1, "repetition_penalty": 1.1, "repetition_context_size": 4,
                   "presence_penalty": 0.5, "frequency_penalty": 0.5, "stop": ["x"],
                   "max_kv_size": 400, "kv_bits": 8, "kv_group_size": 32, "max_crops": 2,
                   "prefill_step_size": 16, "tile_group_size": 2, "max_memory": 10**9,
                   "min_pixels": 100, "max_pixels": 10**6, "logprobs": 2}  # fmt: skip
        names = chance.sample(sorted(options), chance.randrange(1, 6))
        chosen = {name: options[name] for name in names}
        name = chance.choice(names)
        chosen[name] = odd_value(chance, chosen[name])
        chosen["max_tokens"] = 3 if name != "max_tokens" else chosen["max_tokens"]
        if isinstance(chosen["max_tokens"], int) and chosen["max_tokens"] > 50:
            chosen["stop_token_ids"] = range(512)
        jvlm_mlx.generate(
            self.model, self.processor, "Hi", str(GOLDEN / "images" / "dot.png"), **chosen
        )

    def fuzz_text(self, chance):
        data = mutate_bytes(chance, "What is <|image|>? ü 你好 <im_patch>".encode())
        text = data.decode("utf-8", chance.choice(("replace", "surrogateescape", "ignore")))
        self.processor.tokenizer.encode(text)
        ids = [chance.choice((0, 5, 511, 530, 2**31, -1, 10**12)) for _ in range(6)]
        self.processor.decode(ids)

    # --- files of strangers

    def _checkpoint(self):
        folder = self.folder / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(GOLDEN / "tiny", folder)
        return folder

    def _mutate_json_file(self, chance, *names):
        folder = self._checkpoint()
        file = folder / chance.choice(names)
        value = json.loads(file.read_text())
        file.write_bytes(as_text(chance, mutate_json(chance, value)))
        model, processor = jvlm_mlx.load(folder)
        # Whatever was accepted must work, or say in one line why not.
        jvlm_mlx.generate(model, processor, "Hi", str(GOLDEN / "images" / "dot.png"), max_tokens=1)

    def fuzz_config(self, chance):
        self._mutate_json_file(
            chance, "config.json", "preprocessor_config.json", "generation_config.json",
            "processor_config.json",
        )  # fmt: skip

    def fuzz_tokenizer(self, chance):
        self._mutate_json_file(chance, "tokenizer.json", "tokenizer_config.json")

    def fuzz_template(self, chance):
        folder = self._checkpoint()
        file = folder / "chat_template.jinja"
        file.write_bytes(mutate_bytes(chance, file.read_bytes()))
        _, processor = jvlm_mlx.load(folder)
        processor.apply_chat_template([{"role": "user", "content": "Hi"}])

    def fuzz_safetensors_header(self, chance):
        folder = self._checkpoint()
        file = folder / "model.safetensors"
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        if chance.random() < 0.7:
            header = json.dumps(mutate_json(chance, json.loads(data[8 : 8 + size]))).encode()
            data = struct.pack("<Q", len(header)) + header + data[8 + size :]
        else:
            data = mutate_bytes(chance, data[: size + 64]) + data[size + 64 :]
        file.write_bytes(data)
        jvlm_mlx.load(folder)

    def fuzz_index(self, chance):
        folder = self._checkpoint()
        index = folder / "model.safetensors.index.json"
        names = ("lm_head.weight", "model.language_model.ln_f.weight")
        value = {
            "metadata": {"total_size": 1},
            "weight_map": dict.fromkeys(names, "model.safetensors"),
        }
        index.write_bytes(as_text(chance, mutate_json(chance, value)))
        jvlm_mlx.load(folder)

    def fuzz_inspect(self, chance):
        folder = self._checkpoint()
        file = folder / chance.choice(("model.safetensors", "config.json"))
        file.write_bytes(mutate_bytes(chance, file.read_bytes()))
        return self._command("convert", "inspect", folder)

    def fuzz_adapter(self, chance):
        folder = self.folder / "adapter"
        if not folder.exists():
            self._train("--output", folder, "--rank", 2)
        copy = self.folder / "adapter-copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if chance.random() < 0.6:
            file = copy / "adapter_config.json"
            file.write_bytes(as_text(chance, mutate_json(chance, json.loads(file.read_text()))))
        else:
            file = copy / "adapters.safetensors"
            file.write_bytes(mutate_bytes(chance, file.read_bytes()))
        jvlm_mlx.load(GOLDEN / "tiny", adapter_path=copy)

    def fuzz_session(self, chance):
        file = self.folder / "talk.session"
        if not file.exists():
            session = jvlm_mlx.ChatSession(self.model, self.processor, max_tokens=3)
            for _ in session.ask("What?", str(GOLDEN / "images" / "dot.png")):
                pass
            session.save(file)
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        changed = self.folder / "changed.session"
        if chance.random() < 0.7:
            header = json.loads(data[8 : 8 + size])
            inner = json.loads(header["__metadata__"]["session"])
            if chance.random() < 0.8:
                header["__metadata__"]["session"] = json.dumps(mutate_json(chance, inner))
            else:
                header = mutate_json(chance, header)
            packed = json.dumps(header).encode()
            changed.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + size :])
        else:
            changed.write_bytes(mutate_bytes(chance, data))
        session = jvlm_mlx.ChatSession.load(changed, self.model, self.processor, max_tokens=2)
        for _ in session.ask("And now?"):
            pass

    # --- files of requests and examples

    def _command(self, *arguments):
        """Run a subcommand; what it prints on standard error may not be a traceback."""
        said, printed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            try:
                code = run_subcommand(arguments[0], [str(one) for one in arguments[1:]])
            except SystemExit as error:
                code = error.code
        text = said.getvalue()
        if code not in (0, 1, 2, 3) or "Traceback" in text:
            raise AssertionError(f"exit code {code}: {text[-600:]}")
        return "used" if code == 0 else "refused"

    def fuzz_batch(self, chance):
        rows = [
            {"id": "a", "prompt": "Hi", "max_tokens": 2},
            {"prompt": "What?", "images": ["images/dot.png"], "max_tokens": 2, "temperature": 0.5},
            {"messages": MESSAGES, "max_tokens": 1},
        ]
        rows = [mutate_json(chance, row) for row in rows]
        for row in rows:
            # A long answer is no hang.
            if isinstance(row, dict) and type(row.get("max_tokens")) is int:
                row["max_tokens"] = min(row["max_tokens"], 5)
        lines = [as_text(chance, row) for row in rows]
        file, output = self.folder / "requests.jsonl", self.folder / "responses.jsonl"
        file.write_bytes(b"\n".join(lines))
        output.unlink(missing_ok=True)
        return self._command(
            "batch", file, "--output", output, "--model", GOLDEN / "tiny", "--max-tokens", 2
        )

    def _train(self, *flags, data=None):
        file = data or self.folder / "examples.jsonl"
        if data is None:
            row = {"messages": MESSAGES[1:3]}
            file.write_text(json.dumps(row).replace('"image": "images', '"path": "images') + "\n")
        return self._command(
            "train", "--model", GOLDEN / "tiny", "--data", file, "--fine-tune-type", "lora",
            "--dtype", "float32", "--batch-size", 1, "--iters", 1, *flags,
        )  # fmt: skip

    def fuzz_examples(self, chance):
        rows = [{"messages": MESSAGES[1:3]}, {"messages": [{"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"}]}]  # fmt: skip
        file = self.folder / "mutated.jsonl"
        file.write_bytes(b"\n".join(as_text(chance, mutate_json(chance, row)) for row in rows))
        output = self.folder / "trained"
        shutil.rmtree(output, ignore_errors=True)
        return self._train("--output", output, "--rank", 1, data=file)

    def fuzz_mixture(self, chance):
        if not (self.folder / "examples.jsonl").exists():
            self._train("--output", self.folder / "unused")
        source = {"name": "a", "path": "examples.jsonl", "kind": "instructions", "weight": 2}
        value = {"sources": [source]}
        file = self.folder / "mixture.json"
        file.write_bytes(as_text(chance, mutate_json(chance, value)))
        output = self.folder / "mixed"
        shutil.rmtree(output, ignore_errors=True)
        return self._train("--output", output, "--rank", 1, data=file)

    def fuzz_training_config(self, chance):
        value = {"batch_size": 1, "learning_rate": 1e-4, "iters": 1, "rank": 1, "seed": 0}
        file = self.folder / "config.json"
        value = mutate_json(chance, value)
        for name in ("iters", "rank"):
            # A long training is no hang.
            if isinstance(value, dict) and type(value.setdefault(name, 2)) is int:
                value[name] = min(value[name], 2)
        file.write_bytes(as_text(chance, value))
        output = self.folder / "configured"
        shutil.rmtree(output, ignore_errors=True)
        examples = self.folder / "examples.jsonl"
        if not examples.exists():
            examples.write_text(
                json.dumps(
                    {
                        "messages": [
                            {"role": "user", "content": "Hi"},
                            {"role": "assistant", "content": "Ho"},
                        ]
                    }
                )
            )
        flags = ("--config", file, "--fine-tune-type", "lora", "--dtype", "float32")
        return self._command(
            "train", "--model", GOLDEN / "tiny", "--data", examples, "--output", output, *flags
        )

    # --- a web server that misbehaves

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
        self._cleanup.callback(server.server_close)
        self._cleanup.callback(server.shutdown)
        self.port = server.server_address[1]

    # --- the API

    def fuzz_chat_request(self, chance):
        if not hasattr(self, "client"):
            from tests.serving.conftest import running

            self.client, service = self._cleanup.enter_context(
                running(lambda _: (self.model, self.processor))
            )
            service.wait()
        image = "data:image/png;base64," + base64.b64encode(self.images[-3]).decode()
        body = {"model": "jina-vlm", "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "n": 1,
                "stream": False, "logit_bias": {"5": 1}, "messages": [{"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": image}},
                    {"type": "text", "text": "What?"}]}]}  # fmt: skip
        body = mutate_json(chance, body)
        if isinstance(body, dict) and body.get("max_tokens") not in (None, 1, 2, 3):
            body.setdefault("logit_bias", {})
        path = chance.choice(("/v1/chat/completions", "/v1/chat/completions", "/v1/completions"))
        response, data = self.client.request("POST", path, as_text(chance, body))
        if response.status >= 500 or response.status < 200:
            raise AssertionError(f"status {response.status}: {data[:300]!r}")
        if response.status != 200:
            error = json.loads(data)["error"]
            if "\n" in error["message"] or len(error["message"]) > 1000:
                raise AssertionError(f"message: {error['message'][:300]!r}")
            return "refused"
        return "used"
