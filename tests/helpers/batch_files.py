"""Run `jvlm batch` on files of the small checkpoint."""

import json

from jvlm_mlx.cli.main import main


def run(golden_folder, files, *arguments):
    return main(
        ["batch", str(files[0]), "--output", str(files[1]), "--max-tokens", "6",
         "--model", str(golden_folder / "tiny"), *arguments]
    )  # fmt: skip


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(golden_folder, files, said, capsys, *arguments):
    assert run(golden_folder, files, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
