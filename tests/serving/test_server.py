"""The server under load, with clients that hang up or send garbage, with keys, and in the hands of a browser."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from compositions import compose
from serving_fixtures import RunningServer, run_server

from krill.config.schema import ServeConfig
from krill.config.validation import validate_config
from krill.inference.engine import GenerationEngine, Progress
from krill.inference.load import LoadedModel
from krill.serving import server as serving_server
from krill.serving.app import build_app
from krill.serving.calls import ServedModel
from krill.serving.guard import Guard
from krill.serving.server import listen, serve
from krill.serving.worker import GenerationWorker

LONG = {"prompt": "a", "max_tokens": 250, "min_tokens": 250, "stream": True}


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def begin(server: RunningServer, body: dict[str, Any]) -> Any:
    """Returns the connection of a stream that has begun."""
    connection = server.connect()
    connection.request("POST", "/v1/completions", json.dumps(body))
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: ")
    return connection


class SlowEngine(GenerationEngine):
    """Takes 20 ms for a step."""

    def step(self) -> list[Progress]:
        time.sleep(0.02)
        return super().step()


def test_a_client_that_hangs_up_frees_its_place(tiny: LoadedModel) -> None:
    with run_server(tiny, "serve.max_batch_size=1", "serve.max_queue=1", build_engine=SlowEngine) as server:
        first = begin(server, LONG)
        second = server.connect()  # waits, without a stream
        second.request("POST", "/v1/completions", json.dumps(LONG | {"stream": False}))
        wait_until(lambda: server.worker.waiting == 1)
        status, content, response = server.request("/v1/completions", {"prompt": "a"})
        assert (status, content["error"]["type"]) == (429, "rate_limit_error")
        assert response.getheader("Retry-After") == "1"
        second.close()
        wait_until(lambda: server.worker.waiting == 0)
        first.close()
        wait_until(lambda: server.worker.active == 0)
        assert server.request("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
        metrics = server.request("/metrics")[1]
        assert 'krill_requests_total{path="/v1/completions",status="429"} 1' in metrics
        assert "krill_disconnects_total 2" in metrics
        assert "krill_active_answers 0" in metrics


def test_fifty_clients_of_which_some_misbehave(tiny: LoadedModel) -> None:
    """All others get the answers that they get alone."""
    with run_server(tiny, "serve.limits.body_bytes=20000", "serve.limits.body_seconds=2") as server:
        bodies = [
            {"prompt": f"나 {index}", "seed": index, "max_tokens": 12, "stream": index % 2 == 0}
            for index in range(35)
        ]

        def ask(body: dict[str, Any]) -> str:
            text = server.request("/v1/completions", body)[1]
            if not body["stream"]:
                return text["choices"][0]["text"]
            events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
            assert events.pop() == "[DONE]"
            return "".join(json.loads(event)["choices"][0]["text"] for event in events)

        def hang_up(index: int) -> str:
            begin(server, LONG).close()
            return ""

        def misbehave(index: int) -> str:
            with socket.create_connection(("127.0.0.1", server.connect().port)) as raw:
                if index == 0:
                    raw.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
                    return raw.recv(100).decode().split(" ")[1]
                head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                if index == 1:  # too large, said before
                    raw.sendall(head + b"Content-Length: 30000\r\n\r\n" + b"a" * 30000)
                elif index == 2:  # too large, in chunks
                    raw.sendall(
                        head
                        + b"Transfer-Encoding: chunked\r\n\r\n"
                        + b"7530\r\n"
                        + b"a" * 30000
                        + b"\r\n0\r\n\r\n"
                    )
                elif index == 3:  # never ends
                    raw.sendall(head + b"Content-Length: 100\r\n\r\n{")
                else:
                    raw.sendall(head + b"Content-Length: 1\r\n\r\n{")
                raw.settimeout(20)
                return raw.recv(100).decode().split(" ")[1]

        alone = [ask(body) for body in bodies[:4]]
        with ThreadPoolExecutor(50) as pool:
            answers = [pool.submit(ask, body) for body in bodies]
            gone = [pool.submit(hang_up, index) for index in range(10)]
            garbage = [pool.submit(misbehave, index) for index in range(5)]
            texts = [answer.result() for answer in answers]
            assert [answer.result() for answer in gone] == [""] * 10
            assert [answer.result() for answer in garbage] == ["400", "413", "413", "408", "400"]
        assert texts[:4] == alone
        assert all(texts)
        wait_until(lambda: server.worker.active == server.worker.waiting == 0)
        assert server.worker._owners == {}


def test_many_requests_leave_nothing_behind(tiny: LoadedModel) -> None:
    with run_server(tiny) as server:
        body = {"prompt": "a", "max_tokens": 1, "logprobs": 2, "echo": True}

        def send(number: int) -> None:
            connection = server.connect()
            for _ in range(number):
                connection.request("POST", "/v1/completions", json.dumps(body))
                assert connection.getresponse().read()
            connection.close()

        send(20)
        gc.collect()
        threads, memory = threading.active_count(), psutil.Process().memory_info().rss
        objects = len(gc.get_objects())
        send(80)
        gc.collect()
        assert threading.active_count() == threads
        assert len(gc.get_objects()) - objects < 80
        assert psutil.Process().memory_info().rss - memory < 20e6


def test_a_request_larger_than_the_batch_needs_no_queue(tiny: LoadedModel) -> None:
    with run_server(tiny, "serve.max_batch_size=1", "serve.max_queue=0") as server:
        body = {"prompt": "a", "max_tokens": 1, "n": 3}
        assert len(server.request("/v1/completions", body)[1]["choices"]) == 3


def test_a_connection_without_a_request_is_closed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_server, "HEADERS_SECONDS", 0.3)
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    beginnings = (
        b"",
        request,
        request + b"\r\n" + request,  # the second one is incomplete
        request + b"Content-Length: 5\r\n\r\n{",  # a body that nobody reads
    )
    connections = [socket.create_connection(("127.0.0.1", server.connect().port)) for _ in beginnings]
    for connection, beginning in zip(connections, beginnings, strict=True):
        connection.settimeout(10)
        connection.sendall(beginning[:-1])
        time.sleep(0.05)  # in two parts, so that uvicorn's own limit has ended
        connection.sendall(beginning[-1:])
    for connection in connections:
        with connection:
            while connection.recv(1000):
                pass


def test_a_request_may_take_longer_than_its_headers(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_server, "HEADERS_SECONDS", 0.1)
    with run_server(tiny, build_engine=SlowEngine) as server:
        connection = server.connect()
        for _ in range(2):  # on one connection
            connection.request(
                "POST", "/v1/completions", json.dumps(LONG | {"max_tokens": 20, "min_tokens": 20})
            )
            assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
        connection.close()


def test_a_second_signal_ends_the_server_at_once(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits for a client that is still sending its body."""
    limits = validate_config(ServeConfig, compose("serve", "model.path=x")).serve.limits
    exit_codes: list[int] = []
    monkeypatch.setattr("os._exit", exit_codes.append)
    worker = GenerationWorker(lambda: GenerationEngine(tiny.model, tiny.tokenizer), 1)
    app = build_app(ServedModel(tiny, "tiny", limits), worker, Guard(None, "127.0.0.1"))
    listener = listen("127.0.0.1", 0)

    def interrupt_twice() -> None:
        with socket.create_connection(listener.getsockname()) as client:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            client.sendall(head + b"Content-Length: 9\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100")  # the server waits for the body
            for number in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                wait_until(lambda count=number: worker._is_stopping and len(exit_codes) == count)

    with ThreadPoolExecutor(1) as pool:
        interruption = pool.submit(interrupt_twice)
        assert serve(app, worker, listener, {signal.SIGINT: 130}) == signal.SIGINT
        interruption.result()
    assert exit_codes == [130]


def test_an_error_of_the_model_ends_the_requests_and_not_the_server(
    tiny: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingEngine(GenerationEngine):
        fails = True

        def step(self) -> list[Progress]:
            if FailingEngine.fails:
                FailingEngine.fails = False
                raise RuntimeError("broken")
            return super().step()

    logging.getLogger("krill").propagate = True
    with run_server(tiny, build_engine=FailingEngine) as server:
        status, content, _ = server.request("/v1/completions", {"prompt": "a"})
        assert (status, content["error"]["type"]) == (500, "server_error")
        assert "broken" in caplog.text
        assert "krill_disconnects_total 0" in server.request("/metrics")[1]
        assert server.request("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


def test_a_stream_that_the_end_of_the_server_cuts_says_so(tiny: LoadedModel) -> None:
    with run_server(tiny, build_engine=SlowEngine) as server:
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps(LONG))
        response = connection.getresponse()
        response.readline()
        server.worker.stop()
        *_, last = response.read().decode().rpartition("data: ")
        assert json.loads(last)["error"]["message"] == "the server is shutting down"
        assert server.request("/health")[0] == 503
        assert server.request("/v1/completions", {"prompt": "a"})[0] == 503


def test_a_key_is_needed_for_all_but_the_page(tiny: LoadedModel) -> None:
    with run_server(tiny, api_key="sesame-1") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sesame-1"}):
            for path, body in (
                ("/v1/models", None),
                ("/v1/completions", {"prompt": "a"}),
                ("/metrics", None),
            ):
                status, content, _ = server.request(path, body, headers)
                assert (status, content["error"]["code"]) == (401, "invalid_api_key")
                assert "sesame" not in content["error"]["message"]
        key = {"Authorization": "Bearer sesame-1"}
        assert server.request("/v1/models", headers=key)[0] == 200
        assert server.request("/v1/models", headers=key | {"Host": "krill.example"})[0] == 200
        assert server.request("/")[0] == server.request("/health")[0] == 200
        assert server.request("/v2", headers=key | {"Host": "["})[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://["}, 403),
    ],
)
def test_pages_of_other_sites_may_not_use_the_server(
    server: RunningServer, headers: dict[str, str], status: int
) -> None:
    assert server.request("/v1/models", headers=headers)[0] == status


def test_wrong_paths_and_methods(server: RunningServer) -> None:
    for path, method, status in (
        ("/v2", "GET", 404),
        ("/v1/completions", "GET", 405),
        ("/health", "DELETE", 405),
    ):
        got, content, _ = server.request(path, method=method)
        assert (got, content["error"]["type"]) == (status, "invalid_request_error")
    assert server.request("/v1/models/other")[1]["error"]["code"] == "model_not_found"
    assert server.request("/health")[1] == {"status": "ok"}


def test_the_page_asks_for_nothing_from_outside(server: RunningServer) -> None:
    status, text, response = server.request("/")
    assert status == 200
    assert "default-src 'none'" in (response.getheader("Content-Security-Policy") or "")
    assert "http://" not in text
    assert "https://" not in text
    assert text.count("\n") < 500
