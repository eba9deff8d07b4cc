"""The checkpoint of a run on the Hub is used only if its status and its manifest are intact."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krill.errors import KrillError
from krill.manifest import write_file_manifest
from krill.runs.hub import find_remote_checkpoint
from krill.runs.record import write_status


@pytest.mark.parametrize(("name", "what"), [("run/status.json", "signature"), ("manifest.json", "step")])
def test_a_damaged_record_on_the_hub_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    folder = tmp_path / "last-checkpoint"
    (folder / "run").mkdir(parents=True)
    write_status(folder / "run", {"state": "stopped", "signature": "a"})
    write_file_manifest(folder / "manifest.json", folder, [], step=5)

    class Api:
        def model_info(self, repository: str) -> Any:
            return SimpleNamespace(sha="c0ffee")

        def hf_hub_download(self, repository: str, file: str, revision: str, local_dir: str) -> str:
            target = Path(local_dir, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            return str(shutil.copy(tmp_path / file, target))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    config: Any = SimpleNamespace(resume="remote", hub=SimpleNamespace(id="me/mine", checkpoints=True))
    found = find_remote_checkpoint(config, "a")
    assert found is not None
    assert (found.step, found.status) == (5, {"state": "stopped", "signature": "a"})
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace(what, what[:-1] + "q"))
    with pytest.raises(KrillError, match=rf"me/mine cannot be read .*{name} is damaged"):
        find_remote_checkpoint(config, "a")
