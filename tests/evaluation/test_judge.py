"""A judge behind an OpenAI-compatible endpoint."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from jvlm_mlx.errors import RequestError
from jvlm_mlx.evaluate import score_predictions
from jvlm_mlx.evaluation.judge import Judge, exact_match
from tests.helpers.evaluation_files import write_jsonl


@pytest.fixture
def endpoint():
    """A server that finds answers right if they contain the reference."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), request))
            text = request["messages"][-1]["content"]
            reference, answer = text.split("Reference: ")[1].split("\n\nAnswer: ")
            verdict = "?" if answer == "odd" else str(int(reference in answer))
            body = {"choices": [{"message": {"content": verdict}}]}
            if answer == "empty":
                body = {}
            self.send_response(500 if answer == "fail" else 200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    thread.join()
    server.server_close()


def row(index, prediction, **cells):
    question = {"question": "How many?", "answer": "4", "category": "counting"}
    return {"index": index, **question, "prediction": prediction, **cells}


def test_a_judge_scores_what_is_not_plainly_right(endpoint, tmp_path, monkeypatch):
    url, seen = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    rows = [row(1, "4"), row(2, "There are 4 of them"), row(3, "five")]
    path = write_jsonl(tmp_path / "p.jsonl", rows)

    judge = Judge.from_url(url, "some-model")
    content = score_predictions("CharXiv_reasoning_val", path, tmp_path / "o", judge=judge)

    assert content["Overall"] == pytest.approx(200 / 3)
    assert content["run"]["judge"] == f"some-model at {url}"
    assert [path for path, _, _ in seen] == ["/v1/chat/completions"] * 2
    assert {key for _, key, _ in seen} == {"Bearer secret"}
    assert {request["model"] for _, _, request in seen} == {"some-model"}
    assert "secret" not in (tmp_path / "o/scores.json").read_text()
    assert "secret" not in repr(judge)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        ("odd", "said '?' about question 1 instead of 1 or 0"),
        ("empty", "no chat completion came back"),
        ("fail", "500"),
    ],
)
def test_a_judge_that_fails_is_named(endpoint, prediction, message, tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [row(1, prediction)])

    with pytest.raises(RequestError, match=re.escape(message)):
        score_predictions(
            "MathVista_MINI", path, tmp_path / "o", judge=Judge.from_url(endpoint[0], "m")
        )
    assert not (tmp_path / "o").exists()


def test_a_judge_that_is_not_there_is_named():
    with pytest.raises(RequestError, match="cannot be asked"):
        Judge.from_url("http://127.0.0.1:9", "m").score(row(1, "x"), "x")


@pytest.mark.parametrize(
    ("cells", "prediction", "right"),
    [
        ({"answer_type": "integer"}, " 4 ", True),
        ({"answer_type": "integer"}, "4.0", False),
        ({"answer_type": "float", "answer": "1.2"}, "1.20", True),
        ({"answer_type": "float", "answer": "1.2"}, "one", False),
        ({"choices": "['3', '4']", "answer_option": "B"}, "(B) 4", True),
        ({"choices": "['3', '4']", "answer_option": "B"}, "A", False),
        ({}, "4", True),
        ({}, "four", False),
    ],
)
def test_what_needs_no_judge(cells, prediction, right):
    assert (exact_match(row(1, "", **cells), prediction) is not None) == right
