"""Many clients at once: every answer is that of a single run, whoever comes and goes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlx.utils import tree_flatten

import jvlm_mlx
from tests.serving.conftest import MODEL, Client, image_uri, running, user, wait_until

ROOT = Path(__file__).parents[2]
IMAGES = (None, "dot", "shapes", "square", "tall")


def questions(count):
    """Return requests that differ in image, text, length and sampling."""
    for number in range(count):
        options = {"max_tokens": 4 + number % 13}
        if number % 3 == 0:
            options |= {"temperature": 1.0, "seed": number}
        if number % 4 == 1:
            options |= {"frequency_penalty": 1.5}
        yield number, IMAGES[number % len(IMAGES)], f"Question {number % 7}?", options


def answer_alone(tiny, golden_folder, image, text, options):
    images = None if image is None else str(golden_folder / "images" / f"{image}.png")
    return jvlm_mlx.generate(*tiny, text, images, **options).text


def test_answers_of_many_clients_are_those_of_single_runs(tiny, golden_folder):
    wanted = list(questions(48))
    expected = {
        number: answer_alone(tiny, golden_folder, image, text, options)
        for number, image, text, options in wanted
    }
    leave = random.Random(0)

    with running(lambda _: tiny, max_queue=64, max_concurrent=8) as (client, service):
        service.wait()

        def ask(question):
            number, image, text, options = question
            uris = [] if image is None else [image_uri(image)]
            if leave.random() < 1 / 3:
                # Leaves in the middle of a stream.
                left = client.open_stream([user(text, *uris)], **options)
                left.response.read(leave.randrange(1, 400))
                left.close()
                return number, None
            if number % 2:
                chunks = client.stream([user(text, *uris)], **options)
                deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
                return number, "".join(delta.get("content", "") for delta in deltas)
            status, body = client.chat([user(text, *uris)], **options)
            assert status == 200, body
            return number, body["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(24) as pool:
            answers = dict(pool.map(ask, wanted))
        stayed = {number: text for number, text in answers.items() if text is not None}
        assert 20 < len(stayed) < 48
        assert stayed == {number: expected[number] for number in stayed}
        # Whoever left takes no place any more.
        scheduler = service.scheduler
        wait_until(lambda: scheduler.active == 0 and scheduler.queued == 0)
        assert client.chat([user("Hi")], max_tokens=1)[0] == 200


def test_a_full_queue_refuses_and_recovers(tiny):
    with running(lambda _: tiny, max_queue=2, max_concurrent=1) as (client, service):
        service.wait()
        long = {"model": MODEL, "messages": [user("Hi")], "max_tokens": 3000}
        held = []
        for _ in range(3):
            held.append(client.open_stream([user("Hi")], max_tokens=3000))
            if len(held) == 1:
                wait_until(lambda: service.scheduler.active == 1 and service.scheduler.queued == 0)
        wait_until(lambda: service.scheduler.queued == 2)
        response, data = client.request("POST", "/v1/chat/completions", long)
        assert (response.status, response.getheader("Retry-After")) == (429, "2")
        assert json.loads(data)["error"]["type"] == "rate_limit_error"
        for one in held:
            one.close()
        wait_until(lambda: service.scheduler.queued == 0 and service.scheduler.active == 0, 30)
        assert client.chat([user("Hi")], max_tokens=1)[0] == 200


def test_what_could_never_fit_is_refused(tiny):
    weights = sum(array.nbytes for _, array in tree_flatten(tiny[0].parameters()))
    with running(lambda _: tiny, max_memory=weights + 300_000) as (client, service):
        service.wait()
        status, body = client.chat([user("Hi")], max_tokens=2000)
        assert (status, "KV cache" in body["error"]["message"]) == (413, True)
        context = tiny[0].config.decoder.context_size
        status, body = client.chat([user("word " * context)])
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


def start(log, port, *flags, **environment):
    """Start `jvlm serve` on the demo model; return the process, and a client or what it said."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "jvlm_mlx.serve", "--model", "demo", "--port", str(port),
             *flags],
            stderr=stderr, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
    wait_until(lambda: "\n" in log.read_text() or process.poll() is not None, 60)
    line = log.read_text().splitlines()[0]
    if not line.startswith("listening on http://127.0.0.1:"):
        return process, log.read_text()
    return process, Client(int(line.rpartition(":")[2]))


def test_the_command(tmp_path):
    first, client = start(
        tmp_path / "1", 0, "--quiet", JVLM_MAX_QUEUE="3", JVLM_SERVED_MODEL_NAME="demo"
    )
    try:
        wait_until(lambda: client.get("/health")[0] == 200, 60)
        assert json.loads(client.get("/v1/models")[1])["data"][0]["id"] == "demo"
        # Two servers on one port: one clear line.
        second, line = start(tmp_path / "2", client.port)
        assert (second.wait(60), line.count("\n")) == (1, 1)
        assert "choose another --port" in line
        # kill -9, and up again at once on the same port.
        first.kill()
        first.wait()
        first, client = start(tmp_path / "3", client.port, "--quiet")
        wait_until(lambda: client.get("/health")[0] == 200, 60)
        # SIGTERM lets answers under way finish.
        done = []
        body = {"messages": [user("Hi")], "max_tokens": 200}
        asking = threading.Thread(target=lambda: done.append(client.post(body)))
        asking.start()
        wait_until(lambda: json.loads(client.get("/health")[1])["active"] == 1 or done)
        first.send_signal(signal.SIGTERM)
        asking.join(30)
        assert done[0][0] == 200
        assert first.wait(30) in (0, -signal.SIGTERM)
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (("--host", "0.0.0.0"), {}, "--api-key"),
        (("--max-queue", "0"), {}, "--max-queue is 0"),
        (("--port", "99999"), {}, "choose another --port"),
        (("--allow-image-folder", "/no/such"), {}, "there is no folder"),
        ((), {"JVLM_ALLOW_IMAGE_URLS": "maybe"}, "JVLM_ALLOW_IMAGE_URLS"),
    ],
)
def test_mistakes_are_one_line(flags, environment, said, capsys, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from jvlm_mlx.cli.main import run_subcommand

    assert run_subcommand("serve", ["--model", "demo", *flags]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_body_that_never_ends_does_not_hold_up_others(served, monkeypatch):
    client, _ = served
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert client.chat([user("Hi")], max_tokens=1)[0] == 200
