"""Requests: to the library, in files, to the server, by flags."""

import argparse
import base64
import importlib
import json
import shutil

import jvlm_mlx
from jvlm_mlx.cli.main import SUBCOMMANDS
from tests.fuzz.mutators import as_text, mutate_bytes, mutate_json, odd_value
from tests.fuzz.workplace import DOT, GOLDEN, MESSAGES, Workplace

SCHEMA = {
    "type": "object",
    "properties": {
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
        "text": {"type": "string", "pattern": "^a+b?$", "maxLength": 9},
        "one": {"anyOf": [{"enum": ["red", 3]}, {"$ref": "#/$defs/list"}]},
    },
    "required": ["number"],
    "$defs": {"list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
}
VALUES = (
    "", "0", "-1", "1", "3", "0.5", "1e-300", "1e999", "nan", "inf", str(2**31), str(2**64),
    "1" * 5000, "8GB", "-8GB", "1e30GB", "0KB", "ü", "x" * 300, "../x", "/dev/null", "a,b", "*",
    "float16", "~nobody/x",
)  # fmt: skip
KEPT = ("output", "iters", "epochs", "max_tokens", "upload_repo", "model", "prompt_cache_file")
"""Flags that are left alone: they name where to write to, or make work that never ends."""


class RequestTargets(Workplace):
    """Questions and their options."""

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
        jvlm_mlx.generate(self.model, self.processor, "Hi", DOT, **chosen)

    def fuzz_text(self, chance):
        data = mutate_bytes(chance, "What is <|image|>? ü 你好 <im_patch>".encode())
        text = data.decode("utf-8", chance.choice(("replace", "surrogateescape", "ignore")))
        self.processor.tokenizer.encode(text)
        ids = [chance.choice((0, 5, 511, 530, 2**31, -1, 10**12)) for _ in range(6)]
        self.processor.decode(ids)

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
        return self.command(
            "batch", file, "--output", output, "--model", GOLDEN / "tiny", "--max-tokens", 2
        )

    def fuzz_chat_request(self, chance):
        if not hasattr(self, "client"):
            from tests.serving.conftest import running

            self.client, service = self.cleanup.enter_context(
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

    # --- answers by a schema, and flags

    def fuzz_schema(self, chance):
        if not hasattr(self, "grammars"):
            from jvlm_mlx.generation.json_grammar import JsonGrammars

            self.grammars = JsonGrammars(
                self.processor.tokenizer, self.model.config.decoder.vocab_size
            )
        schema = mutate_json(chance, SCHEMA)
        if not isinstance(schema, dict):
            schema = {"const": schema}
        grammar = self.grammars.make(schema)
        jvlm_mlx.generate(self.model, self.processor, "Hi", grammar=grammar, max_tokens=20)

    def fuzz_flags(self, chance):
        name, base = chance.choice(self._subcommands())
        flags = [flag for flag, dest in _flags_with_values(name) if dest not in KEPT]
        for flag in chance.sample(flags, chance.choice((1, 1, 2))):
            base = [*base, f"{flag}={chance.choice(VALUES)}"]
        return self.command(name, *base)

    def _subcommands(self):
        """Return subcommands with flags that they run with, and end soon."""
        tiny, output = GOLDEN / "tiny", self.folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        model = ("--model", tiny, "--max-tokens", 2)
        training = ("--rank", 1, "--iters", 1, "--dtype", "float32")
        return (
            ("generate", (*model, "--prompt", "Hi", "--image", DOT)),
            ("batch", (*model, "--prompt", "Hi", "--images", DOT, "--output", output)),
            ("read", (*model, DOT, "--output", output)),
            ("train", ("--model", tiny, "--data", self.examples(), "--output", output, *training)),
            ("convert", (tiny, output, "--dry-run")),
        )


def _flags_with_values(subcommand):
    """Return flag and name of every option of a subcommand that takes a value."""
    parser = argparse.ArgumentParser()
    module = importlib.import_module(f"jvlm_mlx.{SUBCOMMANDS[subcommand].module}")
    module.add_arguments(parser)
    return [
        (action.option_strings[-1], action.dest)
        for action in parser._actions
        if action.option_strings and action.nargs != 0
    ]
