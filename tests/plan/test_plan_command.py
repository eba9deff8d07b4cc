"""krill-plan: a report, JSON, one table for a sweep; without torch for the presets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from console import is_empty

from krill.cli import app, plan
from krill.config.paths import CONF_DIR, list_config_options

Planned = Callable[..., tuple[int, str, str]]
NOT_BUILDABLE = {"auto", "pretrained"}
"""Options of model= that name another model."""


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planned:
    """planned("steps=5", …): exit code, standard output and standard error of krill-plan, which writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.main("plan", plan.run_task, arguments)
        assert is_empty(tmp_path)
        return code, *capsys.readouterr()

    return run


CALL = """
import sys
from krill.cli import app, plan
for arguments in sys.argv[1:]:
    sys.argv = ["krill-plan"]
    assert app.main("plan", plan.run_task, arguments.split()) == 0, arguments
print("loaded:", *sorted(name for name in sys.modules if "." not in name))
"""


def test_a_plan_of_any_preset_loads_no_torch(tmp_path: Path) -> None:
    models = sorted(list_config_options("model", [CONF_DIR]).keys() - NOT_BUILDABLE)
    calls = [
        f"-m model={','.join(models)} tokenizer=bpe_32k plan.device=h100,l4",
        "model=auto model.model_type=gpt2 device=cpu",
        "experiment=tiny_ko hardware=gpus plan.device=a100 plan.count=8 hardware.sharding=fsdp2 batch.tokens=null",
    ]
    done = subprocess.run(
        [sys.executable, "-c", CALL, *calls], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()[: 1 + 2 * len(models)]
    assert table[0].split()[:3] == ["point", "parameters", "tokens"]
    assert [line.split()[0] for line in table[1::2]] == [f"model={name}" for name in models]
    *_, last = done.stdout.splitlines()
    assert {"krill", "pydantic"} <= set(last.split())
    assert {"torch", "transformers", "datasets", "accelerate"} & set(last.split()) == set()


def test_the_report_of_a_plan(planned: Planned) -> None:
    code, out, _ = planned(
        "model=llama_350m", "tokenizer=bpe_32k", "plan.device=h100", "plan.price_per_hour=2.5"
    )
    assert code == 0
    lines = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert lines == [
        "name", "model", "parameters", "device", "batch", "tokens", "lr", "decay", "warmup", "flops", "data", "time",
        "price", "energy", "memory", "moments", "disk", "fits", "advice",
    ]  # fmt: skip


def test_json_has_all_figures(planned: Planned) -> None:
    values = json.loads(planned("plan.device=a100", "steps=10", "format=json")[1])
    assert values["parameters"]["total"] == sum(v for k, v in values["parameters"].items() if k != "total")
    assert values["tokens"] == 10 * values["tokens_per_step"]
    assert values["memory"]["fits"] is True
    points = json.loads(planned("-m", "plan.device=a100,l4", "steps=10", "format=json")[1])
    assert [point["device"] for point in points] == ["a100", "l4"]
    assert points[0]["point"] == "plan.device=a100"


def test_hardware_of_a_cluster_is_planned_and_not_submitted(planned: Planned) -> None:
    arguments = ("hardware=slurm_nodes", "plan.device=h100", "steps=10", "batch.tokens=null")
    code, out, _ = planned(*arguments, "plan.count=16")
    assert code == 0
    assert "16 × h100, 16 ranks" in out
    code, out, _ = planned("-m", "hardware=auto,slurm_gpu", "plan.device=h100", "plan.count=1", "steps=10")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert (
        "do not divide over hardware.slurm.nodes=2; use plan.count=14"
        in planned(*arguments, "plan.count=15")[2]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan.device=h1000"], "no such device. Did you mean plan.device=h100?"),
        (
            ["plan.device=h100", "hardware=gpus"],
            "set how many there are, as in plan.device=h100 plan.count=8",
        ),
        (["plan.mfu=2"], "plan.mfu"),
        (["budget=much"], "use budget=1e19, 90m, 8h or 2d"),
        (["dry_run=false"], "dry_run"),
    ],
)
def test_a_wrong_argument_is_answered_with_what_to_type(
    planned: Planned, arguments: list[str], message: str
) -> None:
    code, _, error = planned(*arguments)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_tokens_of_files_are_estimated_from_their_size(
    planned: Planned, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("text") / "a.jsonl"
    file.write_text('{"text": "' + 370_000 * "a" + '"}\n')
    values = json.loads(
        planned("data=files", f"data.paths=[{file}]", "epochs=1", "format=json", "device=cpu",
                "data.validation_fraction=0")[1]
    )  # fmt: skip
    assert values["tokens"] == pytest.approx(100_000, rel=0.05)
