"""A tokenizer is uploaded when it is asked for, and then privately."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from krill.cli import app, tokenizer

SMALL = ["tokenizer.vocab_size=600"]


class FakeHub:
    """What huggingface_hub would be told."""

    calls: list[tuple[str, dict[str, Any]]]

    def create_repo(self, repository: str, **how: Any) -> None:
        self.calls.append((repository, how))

    def upload_folder(self, **how: Any) -> None:
        folder = Path(how["folder_path"])
        sent = [name for name in how["allow_patterns"] if (folder / name).is_file()]
        self.calls.append((how["repo_id"], {"sent": sent}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeHub]:
    FakeHub.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.chdir(tmp_path)
    return FakeHub


def run_tokenizer(*words: str) -> int:
    return app.main("tokenizer", tokenizer.run_task, [*SMALL, *words])


def test_nothing_is_uploaded_unasked(hub: type[FakeHub]) -> None:
    assert run_tokenizer() == 0
    assert hub.calls == []


def test_uploaded_privately_when_asked_even_if_it_is_reused(hub: type[FakeHub]) -> None:
    assert run_tokenizer() == 0
    assert run_tokenizer("tokenizer.push_to=me/mine") == 0
    made, sent = hub.calls
    assert made == ("me/mine", {"private": True, "exist_ok": True})
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "record.json"} <= set(
        sent[1]["sent"]
    )
    assert run_tokenizer("tokenizer.push_to=me/mine", "tokenizer.private=false") == 0
    assert hub.calls[2][1]["private"] is False
    assert len([*Path("outputs/tokenizers").glob("*/tokenizer.json")]) == 1


def test_a_refusal_says_where_the_tokenizer_is(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: FakeHub, repository: str, **how: Any) -> None:
        raise OSError("401 Client Error")

    monkeypatch.setattr(hub, "create_repo", refuse)
    assert run_tokenizer("tokenizer.push_to=me/mine") == 1
    (file,) = Path("outputs/tokenizers").glob("*/tokenizer.json")
    told = capsys.readouterr().err
    assert str(file.parent) in told
    assert "hf auth login" in told


def test_a_dry_run_says_what_it_would_upload(hub: type[FakeHub], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenizer("tokenizer.push_to=me/mine", "dry_run=true") == 0
    assert "upload      me/mine, private" in capsys.readouterr().out
    assert hub.calls == []
