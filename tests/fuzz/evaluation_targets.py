"""Benchmark files and predictions."""

import json
import shutil

from jvlm_mlx.evaluation.benchmarks import BENCHMARKS
from tests.fuzz.mutators import TEXTS, mutate_bytes, mutate_json
from tests.fuzz.workplace import GOLDEN, Workplace
from tests.helpers.evaluation_files import WRITERS, png

ASKED = ("AI2D_TEST", "ChartQA_TEST", "DocVQA_VAL", "MMMU_DEV_VAL", "OCRBench", "POPE")
ROW = {
    "question": "Which?", "A": "one", "B": "two", "answer": "['B']", "category": "x",
    "l2-category": "y", "split": "validation", "image_path": "a.png", "choices": "['one', 'two']",
}  # fmt: skip


class EvaluationTargets(Workplace):
    """What `evaluate` reads."""

    def fuzz_questions(self, chance):
        benchmark = chance.choice(ASKED)
        data = self._file(chance, [{"image": png()}, {"image": png("blue")}], ("tsv",))
        return self._evaluate(
            "--benchmark", benchmark, "--data", data, "--model", GOLDEN / "tiny",
            "--max-tokens", 2,
        )  # fmt: skip

    def fuzz_predictions(self, chance):
        benchmark = chance.choice(sorted(BENCHMARKS))
        added = [{"prediction": "B"}, {"prediction": "[-1.5, -2]", "answer": "B"}]
        predictions = self._file(chance, added, sorted(WRITERS))
        return self._evaluate("--benchmark", benchmark, "--predictions", predictions)

    def _file(self, chance, added, endings):
        """Write changed rows, or whole ones into a file that is changed."""
        rows = [ROW | {"index": number} | row for number, row in enumerate(added, 1)]
        ending = chance.choice(endings)
        file = self.folder / f"rows.{ending}"
        if chance.random() < 0.6:
            WRITERS[ending](file, [_changed(chance, row) for row in rows])
        else:
            WRITERS[ending](file, rows)
            file.write_bytes(mutate_bytes(chance, file.read_bytes()))
        return file

    def _evaluate(self, *arguments):
        output = self.folder / "evaluated"
        shutil.rmtree(output, ignore_errors=True)
        return self.command("evaluate", *arguments, "--output", output)


def _changed(chance, row):
    """Change a row of a table, whose cells stay texts and numbers."""
    row = mutate_json(chance, row)
    row = row if isinstance(row, dict) else {"index": row}
    if chance.random() < 0.5:
        row[chance.choice([*row, "A"])] = chance.choice(TEXTS)
    return {_as_cell(name): _as_cell(value) for name, value in row.items()}


def _as_cell(value):
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode().replace("\0", "\u2400")
