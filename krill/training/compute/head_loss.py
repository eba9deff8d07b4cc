"""Training and validation loss without full logits: output head and cross-entropy in one.

During a forward pass with labels the output head returns the hidden states unchanged; the model's `loss_function`
gets them instead of logits and computes the loss with the head's weight. All of it happens within `model.forward`, so
the hooks of DDP and FSDP2, autocast and torch.compile work as usual. Outside of that pass the model is unchanged: it
generates, saves and loads as without.

Anything a model does to its logits between head and loss is then applied to the hidden states. That is equivalent for
a scale (Granite, Cohere), and wrong for a cap (Gemma 2): `probe_head_loss` checks it once.

Shapes: B rows, T tokens of a row, N tokens, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from krill.data.packing import IGNORE_INDEX
from krill.errors import UsageError
from krill.training.compute.backends import select_loss
from krill.training.compute.compilation import compile_callable
from krill.training.compute.cross_entropy import (
    chunked_cross_entropy,
    compute_errors,
    compute_errors_in_place,
    per_token_cross_entropy,
)

SummedLossFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(hidden states (N, H), weight (V, H), labels (N,), bias (V,) or None) → summed loss of labeled tokens, nats."""

PROBE_TOKENS, PROBE_LOGIT, PROBE_TOLERANCE = 8, 100.0, 1e-3
"""The probe's row length, its largest logit (a cap leaves small ones unchanged) and its relative tolerance."""


def build_loss(
    model: PreTrainedModel, requested: str, device: str, is_compiled: bool = False, z_loss: float = 0.0
) -> Loss:
    """Builds the loss for hardware.loss; auto falls back to full logits for a model that needs them.

    Args:
        is_compiled: The chunked loss compiles what it computes between its matrix products.
        z_loss: Weight of the z-loss, which is in the gradient and not in the value.

    Raises UsageError if chunked or liger is requested by name and would not equal the model's own loss, and for a
    z-loss of a model that computes its own loss.
    """
    kind, name = select_loss(requested, device), "full"
    if kind != "full":
        obstacle = probe_head_loss(model)
        if obstacle is None:
            return HeadLoss(model, kind, is_compiled, z_loss)
        if requested != "auto":
            raise UsageError(f"hardware.loss={requested}: {obstacle}; use hardware.loss=full or auto")
        name = f"full: {obstacle}"
    if not z_loss:
        return Loss(name)
    loss = FullZLoss(model, name, z_loss)
    if not loss.is_used_by_model():
        raise UsageError(
            "optimizer.z_loss: the model computes its own loss, without it; set optimizer.z_loss=0"
        )
    return loss


class Loss:
    """The model's own loss from full logits. `name` appears in the run's header."""

    def __init__(self, name: str = "full"):
        self.name = name

    def training_context(self) -> AbstractContextManager[None]:
        """Returns the context for a forward pass with labels."""
        return nullcontext()

    def token_losses(self, model: torch.nn.Module, inputs: dict[str, Any], labels_BT: Tensor) -> Tensor:
        """Returns the loss of each next token in nats, (B, T) fp32; 0 where the next token is not labeled."""
        logits = model(**inputs, use_cache=False).logits
        targets = shift_labels(labels_BT).flatten()
        chunks = zip(logits.flatten(0, 1).split(2048), targets.split(2048), strict=True)
        losses = [
            F.cross_entropy(logits_CV.float(), targets_C, reduction="none") for logits_CV, targets_C in chunks
        ]
        return torch.cat(losses).view(labels_BT.shape)


class FullZLoss(Loss):
    """The loss of `model` from full logits; its gradient includes that of the z-loss, its value does not."""

    def __init__(self, model: PreTrainedModel, name: str, z_loss: float):
        super().__init__(_name_loss(name, z_loss))
        self.model, self.z_loss = model, z_loss
        self._model_loss = model.loss_function
        self._loss_function = torch.compiler.disable(self._compute)  # built once, as below

    def training_context(self) -> AbstractContextManager[None]:
        return _override_attribute(self.model, "_loss_function", self._loss_function)

    def is_used_by_model(self) -> bool:
        """Returns whether the model computes its loss by the function that `training_context` replaces."""
        calls: list[Tensor] = []

        def record(logits: Tensor, *_: Any, **__: Any) -> Tensor:
            calls.append(logits)
            return logits.sum()

        with _probe_row(self.model) as ids, _override_attribute(self.model, "_loss_function", record):
            self.model(input_ids=ids, labels=ids, use_cache=False)
        return bool(calls)

    def _compute(self, logits: Tensor, labels: Tensor, *arguments: Any, **options: Any) -> Tensor:
        loss: Tensor = self._model_loss(logits, labels, *arguments, **options)
        targets, num_items = _get_targets(labels, options), options.get("num_items_in_batch")
        log_sums_BT = logits.float().logsumexp(-1)
        squares_N = log_sums_BT.square().flatten() * (targets != IGNORE_INDEX)
        z_loss = self.z_loss * _divide_by_items(squares_N.sum(), targets, num_items)
        return loss + z_loss - z_loss.detach()


class HeadLoss(Loss):
    """The loss of `model`, computed from hidden states and the head's weight."""

    def __init__(
        self, model: PreTrainedModel, kind: str = "chunked", is_compiled: bool = False, z_loss: float = 0.0
    ):
        super().__init__(_name_loss(kind, z_loss))
        self.model, self.head = model, model.get_output_embeddings()
        self.summed_cross_entropy: SummedLossFunction = (
            partial(liger_cross_entropy, z_loss=z_loss)
            if kind == "liger"
            else partial(
                chunked_cross_entropy,
                compute_errors=partial(
                    compile_callable(compute_errors) if is_compiled else compute_errors_in_place,
                    z_loss=z_loss,
                ),
            )
        )
        # built once: torch.compile would recompile for another function object
        self._loss_function = torch.compiler.disable(self._mean_loss)
        self._capture_function = torch.compiler.disable(self._capture_token_losses)
        self._captured_losses: Tensor | None = None

    def training_context(self) -> AbstractContextManager[None]:
        return self._bypass_head(self._loss_function)

    def token_losses(self, model: torch.nn.Module, inputs: dict[str, Any], labels_BT: Tensor) -> Tensor:
        with self._bypass_head(self._capture_function):
            model(**inputs, labels=labels_BT, use_cache=False)
        losses, self._captured_losses = self._captured_losses, None
        assert losses is not None
        return losses.view(labels_BT.shape)

    @contextmanager
    def _bypass_head(self, loss_function: Callable[..., Tensor]) -> Iterator[None]:
        with (
            _override_attribute(self.head, "forward", _pass_through),
            _override_attribute(self.model, "_loss_function", loss_function),
        ):
            yield

    def _mean_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> Tensor:
        """Computes what transformers' ForCausalLMLoss does; `logits` are hidden states."""
        targets = _get_targets(labels, options)
        summed_loss = self.summed_cross_entropy(logits.flatten(0, 1), self.head.weight, targets, self.bias)
        return _divide_by_items(summed_loss, targets, num_items_in_batch)

    def _capture_token_losses(self, logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
        self._captured_losses = per_token_cross_entropy(
            logits.flatten(0, 1), self.head.weight, shift_labels(labels).flatten(), self.bias
        )
        return self._captured_losses.sum()

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.head, "bias", None)
        return bias


def shift_labels(labels_BT: Tensor) -> Tensor:
    """Returns the label of the next token at each position, (B, T); IGNORE_INDEX at the end of a row."""
    return F.pad(labels_BT, (0, 1), value=IGNORE_INDEX)[:, 1:]


def _name_loss(name: str, z_loss: float) -> str:
    return f"{name}, z-loss {z_loss:g}" if z_loss else name


def _get_targets(labels_BT: Tensor, options: dict[str, Any]) -> Tensor:
    """Returns the label of the next token at each position, (N,), from the arguments of a model's loss function."""
    shifted = options.get("shift_labels")
    return (shift_labels(labels_BT) if shifted is None else shifted).flatten()


def _divide_by_items(summed: Tensor, targets_N: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Divides by the number of labeled tokens of the step, or of this pass if it is None."""
    if num_items is None:
        return summed / (targets_N != IGNORE_INDEX).sum()
    return summed / (num_items.to(summed.device) if torch.is_tensor(num_items) else num_items)


def _pass_through(hidden: Tensor) -> Tensor:
    return hidden


@contextmanager
def _override_attribute(owner: torch.nn.Module, name: str, value: object) -> Iterator[None]:
    """Sets an attribute of this one module and restores it afterwards."""
    attributes = vars(owner)
    previous = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(previous)


@contextmanager
def _probe_row(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yields one short row on the model's device, (1, T) int64, with the model prepared for it; no gradient."""
    mode, attention = model.training, model.config._attn_implementation
    weight = model.get_input_embeddings().weight
    try:
        model.eval()
        model.set_attn_implementation("eager")  # the others may need another device
        with torch.no_grad():
            yield torch.arange(PROBE_TOKENS, device=weight.device).remainder(len(weight))[None]
    finally:
        model.train(mode)
        model.set_attn_implementation(attention)


def probe_head_loss(model: PreTrainedModel) -> str | None:
    """Returns why the loss of `model` cannot be computed from hidden states, or None if it can.

    Computes the loss of one short row both ways, on the model's device, with hidden states so large that a cap of the
    logits would show. Uses no random numbers.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, torch.nn.Linear):
        return "the model has no linear output head"
    loss, original_forward = HeadLoss(model), head.forward
    try:
        with _probe_row(model) as ids:
            scale = PROBE_LOGIT / float(model(input_ids=ids, use_cache=False).logits.abs().max())
            with _override_attribute(head, "forward", lambda hidden: original_forward(hidden * scale)):
                expected = model(input_ids=ids, labels=ids, use_cache=False).loss.double()
            with loss.training_context(), _override_attribute(head, "forward", lambda hidden: hidden * scale):
                actual = model(input_ids=ids, labels=ids, use_cache=False).loss.double()
    except Exception as error:  # a custom model may do anything with its logits
        return f"the model does not accept hidden states in place of logits ({type(error).__name__}: {error})"
    if torch.isclose(actual, expected, rtol=PROBE_TOLERANCE, atol=0.0):
        return None
    return "the model changes its logits between head and loss, or computes its own loss"


def liger_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, bias_V: Tensor | None = None, z_loss: float = 0.0
) -> Tensor:
    """Computes Liger's fused linear cross-entropy, summed over the labeled tokens, in nats. CUDA.

    The gradient includes that of the z-loss, the value does not.
    """
    result = _load_liger_loss(z_loss)(weight_VH, hidden_NH, labels_N, bias_V)
    loss: Tensor = result.loss - result.z_loss.detach() if z_loss else result
    return loss


@lru_cache
def _load_liger_loss(z_loss: float) -> Any:
    package = import_module("liger_kernel.transformers")
    options = {"lse_square_scale": z_loss, "return_z_loss": True} if z_loss else {}
    return package.LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum", **options)
