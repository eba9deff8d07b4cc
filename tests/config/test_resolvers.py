"""The resolvers of conf/."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from krill.config.resolvers import inverse_sqrt, muon_decay, muon_lr, null_if_set, size_label, sweep_folder


def test_values():
    assert inverse_sqrt(256) == 1 / 16
    assert muon_lr("rms", 0.3, None) == 0.3
    assert muon_lr("spectral", 1.0, 768) == pytest.approx(5.5426, abs=1e-4)
    assert muon_lr("spectral", 3e-3, 256) * muon_decay("spectral", 0.1, 256) == pytest.approx(3e-3 * 0.1)
    assert null_if_set(None, 3) == 3
    assert null_if_set(2, 3) is None
    sizes = (300, 4096, 8000, 8192, 8193, 65536, "x", None)
    assert [size_label(size) for size in sizes] == ["300", "4k", "8k", "8k", "8193", "64k", "x", "None"]


def test_resolvers_are_registered():
    assert OmegaConf.create({"x": "${krill.muon_lr:spectral,0.5,100}"}).x == pytest.approx(1.0)


def test_the_folder_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KRILL_OUTPUTS", raising=False)
    assert sweep_folder(None, "이름") == str(tmp_path / "outputs" / "sweeps" / "이름")
    assert sweep_folder("there", "이름") == str(tmp_path / "there")
    assert not Path(sweep_folder("there", "이름", dry_run=True)).is_relative_to(tmp_path)
