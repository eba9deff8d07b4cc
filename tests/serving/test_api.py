"""The API is OpenAI's, as its own client and lm-eval use it; what is not supported is an error, never ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_fixtures import RunningServer, load_tiny_model, run_server

from krill.inference.generate import encode_prompt, generate
from krill.inference.sampling import SamplingParams
from krill.inference.token_scores import score_tokens


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def expected(server: RunningServer, prompt: str, **params: Any) -> str:
    """Returns what krill generates without a server."""
    values = {"temperature": 1, "top_p": 1, "repetition_penalty": 1, "max_new_tokens": 16} | params
    return generate(server.loaded.model, server.loaded.tokenizer, prompt, SamplingParams(**values)).rstrip(
        "\ufffd"
    )


def test_completions_are_those_of_krill(server: RunningServer, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "krill"
    greedy = client.completions.create(model="tiny", prompt="Return", temperature=0, max_tokens=40)
    assert greedy.choices[0].text == expected(server, "Return", temperature=0, max_new_tokens=40)
    assert greedy.usage is not None
    assert greedy.usage.prompt_tokens == 7  # bos too
    drawn = client.completions.create(model="tiny", prompt=["a", "나"], n=2, seed=5, top_p=0.9)
    assert [choice.index for choice in drawn.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in drawn.choices] == [
        expected(server, prompt, top_p=0.9, seed=seed) for prompt in ("a", "나") for seed in (5, 6)
    ]
    assert drawn.usage is not None
    assert drawn.usage.prompt_tokens == 2 + 4


def test_a_stream_is_the_same_text(server: RunningServer, client: openai.OpenAI) -> None:
    keys: dict[str, Any] = {"model": "tiny", "prompt": "한국", "seed": 1, "max_tokens": 60, "n": 2}
    whole = client.completions.create(**keys)
    texts, reasons = ["", ""], [None, None]
    chunks = [*client.completions.create(**keys, stream=True, stream_options={"include_usage": True})]
    for chunk in chunks[:-1]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage == whole.usage


def test_korean_is_never_cut_in_a_character(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each syllable is three tokens; the answer ends after the first two of one."""
    text = "안녕하세요, 반갑습니다"
    ids = encode_prompt(server.loaded.tokenizer, text)[1:]
    monkeypatch.setattr(
        "krill.inference.engine.choose_tokens",
        lambda logits, samplers, histories: [ids[new] for _, new in histories],
    )
    body = {"prompt": "a", "max_tokens": 14, "stream": True, "logprobs": 1}
    events = server.request("/v1/completions", body)[1].split("\n\n")
    pieces = [
        json.loads(event.removeprefix("data: "))["choices"][0] for event in events if "choices" in event
    ]
    assert [piece["text"] for piece in pieces if piece["text"]] == ["안", "녕", "하", "세"]
    assert sum(len(piece["logprobs"]["tokens"]) for piece in pieces) == 14
    whole = server.request("/v1/completions", body | {"stream": False})[1]["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == ("안녕하세", "length")
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 15}
    assert server.request("/v1/chat/completions", chat)[1]["choices"][0]["message"]["content"] == "안녕하세요"


def test_chats(server: RunningServer, client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "developer", "content": "말을 아껴"},
        {"role": "user", "content": [{"type": "text", "text": "안"}, {"type": "text", "text": "녕"}]},
    ]
    keys: dict[str, Any] = {"model": "tiny", "messages": messages, "seed": 3, "max_completion_tokens": 20}
    whole = client.chat.completions.create(**keys, logprobs=True, top_logprobs=2)
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert all(len(item.top_logprobs) == 2 for item in choice.logprobs.content)
    shown = b"".join(bytes(item.bytes or ()) for item in choice.logprobs.content)
    assert shown.decode(errors="replace").startswith(choice.message.content or "")
    pieces = [*client.chat.completions.create(**keys, stream=True)]
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == choice.message.content
    # without max_tokens an answer fills the context
    filled = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert filled.usage is not None
    assert filled.usage.total_tokens == 256 or filled.choices[0].finish_reason == "stop"


def test_chat_without_a_template(tmp_path: Path) -> None:
    with run_server(load_tiny_model(tmp_path / "plain", template=None)) as server:
        status, content, _ = server.request(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}
        )
        assert (status, content["error"]["code"]) == (400, "no_chat_template")
        assert "/v1/completions" in content["error"]["message"]


def test_stop_texts_end_the_answer_and_its_tokens(server: RunningServer, client: openai.OpenAI) -> None:
    keys: dict[str, Any] = {"model": "tiny", "prompt": "Return", "seed": 2, "max_tokens": 60, "logprobs": 0}
    keys["extra_body"] = {"min_tokens": 60}
    whole = client.completions.create(**keys).choices[0].text
    stop = whole[10:12]
    keys["stop"] = ["nothing like it", stop]
    (choice,) = client.completions.create(**keys).choices
    assert choice.text == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert max(choice.logprobs.text_offset) < len(choice.text)
    streamed = [*client.completions.create(**keys, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text
    tokens = [token for chunk in streamed for token in (chunk.choices[0].logprobs.tokens or [])]  # type: ignore[union-attr]
    assert tokens == choice.logprobs.tokens


def test_echoed_tokens_are_scored(server: RunningServer, client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(
        model="tiny", prompt="가 b", echo=True, logprobs=2, max_tokens=0, temperature=0
    ).choices
    assert choice.text == "가 b"
    assert choice.logprobs is not None
    ids = encode_prompt(server.loaded.tokenizer, "가 b")
    scores = score_tokens(server.loaded.model, ids, 2)
    assert choice.logprobs.tokens == [r"bytes:\xea", r"bytes:\xb0", r"bytes:\x80", " ", "b"]
    assert choice.logprobs.token_logprobs == pytest.approx([score.logprob for score in scores], abs=1e-5)
    assert choice.logprobs.text_offset == [0, 0, 0, 1, 2]
    for top, score in zip(choice.logprobs.top_logprobs or [], scores, strict=True):
        assert [*top.values()][:2] == pytest.approx([logprob for _, logprob in score.top], abs=1e-5)
        assert (
            score.logprob == pytest.approx(top.get(min(top, key=top.__getitem__)), abs=1e-5) or score.rank < 2
        )


def test_a_prompt_as_long_as_the_context_is_scored(server: RunningServer) -> None:
    """No token is generated, so that none needs room."""
    body = {"prompt": "a" * 255, "echo": True, "logprobs": 0, "max_tokens": 0}
    status, content, _ = server.request("/v1/completions", body)
    assert status == 200, content
    (choice,) = content["choices"]
    scores = score_tokens(server.loaded.model, encode_prompt(server.loaded.tokenizer, body["prompt"]))
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(
        [score.logprob for score in scores], abs=1e-5
    )
    assert (choice["text"], choice["finish_reason"]) == (body["prompt"], "length")
    assert content["usage"] == {"prompt_tokens": 256, "completion_tokens": 0, "total_tokens": 256}
    assert server.request("/v1/completions", body | {"max_tokens": 1})[0] == 400


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_has_each_scored_token_once(
    server: RunningServer, client: openai.OpenAI, echo: bool
) -> None:
    keys: dict[str, Any] = {"model": "tiny", "prompt": [0, 70, 71], "seed": 1, "max_tokens": 5, "logprobs": 0}
    (whole,) = client.completions.create(**keys, echo=echo).choices
    assert whole.logprobs is not None
    chunks = [*client.completions.create(**keys, echo=echo, stream=True)]
    tokens = [token for chunk in chunks for token in (chunk.choices[0].logprobs.tokens or [])]  # type: ignore[union-attr]
    assert tokens == whole.logprobs.tokens


def test_lm_eval_grades_over_http(server: RunningServer) -> None:
    """The request of lm-eval's local-completions, and what its parse_logprobs reads from the answer."""
    pairs = [("Return", " the"), ("나는", " 간다"), ("a" * 100, "b")]
    tokenizer, model = server.loaded.tokenizer, server.loaded.model
    prompts = [encode_prompt(tokenizer, context + continuation) for context, continuation in pairs]
    request = {
        "model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
        "echo": True,
    }  # fmt: skip
    status, content, _ = server.request("/v1/completions", request)
    assert status == 200
    for choice, ids, (context, _) in zip(content["choices"], prompts, pairs, strict=True):
        start = len(encode_prompt(tokenizer, context))
        logprobs = choice["logprobs"]["token_logprobs"][start:-1]
        top = choice["logprobs"]["top_logprobs"][start:-1]
        scores = score_tokens(model, ids, 1)[start - 1 :]
        assert logprobs == pytest.approx([score.logprob for score in scores], abs=1e-4)
        is_greedy = all(own == max(best.values()) for own, best in zip(logprobs, top, strict=True))
        assert is_greedy == all(score.rank == 0 for score in scores)


def test_eos_is_the_last_scored_token(server: RunningServer) -> None:
    """lm-eval drops the last token: where eos is generated first, it must not drop one of the prompt."""
    bias = server.loaded.model.lm_head
    saved = bias.weight.data[1].clone()
    bias.weight.data[1] = 100 * bias.weight.data[1:].abs().mean(0)
    try:
        found = []
        for text in ("a", "b", "c", "d", "e", "f", "g", "h"):
            body = {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 1, "temperature": 0}
            (choice,) = server.request("/v1/completions", body)[1]["choices"]
            found.append(choice["logprobs"]["tokens"])
            assert len(choice["logprobs"]["tokens"]) == 2
        assert "<|eos|>" in [tokens[-1] for tokens in found]
    finally:
        bias.weight.data[1] = saved


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt: Field required"),
    ({"prompt": []}, "prompt: use a text"),
    ({"prompt": [[]]}, "prompt: use a text"),
    ({"prompt": ["a", [1]], "n": 65}, "number of prompts times n is 130"),
    ({"prompt": [1, True]}, "prompt: use a text"),
    ({"prompt": [99999]}, "token id 99999: the model has the ids 0 to 258"),
    ({"prompt": [-1]}, "token id -1"),
    ({"prompt": "a" * 256}, "the prompt has 257 tokens"),
    ({"prompt": "a" * 32001}, "characters of prompt is 32001"),
    ({"prompt": "a", "temperature": 2.1}, "temperature is 2.1; at most 2 are allowed"),
    ({"prompt": "a", "temperature": 1e-30}, "temperature: use 0, or at least 1e-06"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    ({"prompt": "a", "temperature": "1"}, "temperature"),
    ({"prompt": "a", "top_k": 201}, "top_k is 201"),
    ({"prompt": "a", "top_k": 10**400}, "top_k: Input should be less than"),
    ({"prompt": "a", "logprobs": 10**400}, "logprobs: Input should be less than"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "max_tokens": 4097}, "max_tokens is 4097"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "n": 0}, "n: "),
    ({"prompt": "a", "logprobs": 21}, "logprobs is 21"),
    ({"prompt": "a", "stop": [""]}, "stop.0"),
    ({"prompt": "a", "stop": ["b"] * 17}, "number of stop texts is 17"),
    ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty is not supported"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias is not supported"),
    ({"prompt": "a", "best_of": 2}, "best_of is not supported"),
    ({"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    ({"prompt": "a", "tools": [{}]}, "tools is not supported"),
    ({"prompt": "a", "topk": 3}, "topk: no such parameter"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options needs stream=true"),
    ({"prompt": "a", "model": "gpt-4"}, "no model 'gpt-4' here; use 'tiny'"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_a_wrong_request_is_one_clear_error(
    server: RunningServer, body: dict[str, Any], message: str
) -> None:
    status, content, _ = server.request("/v1/completions", body)
    assert status == (404 if "model" in body else 400)
    assert content["error"].keys() == {"message", "type", "param", "code"}
    assert content["error"]["type"] == "invalid_request_error"
    assert content["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages"),
        ([{"role": "tool", "content": "a"}], "messages.0.role"),
        ([{"role": "user", "content": "a" * 8001}], "characters of a message is 8001"),
        ([{"role": "user", "content": "a" * 8000}] * 5, "characters of all messages is 40000"),
        ([{"role": "user", "content": ""}] * 501, "number of messages is 501"),
        ([{"role": "user", "content": "a" * 300}], "the prompt has"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages.0.content",
        ),
    ],
)
def test_a_wrong_conversation(server: RunningServer, messages: list[Any], message: str) -> None:
    status, content, _ = server.request("/v1/chat/completions", {"messages": messages})
    assert (status, content["error"]["message"][: len(message)]) == (400, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "the body is not a JSON object"),
        (rb'{"prompt": "\uD800"}', "the body is not JSON"),
        (rb'{"prompt": "a", "stop": "\ud800"}', "the body is not JSON"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "the body is not JSON"),
        (b'{"prompt": "a", "n": 1e999}', "n: "),
    ],
)
def test_garbage(server: RunningServer, body: bytes, message: str) -> None:
    status, content, _ = server.request("/v1/completions", body)
    assert (status, content["error"]["message"][: len(message)]) == (400, message)


def test_special_tokens_in_a_prompt_are_text(server: RunningServer) -> None:
    content = server.request("/v1/completions", {"prompt": "<|eos|>", "max_tokens": 1})[1]
    assert content["usage"]["prompt_tokens"] == 1 + len("<|eos|>")
    body = {"messages": [{"role": "user", "content": "<|eos|>"}], "max_tokens": 1}
    assert server.request("/v1/chat/completions", body)[1]["usage"]["prompt_tokens"] >= len("user: <|eos|>")


def test_an_empty_prompt_starts_a_document(server: RunningServer) -> None:
    content = server.request("/v1/completions", {"prompt": "", "temperature": 0, "max_tokens": 8})[1]
    assert content["choices"][0]["text"] == expected(server, "", temperature=0, max_new_tokens=8)


def test_parameters_without_an_effect_are_accepted(server: RunningServer) -> None:
    body = {
        "prompt": "a", "max_tokens": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {},
        "user": "me", "best_of": 1, "suffix": None, "temperature": None, "stop": None,
    }  # fmt: skip
    assert server.request("/v1/completions", body)[0] == 200


def test_the_defaults_of_the_model(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"temperature": 0, "max_new_tokens": 5}.items():
        monkeypatch.setitem(server.loaded.defaults, key, value)
    content = server.request("/v1/completions", {"prompt": "Return"})[1]
    assert content["choices"][0]["text"] == expected(server, "Return", temperature=0, max_new_tokens=5)
    assert content["usage"]["completion_tokens"] == 5
