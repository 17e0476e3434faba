"""Training examples, mixtures and configs."""

import shutil

from tests.fuzz.mutators import as_text, mutate_json
from tests.fuzz.workplace import Workplace, example

ONE_STEP = ("--batch-size", 1, "--iters", 1, "--rank", 1)
TEXT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


class TrainingTargets(Workplace):
    """What training reads."""

    def fuzz_examples(self, chance):
        file = self.folder / "mutated.jsonl"
        rows = [mutate_json(chance, example()), mutate_json(chance, TEXT)]
        file.write_bytes(b"\n".join(as_text(chance, row) for row in rows))
        return self.train(file, self._output(), *ONE_STEP)

    def fuzz_mixture(self, chance):
        source = {"name": "a", "path": self.examples().name, "kind": "instructions", "weight": 2}
        file = self.folder / "mixture.json"
        file.write_bytes(as_text(chance, mutate_json(chance, {"sources": [source]})))
        return self.train(file, self._output(), *ONE_STEP)

    def fuzz_training_config(self, chance):
        value = {"batch_size": 1, "learning_rate": 1e-4, "iters": 1, "rank": 1, "seed": 0}
        value = mutate_json(chance, value)
        for name, most in (("iters", 2), ("rank", 2), ("batch_size", 8)):
            # A long training is no hang. Nothing means a thousand iterations.
            if isinstance(value, dict) and type(value.get(name)) in (int, type(None)):
                value[name] = most if value.get(name) is None else min(value[name], most)
        file = self.folder / "config.json"
        file.write_bytes(as_text(chance, value))
        return self.train(self.examples(), self._output(), "--config", file)

    def _output(self):
        output = self.folder / "trained"
        shutil.rmtree(output, ignore_errors=True)
        return output
