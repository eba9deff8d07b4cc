"""Question: what does the README's first command produce on a fresh machine, and how long does it take?

Clones the repository into a temporary folder, creates the virtual environment, installs krill and runs `krill-train`
without arguments, as in the README; times installation and run separately. Prints a table and writes
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


def read_first_command() -> tuple[str, str]:
    """Returns the README's first command as its installation part and its training part."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    line = next(block for block in blocks if "krill-train" in block).strip()
    install, _, train = line.rpartition(" && ")
    return install, train


def time_command(command: str, folder: Path) -> float:
    """Returns the seconds that `command` takes in `folder`. Raises CalledProcessError if it fails."""
    began = time.perf_counter()
    subprocess.run(command, shell=True, cwd=folder, check=True)
    return time.perf_counter() - began


def main() -> None:
    install, train = read_first_command()
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "krill"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        install_seconds, train_seconds = time_command(install, clone), time_command(train, clone)
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
        "seconds": {"install": round(install_seconds, 1), "krill-train": round(train_seconds, 1)},
        "nats_below_unigram": round(metrics["unigram"] - metrics["eval_loss"], 3),
        "metrics": metrics,
    }
    target = ROOT / "benchmarks" / "results" / "first_run.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'installation':<24}{install_seconds:8.1f} s")
    print(f"{'krill-train':<24}{train_seconds:8.1f} s   (at most 300)")
    print(f"{'nats below unigram':<24}{result['nats_below_unigram']:8.3f}     (at least 2.0)")


if __name__ == "__main__":
    main()
