"""A CUDA device without a GPU: its tensors have shapes, data types and a device, and no values.

    with FakeCuda() as cuda:              # torch.cuda answers as on a machine with one H100
        cuda.run_within(train)()          # computes with tensors without values, and records it
    cuda.operations, cuda.waits, cuda.calls

Tensors are those of torch's FakeTensorMode. It checks shapes and data types of every operation, also those of torch's
varlen_attn, and autocast casts as on CUDA. Without a driver, autograd cannot run backward passes on CUDA, because it
asks for streams. So C++ sees the device as xla, which autocast treats like CUDA and which has no streams; Python sees
cuda. Both have the device guard of torch's Python device, which does nothing. This works in any build of torch from
2.11 on.

Use it in a process of its own, before the first backward pass: autograd counts the devices once per process.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves

DEVICE, NAME, CAPABILITY, MEMORY = torch.device("cuda:0"), "NVIDIA H100 80GB HBM3", (9, 0), 80 * 10**9
PROPERTIES = SimpleNamespace(name=NAME, total_memory=MEMORY, major=9, minor=0, multi_processor_count=132)
ANSWERS: dict[str, Any] = {
    "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
    "set_device": None, "get_device_name": NAME, "get_device_capability": CAPABILITY,
    "get_device_properties": PROPERTIES, "is_bf16_supported": True, "manual_seed_all": None, "synchronize": None,
    "current_stream": None, "is_current_stream_capturing": False, "empty_cache": None, "max_memory_allocated": 0,
    "memory_allocated": 0, "reset_peak_memory_stats": None, "mem_get_info": (MEMORY, MEMORY),
    "get_rng_state": None, "set_rng_state": None,
}  # fmt: skip
"""What functions of torch.cuda return."""

CUDA, XLA, PRIVATE_USE_1, DEVICE_TYPES = 1, 9, 20, 21
"""Indices of c10::DeviceType, and their number."""
GUARD_TABLE = "_ZN3c104impl26device_guard_impl_registryE"
"""The symbol of c10::impl::device_guard_impl_registry in libc10."""

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
VALUE_DEPENDENT = (
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.equal.default,
)  # fmt: skip
"""Operations whose result needs a value on the host."""
HIDDEN_PATHS = (str(Path(torch.__file__).parent), str(Path(__file__)), str(Path(inspect.__file__).parent))


@dataclass(frozen=True)
class Operation:
    """An operation as a GPU gets it: below autograd and autocast."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_view: bool
    """Whether it computes nothing: the results are views of its inputs."""
    line: str
    """The nearest line outside of torch that called it; "autograd" in a backward pass."""


@dataclass(frozen=True)
class Wait:
    """A point at which the host waits for the device."""

    reason: str
    line: str


class Recorder(TorchDispatchMode):
    """Records what reaches the device; gives the host 1 for every value that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        self.operations: list[Operation] = []
        self.waits: list[Wait] = []
        self.cpu_inputs: list[str] = []
        """Operations of the device that get a CPU tensor of more than one value, with their lines."""
        self.pending_copies: list[Tensor] = []
        """CPU tensors to which the device copies, until the host waits for it."""
        self.pinned: list[Tensor] = []
        self.early_reads: list[str] = []
        """Lines that read such a tensor before."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Returns whether torch.compile compiles within this mode."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_traceable_wrapper_subclass_type(each) for each in types):
            return NotImplemented  # it calls operations of the tensors within, such as those of fp8
        args = tuple(_to_cuda(arg) for arg in args)
        kwargs = {name: _to_cuda(value) for name, value in (kwargs or {}).items()}
        if func is torch.ops.prim.device.default:
            return func(*args)
        if func is aten._local_scalar_dense.default:
            return self._read_scalar(args[0])
        if func is aten._pin_memory.default:
            return args[0]  # pinning asks the driver
        if is_pinned := kwargs.get("pin_memory", False):
            kwargs["pin_memory"] = False
        if func is aten._fused_sgd_.default:
            result = None  # without a meta kernel
        elif func is aten.addmm.dtype_out:
            result = _check_addmm(*args, **kwargs)  # torch 2.11 has a wrong one
        else:
            result = func(*args, **kwargs)
        inputs, outputs = _list_tensors((args, kwargs)), _list_tensors(result)
        if is_pinned:
            self.pinned += outputs
        if any(tensor.device.type == "cuda" for tensor in (*inputs, *outputs)):
            is_non_blocking = kwargs.get("non_blocking") or (
                func is aten.copy_.default and args[2:] == (True,)
            )
            self._record(func, inputs, outputs, bool(is_non_blocking))
        return result

    def _record(
        self, func: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], is_non_blocking: bool
    ) -> None:
        line = find_line()
        if func in VALUE_DEPENDENT:
            self.waits.append(Wait(str(func), line))
        if func in COPIES and len({tensor.device.type for tensor in (*inputs, *outputs)}) == 2:
            if not is_non_blocking:
                self.waits.append(Wait("blocking copy", line))
            elif outputs[0].device.type == "cpu":
                self.pending_copies.append(outputs[0])
                if not _is_any_of(outputs[0], self.pinned):
                    self.waits.append(Wait("copy to memory that is not pinned", line))
        elif any(tensor.device.type == "cpu" and tensor.ndim for tensor in inputs):
            self.cpu_inputs.append(f"{func} {line}")
        is_view = not func._schema.is_mutable and any(_is_any_of(output, inputs) for output in outputs)
        self.operations.append(Operation(str(func), inputs, outputs, is_view, line))

    def _read_scalar(self, tensor: Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return aten._local_scalar_dense.default(tensor)
        self.read(tensor)
        return tensor.dtype == torch.bool or (1.0 if tensor.is_floating_point() else 1)

    def read(self, tensor: Tensor) -> None:
        """Records that the host reads `tensor`."""
        if tensor.device.type == "cuda":
            self.waits.append(Wait("read of a value", find_line()))
        elif _is_any_of(tensor, self.pending_copies):
            self.early_reads.append(find_line())

    def wait(self, reason: str) -> None:
        """Records that the host waits for the device."""
        self.pending_copies.clear()
        self.waits.append(Wait(reason, find_line()))


class DriverlessMode(FakeTensorMode):
    """FakeTensorMode as without a driver, although torch.cuda.is_available() returns True."""

    avoid_device_init = True


class FakeCuda:
    """A context in which torch has one CUDA device. See the head of the file."""

    def __init__(self) -> None:
        self.recorder, self.mode = Recorder(), DriverlessMode(allow_non_fake_inputs=True)
        self.calls: list[str] = []
        """Functions of torch.cuda that were called, in order."""
        self._stack = ExitStack()

    @property
    def operations(self) -> list[Operation]:
        return self.recorder.operations

    @property
    def waits(self) -> list[Wait]:
        return self.recorder.waits

    def __enter__(self) -> FakeCuda:
        _install_device_guards()
        for owner, name, stub in (*self._list_torch_stubs(), *self._list_cuda_stubs()):
            self._stack.enter_context(patch.object(owner, name, stub, create=name == "is_cuda"))
        handlers = {torch.ops.prim.device.default: lambda args: _get_cpp_device(*args)}
        self._stack.enter_context(patch.dict(fake_tensor._DISPATCH_META_HANDLERS, handlers))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run_within(
        self, function: Callable[..., Any], device: torch.device | None = None
    ) -> Callable[..., Any]:
        """Returns `function`, whose tensors are then fake and whose operations are recorded.

        `device`: where it creates tensors by default; None: on the CPU.
        """

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.mode, self.recorder, device or torch.device("cpu"):
                return function(*args, **kwargs)

        return call

    def _list_torch_stubs(self) -> list[tuple[Any, str, Any]]:
        dispatch, create = vars(FakeTensor)["__torch_dispatch__"].__func__, FakeTensor.__new__
        move, to_numpy = torch.nn.Module.to, Tensor.numpy

        def dispatch_device(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.prim.device.default:
                return _get_cpp_device(args[0])
            return dispatch(cls, func, types, args, kwargs)

        def create_on_cuda(cls: Any, mode: Any, elem: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
            return create(cls, mode, elem, _to_cuda(device), *args, **kwargs)

        def move_unless_fake(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
            is_fake = any(isinstance(parameter, FakeTensor) for parameter in module.parameters())
            return module if is_fake else move(module, *args, **kwargs)  # fake ones are built on the device

        def to_fake_numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(tensor, FakeTensor):
                return to_numpy(tensor, *args, **kwargs)
            assert tensor.device.type == "cpu", f"{find_line()}: numpy() of a tensor on the device"
            self.recorder.read(tensor)
            return np.zeros(tensor.shape, np.float32)

        def to_fake_list(tensor: Tensor) -> Any:
            self.recorder.read(tensor)
            return np.zeros(tensor.shape).tolist()

        return [
            (FakeTensor, "__torch_dispatch__", classmethod(dispatch_device)),
            (FakeTensor, "__new__", staticmethod(create_on_cuda)),
            (FakeTensor, "is_cuda", property(lambda tensor: tensor.device.type == "cuda")),
            (fake_tensor, "init_gpu_context", lambda device: None),
            (torch.accelerator, "is_available", lambda: False),  # has streams, and pins memory
            (torch.nn.Module, "to", move_unless_fake),
            (Tensor, "numpy", to_fake_numpy),
            (FakeTensor, "tolist", to_fake_list),
        ]

    def _list_cuda_stubs(self) -> list[tuple[Any, str, Any]]:
        cuda = self

        class Event:
            """torch.cuda.Event."""

            def __init__(self, enable_timing: bool = False, blocking: bool = False):
                cuda.calls.append("Event")

            def record(self, stream: Any = None) -> None:
                cuda.calls.append("Event.record")

            def synchronize(self) -> None:
                cuda.recorder.wait("event")

        answers = [(torch.cuda, name, self._build_answer(name, value)) for name, value in ANSWERS.items()]
        return [*answers, (torch.cuda, "Event", Event)]

    def _build_answer(self, name: str, value: Any) -> Callable[..., Any]:
        """Returns a stub of torch.cuda.`name` that accepts what the function accepts, and records the call."""
        signature = inspect.signature(getattr(torch.cuda, name))

        def answer(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
            self.calls.append(name)
            if name == "synchronize":
                self.recorder.wait(name)
            return value

        return answer


def find_line() -> str:
    """Returns "file:line function" of the nearest caller outside of torch, of Python's library and of this file."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "site-packages" in file.removeprefix(HIDDEN_PATHS[0]) or not file.startswith((*HIDDEN_PATHS, "<")):
            return f"{_shorten_path(file)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "autograd"


def _shorten_path(file: str) -> str:
    for root in ("site-packages/", f"{Path(__file__).parents[1]}/"):
        if root in file:
            return file.rpartition(root)[2]
    return file


def _check_addmm(total: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    """Checks what CUDA requires of torch.addmm with out_dtype."""
    assert a.dtype in (torch.bfloat16, torch.float16)
    assert b.dtype == a.dtype
    assert total.dtype in (torch.float32, a.dtype)
    assert out_dtype == out.dtype == torch.float32
    assert torch.mm(a, b).shape == total.shape == out.shape
    return out


def _is_any_of(tensor: Tensor, others: Iterable[Tensor]) -> bool:
    """Returns whether `tensor` shares the memory of one of the others."""
    storage = tensor.untyped_storage()._cdata
    return any(other.untyped_storage()._cdata == storage for other in others)


def _list_tensors(tree: Any) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _to_cuda(value: Any) -> Any:
    """Returns the device that is meant by one that C++ asks for; any other value as it is."""
    is_stand_in = isinstance(value, torch.device) and value.type in ("xla", "privateuseone")
    return DEVICE if is_stand_in else value


def _get_cpp_device(tensor: Any) -> torch.device:
    if tensor.fake_mode.in_kernel_invocation:
        return torch.device("meta")
    device: torch.device = tensor.fake_device
    return torch.device("xla:0") if device.type == "cuda" else device


_GUARDS: list[Any] = []
"""torch keeps only a pointer to its Python device guard."""


def _install_device_guards() -> None:
    """Gives libc10 device guards for CUDA and for xla that do nothing; once per process."""
    if _GUARDS:
        return

    class Guard(torch._C._acc.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    _GUARDS.append(Guard())
    torch._C._acc.register_python_privateuseone_device_guard(_GUARDS[0])
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    table = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, GUARD_TABLE)
    table[CUDA] = table[XLA] = table[PRIVATE_USE_1]
