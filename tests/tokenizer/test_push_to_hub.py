"""A tokenizer is uploaded only with tokenizer.push_to, and privately by default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from recipes import TEXTS

from krill.cli import app, tokenizer

SMALL = ["tokenizer.vocab_size=330", "data=files", "data.paths=[text.jsonl]"]


class FakeHub:
    """Records the calls of huggingface_hub.HfApi."""

    calls: list[tuple[str, dict[str, Any]]]

    def create_repo(self, repository: str, **options: Any) -> None:
        self.calls.append((repository, options))

    def upload_folder(self, **options: Any) -> None:
        folder = Path(options["folder_path"])
        files = [name for name in options["allow_patterns"] if (folder / name).is_file()]
        self.calls.append((options["repo_id"], {"files": files}))


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeHub]:
    FakeHub.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.chdir(tmp_path)
    lines = (json.dumps({"text": f"{index} {text}" * 2}) for index, text in enumerate(TEXTS))
    Path("text.jsonl").write_text("\n".join(lines))
    return FakeHub


def run_tokenizer(*overrides: str) -> int:
    return app.main("tokenizer", tokenizer.run_task, [*SMALL, *overrides])


def test_nothing_is_uploaded_by_default(fake_hub: type[FakeHub]) -> None:
    assert run_tokenizer() == 0
    assert fake_hub.calls == []


def test_a_reused_tokenizer_is_uploaded_privately_or_publicly(fake_hub: type[FakeHub]) -> None:
    assert run_tokenizer() == 0
    assert run_tokenizer("tokenizer.push_to=me/mine") == 0
    created, uploaded = fake_hub.calls
    assert created == ("me/mine", {"private": True, "exist_ok": True})
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "record.json"} <= set(
        uploaded[1]["files"]
    )
    assert run_tokenizer("tokenizer.push_to=me/mine", "tokenizer.private=false") == 0
    assert fake_hub.calls[2][1]["private"] is False
    assert len([*Path("outputs/tokenizers").glob("*/tokenizer.json")]) == 1


def test_the_error_of_a_failed_upload_names_the_folder_of_the_tokenizer(
    fake_hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: FakeHub, repository: str, **options: Any) -> None:
        raise OSError("401 Client Error")

    monkeypatch.setattr(fake_hub, "create_repo", refuse)
    assert run_tokenizer("tokenizer.push_to=me/mine") == 1
    (file,) = Path("outputs/tokenizers").glob("*/tokenizer.json")
    error = capsys.readouterr().err
    assert str(file.parent) in error
    assert "hf auth login" in error


def test_a_dry_run_prints_the_upload(fake_hub: type[FakeHub], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tokenizer("tokenizer.push_to=me/mine", "dry_run=true") == 0
    assert "upload      me/mine, private" in capsys.readouterr().out
    assert fake_hub.calls == []
