"""A server in a thread of the test process, with an untrained model whose tokens are bytes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import torch
from compositions import compose
from stores import make_byte_tokenizer

from krill.config.schema import ServeConfig, TransformerConfig
from krill.config.validation import validate_config
from krill.inference.engine import GenerationEngine
from krill.inference.load import LoadedModel
from krill.models.build import build_model
from krill.serving.app import build_app
from krill.serving.calls import ServedModel
from krill.serving.guard import Guard
from krill.serving.server import build_server, format_url, listen
from krill.serving.worker import GenerationWorker
from krill.tokenizer.artifact import load_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@dataclass
class RunningServer:
    """A server and what a test looks at."""

    url: str
    worker: GenerationWorker
    loaded: LoadedModel

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", int(self.url.rpartition(":")[2]), timeout=30)

    def request(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
    ) -> tuple[int, Any, HTTPResponse]:
        """Returns the status, the JSON or text of the answer, and the response."""
        connection = self.connect()
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, content, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        try:
            return response.status, json.loads(text), response
        except ValueError:
            return response.status, text, response


def load_tiny_model(folder: Path, template: str | None = TEMPLATE, context: int = 256) -> LoadedModel:
    """Returns an untrained model in `folder`; bos 0, eos 1, pad 2, and one token for each byte."""
    tokenizer = make_byte_tokenizer(folder)
    if template is not None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        tokenizer = load_tokenizer(folder)
    torch.manual_seed(3)
    config = TransformerConfig(
        name="tiny", family="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=context, rope_theta=1e4,
        rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    model = build_model(config, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    return LoadedModel(folder, model.eval(), tokenizer, {})


@contextmanager
def run_server(
    loaded: LoadedModel, *overrides: str, api_key: str | None = None,
    build_engine: Callable[..., GenerationEngine] = GenerationEngine,
) -> Iterator[RunningServer]:  # fmt: skip
    """Serves `loaded` in this context; no thread is left behind it."""
    torch.set_num_threads(1)
    settings = validate_config(ServeConfig, compose("serve", "model.path=x", *overrides)).serve
    threads = set(threading.enumerate())
    worker = GenerationWorker(
        partial(build_engine, loaded.model, loaded.tokenizer, settings.max_batch_size), settings.max_queue
    )
    served = ServedModel(loaded, "tiny", settings.limits)
    listener = listen("127.0.0.1", 0)
    url = format_url(listener)
    server = build_server(build_app(served, worker, Guard(api_key, "127.0.0.1")))
    tasks: list[Any] = []

    async def serve() -> None:
        await server.serve(sockets=[listener])
        tasks.extend(asyncio.all_tasks() - {asyncio.current_task()})

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    worker.start()
    thread.start()
    try:
        yield RunningServer(url, worker, loaded)
    finally:
        server.should_exit = True
        worker.stop()
        thread.join(20)
    assert set(threading.enumerate()) - threads == set()
    assert tasks == []
