"""What the documents show of a cluster works: their blocks run one after the other in one folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from conftest import Cluster, Krill

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"


def the_tests_of_documents() -> ModuleType:
    file = Path(__file__).parents[1] / "e2e" / "test_docs.py"
    spec = importlib.util.spec_from_file_location("the_tests_of_documents", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_the_page_shows_works(cluster: Cluster, krill: Krill) -> None:
    documents = the_tests_of_documents()
    shims = krill.folder / "bin"
    shims.mkdir()
    for name in ("krill-train", "krill-preprocess", "krill-runs"):
        real = str(Path(sys.executable).with_name(name))
        (shims / name).write_text(documents.SHIM.format(python=sys.executable, command=name, real=real))
        (shims / name).chmod(0o755)
    environment = krill.environment | {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
    shown = [block for block in documents.blocks(PAGE) if block.before == "<!-- runs on a cluster -->"]
    assert len(shown) == 4
    for block in shown:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.content], cwd=krill.folder, env=environment, text=True,
            capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.content}exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    (profile,) = (block for block in documents.blocks(PAGE) if block.language == "yaml")
    site = krill.folder / "conf" / "hardware" / "_site.yaml"
    site.write_text(profile.content.replace("a100", "gpu") + "device: cpu\n")
    script = krill("train", "hardware=slurm_gpu", "dry_run=true")
    for line in (
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --time=720",
        "module load cuda/12.4",
    ):
        assert line in script.splitlines()
