"""Checkpoints, adapters and sessions of strangers."""

import json
import shutil
import struct

import jvlm_mlx
from tests.fuzz.mutators import as_text, mutate_bytes, mutate_json
from tests.fuzz.workplace import DOT, GOLDEN, Workplace


class CheckpointTargets(Workplace):
    """Files that come with weights."""

    def _mutate_json_file(self, chance, *names):
        folder = self.checkpoint()
        file = folder / chance.choice(names)
        value = json.loads(file.read_text())
        file.write_bytes(as_text(chance, mutate_json(chance, value)))
        model, processor = jvlm_mlx.load(folder)
        # Whatever was accepted must work, or say in one line why not.
        jvlm_mlx.generate(model, processor, "Hi", DOT, max_tokens=1)

    def fuzz_config(self, chance):
        self._mutate_json_file(
            chance, "config.json", "preprocessor_config.json", "generation_config.json",
            "processor_config.json",
        )  # fmt: skip

    def fuzz_tokenizer(self, chance):
        self._mutate_json_file(chance, "tokenizer.json", "tokenizer_config.json")

    def fuzz_template(self, chance):
        folder = self.checkpoint()
        file = folder / "chat_template.jinja"
        file.write_bytes(mutate_bytes(chance, file.read_bytes()))
        _, processor = jvlm_mlx.load(folder)
        processor.apply_chat_template([{"role": "user", "content": "Hi"}])

    def fuzz_safetensors_header(self, chance):
        folder = self.checkpoint()
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
        folder = self.checkpoint()
        index = folder / "model.safetensors.index.json"
        names = ("lm_head.weight", "model.language_model.ln_f.weight")
        value = {
            "metadata": {"total_size": 1},
            "weight_map": dict.fromkeys(names, "model.safetensors"),
        }
        index.write_bytes(as_text(chance, mutate_json(chance, value)))
        jvlm_mlx.load(folder)

    def fuzz_inspect(self, chance):
        folder = self.checkpoint()
        file = folder / chance.choice(("model.safetensors", "config.json"))
        file.write_bytes(mutate_bytes(chance, file.read_bytes()))
        return self.command("convert", "inspect", folder)

    def fuzz_adapter(self, chance):
        folder = self.folder / "adapter"
        if not folder.exists():
            self.train(self.examples(), folder, "--batch-size", 1, "--iters", 1, "--rank", 2)
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
            for _ in session.ask("What?", DOT):
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
