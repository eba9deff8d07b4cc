"""Question: what does the README's first line give on a fresh machine, and in how long?

Clones the repository into a temporary folder, makes the virtual environment, installs, runs `krill-train` with no
argument, as the README says it, and times installation and run apart. Prints a table and writes
results/first_run.json.

    python benchmarks/first_run.py          (about 5 minutes on two cores, and 2 GB of disk)

Must hold: the run takes at most 5 minutes on two CPU cores and ends at least 2.0 nats per token below the unigram
entropy of its validation text.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def first_line() -> tuple[str, str]:
    """The README's first command, cut into what installs and what trains."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    line = next(block for block in blocks if "krill-train" in block).strip()
    install, _, train = line.rpartition(" && ")
    return install, train


def timed(command: str, folder: Path) -> float:
    """Seconds that `command` takes in `folder`; its failure is ours."""
    began = time.perf_counter()
    subprocess.run(command, shell=True, cwd=folder, check=True)
    return time.perf_counter() - began


def main() -> None:
    install, train = first_line()
    with tempfile.TemporaryDirectory() as place:
        clone = Path(place) / "krill"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        installing, training = timed(install, clone), timed(train, clone)
        run = next((clone / "outputs" / "runs").glob("*/*"))
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    metrics = status["metrics"]
    result = {
        "question": "the README's first line on a fresh clone",
        "date": date.today().isoformat(),
        "command": f"{install} && {train}",
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": status["versions"],
        "git": status["git"],
        "seconds": {"install": round(installing, 1), "krill-train": round(training, 1)},
        "nats_below_unigram": round(metrics["unigram"] - metrics["eval_loss"], 3),
        "metrics": metrics,
    }
    target = ROOT / "benchmarks" / "results" / "first_run.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'installation':<24}{installing:8.1f} s")
    print(f"{'krill-train':<24}{training:8.1f} s   (at most 300)")
    print(f"{'nats below unigram':<24}{result['nats_below_unigram']:8.3f}     (at least 2.0)")


if __name__ == "__main__":
    main()
