"""The README's recipes for other programs, run as they stand there against a server process.

A recipe is skipped where its program is not installed. `JVLM_CLIENTS` names folders of programs
that are searched first, for clients live in environments of their own:

    JVLM_CLIENTS=clients/bin:lmms/bin python -m pytest tests/serving/test_recipes.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from tests.fuzz.requests import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "jvlm_mlx" / "serving" / "README.md").read_text()
DEMO = ROOT / "jvlm_mlx" / "demo" / "checkpoint"
NUMBER = "475"
"""In the image that `python -m jvlm_mlx.demo` draws."""

CLIENTS = {
    "openai": "python -c 'import openai'",
    "LangChain": "python -c 'import langchain_openai'",
    "llm": "llm --version",
    "markitdown": "python -c 'import markitdown, openai'",
    "lm-eval": "lm_eval --help && python -c 'import transformers'",
    "lmms-eval": "lmms-eval --help",
}
"""What succeeds where a program is installed."""


def recipes():
    """Return the text of every recipe by the name of its program."""
    clients = README.partition("\n## Clients\n")[2].partition("\n## ")[0]
    found = re.findall(r"^### (.+?)\n.*?^```text\n(.*?)^```$", clients, re.MULTILINE | re.DOTALL)
    return dict(found)


def test_every_recipe_is_run_here():
    assert list(recipes()) == list(CLIENTS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("uvicorn")
    started = Server(tmp_path_factory.mktemp("recipes") / "log", "demo", key=None)
    yield started
    started.close()


@pytest.fixture
def run(server, tmp_path):
    """Run a recipe in a folder with the demo's image; return what it prints."""
    folders = [one for one in os.environ.get("JVLM_CLIENTS", "").split(os.pathsep) if one]
    path = [*(str(Path(one).resolve()) for one in folders), str(Path(sys.executable).parent)]
    own = {"OPENAI_API_KEY", "PYTHONPATH", "LLM_USER_PATH"}
    environment = {
        **{name: value for name, value in os.environ.items() if name not in own},
        "PATH": os.pathsep.join([*path, os.environ["PATH"]]),
        "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "TOKENIZER": str(DEMO),
        "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip

    def command(text, folder=tmp_path):
        return subprocess.run(
            ["bash", "-e", "-c", text], cwd=folder, env=environment, capture_output=True,
            text=True, stdin=subprocess.DEVNULL, timeout=240, check=False,
        )  # fmt: skip

    def run(name):
        if command(CLIENTS[name]).returncode:
            pytest.skip(f"{name} is not installed")
        draw = [sys.executable, "-m", "jvlm_mlx.demo", "--output", str(tmp_path / "demo.png")]
        subprocess.run(draw, cwd=ROOT, check=True, capture_output=True)
        finished = command(recipes()[name].replace("localhost:8080", f"localhost:{server.port}"))
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    run.folder = tmp_path
    return run


@pytest.fixture(scope="module")
def demo():
    return jvlm_mlx.load("demo")


def answer_text_first(demo, image):
    """Return the demo's answer to the question where the image follows the text."""
    content = [{"type": "text", "text": "Which number is printed?"}, {"type": "image"}]
    return jvlm_mlx.generate(*demo, [{"role": "user", "content": content}], image).text


@pytest.mark.clients
def test_openai(run):
    assert run("openai").splitlines() == [NUMBER, NUMBER, f"number={NUMBER}"]


@pytest.mark.clients
def test_langchain(run):
    assert run("LangChain").splitlines() == [
        NUMBER, NUMBER, str([NUMBER] * 4), f"number={NUMBER}"
    ]  # fmt: skip


@pytest.mark.clients
def test_llm(run, demo):
    lines = run("llm").splitlines()
    expected = answer_text_first(demo, run.folder / "demo.png").splitlines()
    assert lines[: 2 * len(expected)] == expected * 2
    assert json.loads(lines[-1]) == {"number": int(NUMBER)}


@pytest.mark.clients
def test_markitdown(run, demo):
    printed = run("markitdown")
    assert answer_text_first(demo, run.folder / "demo.png") in printed


@pytest.mark.clients
def test_lm_eval(run, demo):
    table = run("lm-eval")
    assert re.search(r"sums_answered.*exact_match.*\|\s+1\|", table)
    (samples,) = (run.folder / "out").rglob("samples_sums_chosen_*.jsonl")
    model, processor = demo
    tokenizer = processor.tokenizer
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        for given, (measured,) in zip(row["arguments"].values(), row["resps"], strict=True):
            context = tokenizer.encode(given["arg_0"])
            whole = tokenizer.encode(given["arg_0"] + given["arg_1"])
            logits = model(np.array([[tokenizer.bos_token_id, *whole]]))[0].astype(mx.float32)
            logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            own = sum(logprobs[at, whole[at]] for at in range(len(context), len(whole)))
            assert float(measured[0]) == pytest.approx(own, abs=0.05)


@pytest.mark.clients
def test_lmms_eval(run):
    assert re.search(r"images\s*\|.*exact_match.*\|\s+1\|", run("lmms-eval"))
