"""The report on the demo measures every form of the model."""

import json

import pytest

from benchmarks import demo
from benchmarks.demo_model.initialization import write_initialized
from jvlm_mlx.demo.tasks import TASKS


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_initialized(folder / "untrained", 0)
    said = []
    chart = str(folder / "charts")
    arguments = ["--model", str(folder / "untrained"), "--examples", "1", "--bits", "4"]
    demo.main([*arguments, "--chart", chart], said.append)
    assert (folder / "charts" / "demo.png").stat().st_size > 1000
    return said


def test_every_task_has_a_row_and_every_form_a_column(said):
    lines = said[2].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*TASKS, "mean", "weights, MB"]
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == [
        "as it is",
        "without tiles",
        "4-bit",
    ]


def test_fewer_bits_are_fewer_bytes(said):
    line = json.loads(said[-1])
    forms = line["forms"]
    assert 0.1 < forms["4-bit"]["bytes"] / forms["as it is"]["bytes"] < 0.25
    assert sum(score["asked"] for score in line["languages"].values()) == len(TASKS)
