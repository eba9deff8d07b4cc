"""The training and validation loss of a model without its logits: output head and cross-entropy in one.

For the time of a forward pass with labels the output head hands the hidden states through, and the model's own
`loss_function` gets them in place of logits and computes the loss with the head's weight. All of it is within
`model.forward`, so the hooks of DDP and FSDP2, autocast and torch.compile work as ever. Outside of that the model is
a plain one: it generates, saves and loads as without.

What a model does to its logits between head and loss happens to hidden states then. That is the same for a scale
(Granite, Cohere), and wrong for a cap (Gemma 2): `probe_head_loss` finds out, once.

Shapes: B rows, T tokens of a row, H width of a hidden state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from krill.data.packing import IGNORE_INDEX
from krill.errors import UsageError
from krill.training.compute.cross_entropy import chunked_cross_entropy, per_token_cross_entropy
from krill.training.compute.liger import select_loss

SummedLossFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(hidden states (N, H), weight (V, H), labels (N,), bias (V,) or None) → summed nats of the labelled tokens."""

PROBE_TOKENS, PROBE_LOGIT, PROBE_TOLERANCE = 8, 100.0, 1e-3
"""The probe's row, its largest logit (small ones pass a cap unchanged), and by how much losses may differ."""


def build_loss(model: PreTrainedModel, asked: str, device: str) -> Loss:
    """The loss for hardware.loss. auto falls back to full logits for a model that needs them.

    Raises UsageError where chunked or liger was asked for by name and would not give the model's own loss.
    """
    kind = select_loss(asked, device)
    if kind == "full":
        return Loss()
    obstacle = probe_head_loss(model)
    if obstacle is None:
        return HeadLoss(model, kind)
    if asked != "auto":
        raise UsageError(f"hardware.loss={asked}: {obstacle}; write hardware.loss=full or auto")
    return Loss(f"full: {obstacle}")


class Loss:
    """The model's own loss from full logits. `name`: how the run's header calls it."""

    def __init__(self, name: str = "full"):
        self.name = name

    def training_context(self) -> AbstractContextManager[None]:
        """Around a forward pass with labels."""
        return nullcontext()

    def token_losses(self, model: torch.nn.Module, inputs: dict[str, Any], labels_BT: Tensor) -> Tensor:
        """Nats of each target, (B, T) fp32: at a token those of its successor; 0 where that is not labelled."""
        logits = model(**inputs, use_cache=False).logits
        targets = shift_labels(labels_BT).flatten()
        parts = zip(logits.flatten(0, 1).split(2048), targets.split(2048), strict=True)
        return torch.cat([F.cross_entropy(some.float(), at, reduction="none") for some, at in parts]).view(
            labels_BT.shape
        )


class HeadLoss(Loss):
    """The loss of `model` from hidden states and the head's weight."""

    def __init__(self, model: PreTrainedModel, kind: str = "chunked"):
        super().__init__(kind)
        self.model, self.head = model, model.get_output_embeddings()
        self.summed_cross_entropy: SummedLossFunction = (
            liger_cross_entropy if kind == "liger" else chunked_cross_entropy
        )
        # one object each, for torch.compile would compile again for another
        self._loss_function = torch.compiler.disable(self._mean_loss)
        self._capture_function = torch.compiler.disable(self._capture_token_losses)
        self._captured_losses: Tensor | None = None

    def training_context(self) -> AbstractContextManager[None]:
        return self._bypass_head(self._loss_function)

    def token_losses(self, model: torch.nn.Module, inputs: dict[str, Any], labels_BT: Tensor) -> Tensor:
        with self._bypass_head(self._capture_function):
            model(**inputs, labels=labels_BT, use_cache=False)
        found, self._captured_losses = self._captured_losses, None
        assert found is not None
        return found.view(labels_BT.shape)

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
        **_: Any,
    ) -> Tensor:
        """transformers' ForCausalLMLoss; `logits` are hidden states."""
        targets = shift_labels(labels).flatten()
        nats = self.summed_cross_entropy(logits.flatten(0, 1), self.head.weight, targets, self.bias)
        if num_items_in_batch is None:
            return nats / (targets != IGNORE_INDEX).sum()
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.to(nats.device)
        return nats / num_items_in_batch

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
    """The label of each token's successor; none at the end of a row."""
    return F.pad(labels_BT, (0, 1), value=IGNORE_INDEX)[:, 1:]


def _pass_through(hidden: Tensor) -> Tensor:
    return hidden


@contextmanager
def _override_attribute(owner: torch.nn.Module, name: str, value: object) -> Iterator[None]:
    """Set an attribute of this one module, and put back what was there."""
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = value
    try:
        yield
    finally:
        del own[name]
        own.update(before)


@torch.no_grad()
def probe_head_loss(model: PreTrainedModel) -> str | None:
    """Why the loss of `model` cannot be had from hidden states; None: it can.

    Scores one short row both ways, on the model's device, with hidden states so large that a cap of the logits would
    show. Random numbers are not used.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, torch.nn.Linear):
        return "the model has no linear output head"
    loss, mode, attention = HeadLoss(model), model.training, model.config._attn_implementation
    ids = torch.arange(PROBE_TOKENS, device=head.weight.device).remainder(len(head.weight))[None]
    plain, scale = head.forward, 1.0

    def score() -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss.double()

    try:
        model.eval()
        model.set_attn_implementation("eager")  # the others may want a device of their own
        scale = PROBE_LOGIT / float(model(input_ids=ids, use_cache=False).logits.abs().max())
        with _override_attribute(head, "forward", lambda hidden: plain(hidden * scale)):
            expected = score()
        with loss.training_context(), _override_attribute(head, "forward", lambda hidden: hidden * scale):
            found = score()
    except Exception as error:  # a model of one's own may do anything with what it takes for logits
        return f"the model does not take hidden states in place of logits ({type(error).__name__}: {error})"
    finally:
        model.train(mode)
        model.set_attn_implementation(attention)
    if torch.isclose(found, expected, rtol=PROBE_TOLERANCE, atol=0.0):
        return None
    return "the model changes its logits between head and loss, or computes a loss of its own"


def liger_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, bias_V: Tensor | None = None
) -> Tensor:
    """Liger's fused linear cross-entropy, summed over the labelled tokens. CUDA."""
    nats: Tensor = _load_liger_loss()(weight_VH, hidden_NH, labels_N, bias_V)
    return nats


@lru_cache
def _load_liger_loss() -> Any:
    package = import_module("liger_kernel.transformers")
    return package.LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum")
