"""What becomes of requests when places, memory, threads or the server itself come to an end."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import jvlm_mlx
from jvlm_mlx.errors import RequestError
from jvlm_mlx.generation.prefill import Prefill
from jvlm_mlx.serving import app, scheduler
from tests.serving.conftest import check_schema, running, user, wait_until

LONG = 3000
"""Tokens of an answer that outlasts a test."""


def error_code(stream):
    """Return the code of the error that a stream ends with."""
    content = json.loads(stream.rest()[-1].removeprefix("data: "))
    check_schema(content, "ErrorResponse")
    return content["error"]["code"]


def test_a_cancelled_request_frees_its_place_in_the_middle_of_the_queue(tiny):
    with running(lambda _: tiny, max_queue=2, max_concurrent=1) as (client, service):
        service.wait()
        streams = [client.open_stream([user("Hi")], max_tokens=LONG)]
        wait_until(lambda: service.scheduler.active == 1)
        streams += [client.open_stream([user("Hi")], max_tokens=LONG) for _ in range(2)]
        assert client.chat([user("Hi")], max_tokens=1)[0] == 429
        streams[2].close()
        wait_until(lambda: service.scheduler.queued == 1)
        streams[2] = client.open_stream([user("Hi")], max_tokens=1)
        assert streams[2].response.status == 200
        for stream in streams:
            stream.close()


def test_a_server_that_stops_ends_streams_with_an_error(tiny):
    with running(lambda _: tiny, grace_seconds=1, max_concurrent=1) as (client, service):
        service.wait()
        streams = [client.open_stream([user("Hi")], max_tokens=LONG) for _ in range(2)]
        wait_until(lambda: (service.scheduler.active, service.scheduler.queued) == (1, 1))
        client.stop()
        assert [error_code(stream) for stream in streams] == ["server_stopping"] * 2


def test_a_server_that_stops_lets_answers_finish(tiny):
    with running(lambda _: tiny) as (client, service):
        service.wait()
        stream = client.open_stream([user("Hi")], max_tokens=100)
        client.stop()
        assert stream.rest()[-1] == "data: [DONE]"


def test_memory_that_nobody_foresaw_ends_the_newest_answer(tiny, monkeypatch):
    expected = jvlm_mlx.generate(*tiny, "Hi", max_tokens=200).text
    with running(lambda _: tiny, max_memory=10**9) as (client, service):
        service.wait()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.chat, [user("Hi")], max_tokens=200)
            wait_until(lambda: service.scheduler.active == 1)
            newest = client.open_stream([user("Hello")], max_tokens=LONG)
            wait_until(lambda: len(service.scheduler._decoding) == 2)
            monkeypatch.setattr(scheduler.mx, "get_active_memory", lambda: 10**9 + 1)
            assert error_code(newest) == "out_of_memory"
            status, body = first.result(20)
        assert (status, body["choices"][0]["message"]["content"]) == (200, expected)


def test_a_request_waits_for_memory_that_others_hold(tiny, monkeypatch):
    """Nothing is refused that would fit once others have left."""
    with running(lambda _: tiny, max_memory=10**9) as (client, service):
        service.wait()
        prefill, refused = service.scheduler._prefill, []

        def needs_everything(job, others):
            if others:
                refused.append(job)
                raise RequestError("there is no room beside the others")
            return prefill(job, others)

        monkeypatch.setattr(service.scheduler, "_prefill", needs_everything)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(client.chat, [user("Hi")], max_tokens=150) for _ in range(2)]
            answers = [one.result(30) for one in asked]
        assert [status for status, _ in answers] == [200, 200]
        assert len(refused) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("stream", [False, True])
def test_when_a_thread_has_ended_nobody_waits(tiny, monkeypatch, stream):
    monkeypatch.setattr(app, "KEEP_ALIVE_SECONDS", 0.2)
    with running(lambda _: tiny, grace_seconds=1) as (client, service):
        service.wait()

        def end(_job):
            raise SystemExit

        monkeypatch.setattr(service.scheduler, "_prefill_with_room", end)
        response, data = client.request(
            "POST", "/v1/chat/completions", {"messages": [user("Hi")], "stream": stream}
        )
        assert response.status == (200 if stream else 500)
        assert b'"code": "internal_error"' in data or b'"code":"internal_error"' in data
        status, data = client.get("/health")
        assert (status, json.loads(data)["status"]) == (503, "stalled")


def test_health_that_generates(tiny, monkeypatch):
    monkeypatch.setattr(app, "PROBE_SECONDS", 0.3)
    with running(lambda _: tiny, api_keys=("secret",), max_queue=1) as (client, service):
        key = {"Authorization": "Bearer secret"}
        service.wait()
        assert client.get("/health_generate")[0] == 401
        status, data = client.get("/health_generate", **key)
        content = json.loads(data)
        assert (status, content["status"], content["active"]) == (200, "ok", 0)
        assert content["memory_bytes"] > 0
        # While others are answered, their progress is enough.
        with ThreadPoolExecutor(1) as pool:
            monkeypatch.setattr(service.scheduler._admission, "_max_concurrent", 1)
            body = {"messages": [user("Hi")], "max_tokens": 400}
            busy = pool.submit(client.post, body, **key)
            wait_until(lambda: service.scheduler.active == 1)
            assert client.get("/health_generate", **key)[0] == 200
            assert busy.result(30)[0] == 200
        # Nothing comes, and nobody gets anything.
        go_on = threading.Event()
        prefill = service.scheduler._prefill

        def stuck(job, others):
            assert go_on.wait(20)
            return prefill(job, others)

        monkeypatch.setattr(service.scheduler, "_prefill", stuck)
        status, data = client.get("/health_generate", **key)
        assert (status, json.loads(data)["status"]) == (503, "stalled")
        go_on.set()
        wait_until(lambda: service.scheduler.active == 0)
        assert client.get("/health_generate", **key)[0] == 200


def test_health_while_the_model_is_loaded(tiny):
    go_on = threading.Event()

    def load(_):
        assert go_on.wait(20)
        return tiny

    with running(load) as (client, service):
        for path in ("/health", "/health_generate"):
            response, _ = client.request("GET", path)
            assert (response.status, response.getheader("Retry-After")) == (503, "30")
        go_on.set()
        service.wait()


def test_comments_keep_a_stream_alive_after_its_first_chunk(tiny, monkeypatch):
    monkeypatch.setattr(app, "KEEP_ALIVE_SECONDS", 0.05)
    with running(lambda _: tiny, max_concurrent=1) as (client, service):
        service.wait()
        first = client.open_stream([user("Hi")], max_tokens=LONG)
        wait_until(lambda: service.scheduler.active == 1)
        waiting = client.open_stream([user("Hi")], max_tokens=3)
        lines = [waiting.response.readline() for _ in range(6)]
        assert json.loads(lines[0][6:])["choices"][0]["delta"]["role"] == "assistant"
        assert lines[1:] == [b"\n", b": keep-alive\n", b"\n", b": keep-alive\n", b"\n"]
        first.close()
        assert waiting.rest()[-1] == "data: [DONE]"


def test_nobody_waits_for_the_prefill_of_another(tiny, monkeypatch):
    """Tokens of an answer, by a grammar even, come between two chunks of another's prompt."""
    pytest.importorskip("llguidance")
    order, decode_chunk = [], Prefill._decode_chunk

    def watched(prefill, embeddings, begin, end):
        order.append("chunk" if embeddings.shape[1] > 500 else "short")
        return decode_chunk(prefill, embeddings, begin, end)

    monkeypatch.setattr(Prefill, "_decode_chunk", watched)
    numbers = {"type": "array", "items": {"enum": [1]}, "minItems": 400, "maxItems": 400}
    wanted = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": numbers}}
    with running(lambda _: tiny, defaults={"prefill_step_size": 32}) as (client, service):
        service.wait()
        take = service.scheduler._take

        def watched_take(token):
            order.append("token")
            take(token)

        monkeypatch.setattr(service.scheduler, "_take", watched_take)
        stream = client.open_stream([user("Hi")], max_tokens=LONG, response_format=wanted)
        wait_until(lambda: order.count("token") > 3)
        assert client.chat([user("word " * 600)], max_tokens=1)[0] == 200
        stream.close()
    chunks = [place for place, what in enumerate(order) if what == "chunk"]
    assert len(chunks) > 10
    between = [order[a:b].count("token") for a, b in itertools.pairwise(chunks)]
    assert sum(one > 0 for one in between) > len(between) // 2
