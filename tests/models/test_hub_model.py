"""Tests of models on the Hub: what is downloaded is what a model is loaded from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import Repository, run_hub_server

from krill.manifest import list_files
from krill.models.hub import download_model


@pytest.mark.parametrize(
    ("others", "weights"),
    [
        (["pytorch_model.bin", "tf_model.h5"], "pytorch_model.bin"),
        (
            ["pytorch_model.bin", "model.safetensors", "last-checkpoint/model.safetensors"],
            "model.safetensors",
        ),
    ],
)
def test_weights_of_one_kind_are_downloaded(
    others: list[str], weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = Repository(private=False)
    repository.add("model", {name: name.encode() for name in ["config.json", "tokenizer.json", *others]})
    with run_hub_server(monkeypatch) as server:
        server.repositories["me/mine"] = repository
        folder = download_model.__wrapped__("me/mine", "model")
    names = [path.relative_to(folder).as_posix() for path in list_files(folder)]
    assert names == sorted(["config.json", "tokenizer.json", weights])
