"""The table of devices: every device has its figures and their source; the user's file adds others."""

from __future__ import annotations

from pathlib import Path

import pytest

from krill.device_table import find_device, get_device, list_devices
from krill.errors import UsageError

MINE = "mine: {tflops: {bf16: 100, fp32: 10}, memory: 16, bandwidth: 500, source: my measurement}\n"


@pytest.mark.parametrize("name", list_devices())
def test_every_device_has_figures_and_their_source(name: str) -> None:
    device = get_device(name)
    assert device.source
    assert device.peak_flops["fp32"] > 1e12
    assert device.peak_flops.get("bf16", 1e18) > device.peak_flops["fp32"]
    assert device.memory >= 16e9
    assert device.bandwidth > 1e11
    assert device.power


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100_pcie"), ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GH200 480GB", "gh200"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("Tesla V100-SXM2-32GB", "v100"),
    ],
)  # fmt: skip
def test_devices_are_found_by_the_name_of_their_driver(driver_name: str, name: str) -> None:
    device = find_device(driver_name)
    assert device is not None
    assert device.name == name


def test_an_unknown_gpu_is_not_found() -> None:
    assert find_device("Voodoo 2") is None


def test_a_file_of_the_user_adds_and_replaces_devices(tmp_path: Path) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(MINE + MINE.replace("mine:", "h100:"))
    assert get_device("mine", str(file)).peak_flops == {"bf16": 1e14, "fp32": 1e13, "tf32": 5e13}
    assert get_device("mine", str(file)).power is None
    assert get_device("h100", str(file)).memory == 16e9
    assert get_device("h100").memory == 80e9
    assert get_device("a100", str(file)) == get_device("a100")


def test_a_gpu_is_found_by_its_name_in_the_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(MINE.replace("{tflops", "{match: [Voodoo], tflops"))
    device = find_device("Voodoo 2", str(file))
    assert device is not None
    assert device.name == "mine"
    assert find_device("NVIDIA L4", str(file)) == get_device("l4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {memory: 1}\n", "mine.tflops: Field required; a device has tflops"),
        (
            MINE.replace("memory: 16", "memory: -1"),
            "mine.memory: Input should be greater than or equal to 0.001",
        ),
        (
            MINE.replace("memory: 16", "memory: 16000000000"),
            "mine.memory: Input should be less than or equal to",
        ),
        (MINE.replace("bf16: 100", "bf16: true"), "mine.tflops.bf16: Input should be a valid number"),
        (MINE.replace("memory: 16", "memory: .nan"), "mine.memory: Input should be a finite number"),
        ("mine: 3\n", "mine: not a mapping; a device has tflops in"),
        (MINE.replace("memory: 16", "memory: 16, memory: 80"), "found duplicate key memory"),
        (MINE + MINE, "found duplicate key mine"),
        ("- 1\n", "not a mapping of names to devices"),
        ("{", "use a YAML file as in docs/plan.md"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        list_devices(str(file))
    assert str(error.value).startswith(f"plan.devices={file}: ")
    assert message in str(error.value)


def test_an_unknown_device_names_a_similar_one() -> None:
    with pytest.raises(
        UsageError, match=r"plan\.device=h10: no such device\. Did you mean plan\.device=h100\?"
    ):
        get_device("h10")
    with pytest.raises(UsageError, match=r"Did you mean plan\.device=h100\?"):
        get_device("H100")
    with pytest.raises(UsageError, match=r"plan\.devices=nowhere\.yaml: "):
        get_device("h100", "nowhere.yaml")
