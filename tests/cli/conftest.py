"""Files of requests and their responses, for the tests of `jvlm batch`."""

import json

import pytest

from tests.helpers.batch_files import run


@pytest.fixture
def images(golden_folder):
    return {name: golden_folder / "images" / f"{name}.png" for name in ("dot", "square")}


@pytest.fixture
def files(tmp_path, images):
    requests = [
        {"id": "a", "prompt": "Describe this image.", "images": ["dot.png"]},
        {"prompt": "Hi", "max_tokens": 3},
        {"id": "b", "messages": [{"role": "user", "content": [
            {"type": "image", "image": "dot.png"}, {"type": "text", "text": "And"},
            {"type": "image"}]}], "image": str(images["square"])},
        {"prompt": "Café", "temperature": 1, "seed": 1, "system": None, "stop": ["\u0000"]},
        {"id": 7, "prompt": "Nowhere", "images": "missing.png"},
        {"prompt": "Hi", "max_token": 3},
        {"prompt": "Hi", "max_tokens": "three"},
        {"prompt": "Hi", "messages": []},
    ]  # fmt: skip
    text = "\n".join(json.dumps(request, ensure_ascii=False) for request in requests)
    (tmp_path / "dot.png").write_bytes(images["dot"].read_bytes())
    # An empty line between, and lines that are no JSON or no object.
    questions = tmp_path / "questions.jsonl"
    questions.write_text(text.replace("\n", "\n\n", 1) + "\n{broken\n[1]\n", encoding="utf-8")
    return questions, tmp_path / "answers.jsonl", requests


@pytest.fixture
def loaded(tiny, monkeypatch):
    """Loads nothing again, and takes any adapters for none."""
    monkeypatch.setattr("jvlm_mlx.batch.load_model", lambda *_: tiny)


@pytest.fixture
def written(golden_folder, tmp_path, loaded, capsys):
    """Answers to two questions, the first of which has an id."""
    files = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    files[0].write_text(r'{"id": "\u00e9\\\"1", "prompt": "Hi"}' + '\n{"prompt": "Ho"}\n')
    assert run(golden_folder, files) == 0
    capsys.readouterr()
    return files
