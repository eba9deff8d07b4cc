"""The blocks of docs/cluster.md run, one after another in one folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from console import get_preloaded_environment
from document_blocks import list_blocks, write_shims
from slurm_cluster import Cluster, Krill

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"


def test_the_blocks_of_the_cluster_page_run(cluster: Cluster, krill: Krill) -> None:
    shims = krill.folder / "bin"
    write_shims(shims, ["krill-train", "krill-preprocess", "krill-runs"])
    path = f"{shims}{os.pathsep}{os.environ['PATH']}"
    environment = krill.environment | {"PATH": path} | get_preloaded_environment()
    blocks = [block for block in list_blocks(PAGE) if block.before == "<!-- runs on a cluster -->"]
    assert len(blocks) == 5
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.content], cwd=krill.folder, env=environment, text=True,
            capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.content}exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    (profile,) = (block for block in list_blocks(PAGE) if block.language == "yaml")
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
