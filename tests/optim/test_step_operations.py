"""The number of operations that a step of Muon launches for 27 layers of 7 matrices (a Llama).

Every aten operation that reaches PyTorch's dispatcher in the second step is counted: a kernel, an allocation or a
view counts as one, and so does a foreach operation on a list of tensors. The same count without views is 9263 for
Keller Jordan's and Moonlight's Muon, which process one matrix at a time, 4349 for torch.optim.Muon and 106 for
pytorch_optimizer's foreach.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from krill.optim.muon import Muon

LAYERS, MAX_OPERATIONS = 27, 150


class OperationCounter(TorchDispatchMode):
    """Counts the aten operations that run in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "aten":
            self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def _count_operations(hidden: int, inner: int, shared: int, device: str, **options: Any) -> int:
    shapes = [(hidden, hidden), (shared, hidden), (shared, hidden), (hidden, hidden)]
    shapes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    params = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes * LAYERS]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = Muon([{"params": params, "kind": "muon", "lr": 1e-3, **options}])
    optimizer.step()
    with OperationCounter() as operations:
        optimizer.step()
    return operations.counts.total()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_launches_few_operations(dtype):
    assert _count_operations(24, 64, 16, "cpu", ns_dtype=dtype) <= MAX_OPERATIONS


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_of_the_size_of_tiny_ko_with_several_batches_launches_few_operations(dtype):
    assert _count_operations(768, 1920, 256, "meta", ns_dtype=dtype) <= MAX_OPERATIONS


def test_options_add_few_operations():
    plain = _count_operations(24, 64, 16, "cpu")
    assert _count_operations(24, 64, 16, "cpu", cautious=True) <= plain + 30
    assert _count_operations(24, 64, 16, "cpu", normuon=True) <= plain + 2 * 7 * LAYERS
