"""FlashAttention 3 and 4 in place of torch's built-in Flash Attention, which is version 2.

torch reroutes its own operator to the kernels of the package, so the attention functions stay the same (varlen; SDPA
is rerouted too). Shah et al. 2024, "FlashAttention-3", arXiv:2407.08608. FlashAttention 4 is written for Blackwell
and runs on Hopper. krill has run neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from torch.nn import attention

from krill.errors import UsageError, get_first_line
from krill.training.compute.device import get_compute_capability


@dataclass(frozen=True)
class FlashPackage:
    """A package with Flash Attention kernels."""

    module: str
    requirement: str
    """What pip installs."""
    needs_build: bool
    """Whether pip builds it with the installed torch."""
    torch_name: str | None = None
    """torch's name of the kernels, with which they replace the built-in ones; None: krill calls the package."""
    capabilities: tuple[int, ...] | None = None
    """Major compute capabilities of the GPUs that it runs on; None: it decides itself."""


FLASH_PACKAGES = {
    "flash_attention_2": FlashPackage("flash_attn", "flash-attn>=2.8.3", needs_build=True),
    "flash_attention_3": FlashPackage(
        "flash_attn_interface", "git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper",
        needs_build=True, torch_name="FA3", capabilities=(9,),
    ),
    "flash_attention_4": FlashPackage(
        "flash_attn.cute.interface", "flash-attn-4", needs_build=False, torch_name="FA4", capabilities=(9, 10),
    ),
}  # fmt: skip
"""The backends of hardware.attention that are not part of torch."""


def check_flash_package(backend: str, device: str) -> None:
    """Raises UsageError if the kernels of `backend` cannot run on `device`; names everything that is missing."""
    missing = _list_missing(FLASH_PACKAGES[backend], device)
    if missing:
        raise UsageError(
            f"hardware.attention={backend} needs {' and '.join(missing)}; or use hardware.attention=auto"
        )


def find_replacement_kernels() -> str | None:
    """Returns the backend whose kernels replace torch's own on this GPU, if one is installed."""
    for backend, package in FLASH_PACKAGES.items():
        is_installed = package.torch_name is not None and _import_kernels(package) is None
        if is_installed and not _list_missing(package, "cuda"):
            return backend
    return None


def activate_flash_attention(backend: str) -> None:
    """Makes torch's Flash Attention call the kernels of `backend`; its own for a backend that replaces nothing."""
    name = FLASH_PACKAGES[backend].torch_name if backend in FLASH_PACKAGES else None
    if name is not None:
        attention.activate_flash_attention_impl(name)
    elif hasattr(attention, "current_flash_attention_impl") and attention.current_flash_attention_impl():
        attention.restore_flash_attention_impl()  # an earlier run of this process replaced it


def _list_missing(package: FlashPackage, device: str) -> list[str]:
    """Returns what `package` needs and does not have here."""
    missing = []
    if device != "cuda":
        missing.append("a CUDA device")
    elif package.capabilities and (capability := get_compute_capability())[0] not in package.capabilities:
        majors = " or ".join(f"{major}.x" for major in package.capabilities)
        missing.append(f"a GPU of compute capability {majors} (this one has {capability[0]}.{capability[1]})")
    if package.torch_name is not None and package.torch_name not in _list_torch_names():
        missing.append(f"a version of torch that activates {package.torch_name} (pip install -U torch)")
    if error := _import_kernels(package):
        missing.append(f"the module {package.module} ({error}): {_format_install_command(package)}")
    return missing


def _list_torch_names() -> list[str]:
    if not hasattr(attention, "list_flash_attention_impls"):
        return []
    return list(attention.list_flash_attention_impls())


def _import_kernels(package: FlashPackage) -> str | None:
    """Imports the kernels, because installed ones may have been built for another torch; returns the error."""
    try:
        import_module(package.module).flash_attn_varlen_func  # noqa: B018
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return get_first_line(error)
    return None


def _format_install_command(package: FlashPackage) -> str:
    if package.needs_build:
        return f"pip install setuptools wheel && pip install --no-build-isolation '{package.requirement}'"
    return f"pip install {package.requirement}"
