"""Advice on a plan: what makes it fit, what would make it faster, and whether its length makes sense.

Each piece of advice is something to type, with the source of its rule. `list_advice` plans every change before it is
advised: what is said to fit fits, and what is said to be faster is faster by the plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from krill.config.run_size import count_hidden_parameters
from krill.config.size_rule import (
    COMPUTE_OPTIMAL_RATIO,
    WARMUP_FRACTION,
    compute_batch,
    compute_batch_of_tokens,
)
from krill.plan.changes import change_plan
from krill.plan.run_plan import MAX_USEFUL_EPOCHS, RunPlan
from krill.training.batch_shape import (
    compute_auto_batch,
    format_micro_batch_overrides,
    round_accumulation,
    shrink_micro_batch,
)

MAX_FITS = 5
"""The number of ways to fit that are listed."""

SURE_SHARE = 0.92
"""The share of the memory up to which a plan surely fits: of 24 plans one was 7 % below the measured peak
(benchmarks/results/plan_memory.json)."""

MATRIX_MULTIPLE = 64
"""Tensor cores work on tiles: NVIDIA, "Matrix multiplication background user's guide"."""

HEAD_MULTIPLE = 8
"""Flash Attention pads narrower heads to a multiple of this (Dao 2023)."""

MAX_OVERHEAD = 0.05
"""The share of the time of the steps that validations, or saves, may take before less of them is advised."""

LARGE_BATCH = 4
"""A batch of this many times the near-optimal size is called too large."""

BATCH_FIT_FLOPS = 1e17
"""The smallest compute budget of the runs to which the near-optimal batch size was fitted."""

MIN_RATIO = COMPUTE_OPTIMAL_RATIO / 4
"""Tokens per parameter below which a smaller model would be better for the same FLOPs."""

MIN_VOCABULARY = 4096
"""The smallest vocabulary that is advised."""

MAX_PADDING = 0.1
"""The share of the positions that may be padding before rows without any are advised."""

MAX_WARMUP = 0.25
"""The share of the steps up to which a warm-up is not remarked on; published runs take a few percent."""

DEVICE_COUNTS = (2, 4, 8, 16, 32, 64)
"""The numbers of devices that are tried."""


@dataclass(frozen=True)
class Advice:
    """A change, and what it does."""

    kind: str
    """fit, speed or data."""
    overrides: tuple[str, ...]
    reason: str
    """What it does, with figures of the plan of the changed run, and the source of the rule."""
    time_ratio: float | None = None
    """Planned time of the changed run divided by that of this one; None: not known."""

    @property
    def text(self) -> str:
        """What to type, and why."""
        return f"{' '.join(self.overrides)}: {self.reason}"


def list_advice(plan: RunPlan) -> list[Advice]:
    """Returns the advice on `plan`: what makes it fit, least lost speed first, then the rules in their order."""
    fits = [] if plan.fits else find_fitting_changes(plan)
    return [*fits, *(advice for rule in RULES for advice in rule(plan))]


def format_share(plan: RunPlan) -> str:
    """Returns the share of the memory that the plan takes, and whether that is too close to be sure."""
    narrowly = ", narrowly" if plan.fits and not _fits_surely(plan) else ""
    return f"{100 * _get_share(plan):.0f} % of the memory{narrowly}"


def format_fit(plan: RunPlan) -> str:
    """Returns whether the plan fits, as a word of a table: yes, narrowly, no."""
    return "no" if not plan.fits else "yes" if _fits_surely(plan) else "narrowly"


def _fits_surely(plan: RunPlan) -> bool:
    return _get_share(plan) <= SURE_SHARE


def _get_share(plan: RunPlan) -> float:
    return plan.memory.total / plan.setting.memory_per_rank


# --- what fits ---------------------------------------------------------------------------------------------


def find_fitting_changes(plan: RunPlan) -> list[Advice]:
    """Returns the changes after which the run fits, those that lose least speed first.

    Changes of the computation come before those of the result: shorter rows, and an optimizer with less state.
    """
    found: list[tuple[int, float, Advice]] = []
    reasons: set[str] = set()
    for rank, overrides, reason in _list_candidates(plan):
        if reason in reasons or any(set(known.overrides) <= set(overrides) for _, _, known in found):
            continue  # less is enough
        changed = change_plan(plan, overrides)
        if changed is None or not changed.fits:
            continue
        ratio = _get_time_ratio(plan, changed)
        reasons.add(reason)
        text = f"{reason}; {format_share(changed)}"
        if ratio is not None and abs(ratio - 1) > 0.005:
            text += f", {ratio:.2f} × the time"
            if changed.num_devices != plan.num_devices:
                text += f" on {changed.num_devices} devices"
            if changed.setting.is_compiled(changed.steps) and not plan.setting.is_compiled(plan.steps):
                text += ", as a run of this many passes is compiled"
        found.append((rank, ratio or 1.0, Advice("fit", overrides, text, ratio)))
    found.sort(key=lambda item: (item[0], item[1]))
    return [advice for _, _, advice in found[:MAX_FITS]]


def _list_candidates(plan: RunPlan) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """Yields changes with a rank: 0 same result on the same devices, 1 more devices, 2 another result."""
    hardware, setting = plan.config.hardware, plan.setting
    small = list(_list_smaller_batches(plan))
    same_batch = "the same rows per step in smaller passes"
    if setting.loss == "full":
        yield 0, ("hardware.loss=chunked",), "never stores the logits of all tokens (Hsu et al. 2024)"
    if plan.config.save_in_background:
        yield 0, ("save_in_background=false",), "no copy of weights and state"
    if "bf16" in setting.device.peak_flops and setting.activation_precision == "fp32":
        yield 0, ("hardware.precision=bf16",), "activations in half of the bytes (Micikevicius et al. 2018)"
    for overrides in small:
        yield 0, overrides, same_batch
    checkpointing = ("hardware.gradient_checkpointing=true",)
    recompute = "activations are computed again in the backward pass (Chen et al. 2016)"
    if not setting.gradient_checkpointing:
        yield 0, checkpointing, recompute
        for overrides in small:
            yield 0, (*overrides, *checkpointing), f"{same_batch}; {recompute}"
    if setting.device.kind == "cuda":
        least = small[-1] if small else ()
        fsdp2 = ("hardware.sharding=fsdp2",)
        shards = "weights, gradients and state in shards (Zhao et al. 2023)"
        if setting.world_size > 1 and hardware.sharding == "none":
            for overrides in ((), least, (*least, *checkpointing)):
                yield 0, (*fsdp2, *overrides), shards
        if hardware.slurm is None and setting.context_parallel == 1:
            for count in DEVICE_COUNTS:
                if count > setting.world_size:
                    yield 1, (*fsdp2, f"plan.count={count}", *checkpointing), shards
                    break
            for count in DEVICE_COUNTS:
                smallest = _divide_accumulation(plan, count)
                overrides = (*fsdp2, f"plan.count={count}", *smallest, *checkpointing)
                if count > setting.world_size and (changed := change_plan(plan, overrides)) and changed.fits:
                    yield 1, overrides, shards
                    break
    halved = f"sequence_len={plan.config.sequence_len // 2}"
    for overrides in ((halved,), (halved, *checkpointing)):
        yield 2, overrides, "rows of half the tokens, which changes the result"
    vocabulary = plan.config.tokenizer.vocab_size
    if plan.config.tokenizer.path is None and vocabulary >= 2 * MIN_VOCABULARY:
        size = vocabulary // 2 // MATRIX_MULTIPLE * MATRIX_MULTIPLE
        yield 2, (f"tokenizer.vocab_size={size}",), "half of the vocabulary, which changes the result"
    if plan.config.optimizer.name == "adamw" and "bf16" in setting.device.peak_flops:
        reason = "one moment per matrix instead of two, which changes the result"
        yield 2, ("optimizer=muon_krill",), reason


def _list_smaller_batches(plan: RunPlan) -> Iterator[tuple[str, ...]]:
    """Yields the overrides of smaller micro batches with the same rows per step, the largest first."""
    batch = plan.setting.batch
    size = batch.micro_batch_size
    while size > 1:
        size = shrink_micro_batch(size, batch)
        yield tuple(format_micro_batch_overrides(plan.config.batch, batch, size).split())


def _divide_accumulation(plan: RunPlan, count: int) -> tuple[str, ...]:
    """Returns the overrides of single rows on `count` ranks, with as many rows per step as before where possible."""
    if plan.config.batch.fixed_tokens is not None:
        return ("batch.micro_batch_size=1",)
    passes = max(1, plan.setting.batch.rows_per_step // count)
    return ("batch.micro_batch_size=1", f"batch.gradient_accumulation_steps={passes}")


def _get_time_ratio(plan: RunPlan, changed: RunPlan) -> float | None:
    return None if plan.time is None or changed.time is None else changed.time.total / plan.time.total


# --- what is slow ------------------------------------------------------------------------------------------


def _advise_faster(plan: RunPlan, overrides: tuple[str, ...], reason: str) -> Iterator[Advice]:
    """Yields the advice if the changed run fits and is planned to be faster."""
    changed = change_plan(plan, overrides)
    if changed is None or not changed.fits:
        return
    ratio = _get_time_ratio(plan, changed)
    if ratio is not None and ratio < 0.99:
        yield Advice("speed", overrides, f"{reason}; {ratio:.2f} × the time", ratio)


def _advise_no_checkpointing(plan: RunPlan) -> Iterator[Advice]:
    if plan.setting.gradient_checkpointing:
        reason = "the activations fit; no second forward pass (Chen et al. 2016)"
        yield from _advise_faster(plan, ("hardware.gradient_checkpointing=false",), reason)


def _advise_bf16(plan: RunPlan) -> Iterator[Advice]:
    if plan.setting.device.kind == "cuda" and plan.setting.activation_precision == "fp32":
        reason = "matrix units are for bf16 (the device's data sheet)"
        yield from _advise_faster(plan, ("hardware.precision=bf16",), reason)


def _advise_compile(plan: RunPlan) -> Iterator[Advice]:
    if plan.setting.device.kind == "cuda" and not plan.setting.is_compiled(plan.steps):
        reason = "a step of an eager model mostly moves bytes (benchmarks/rehearse_gpu.py)"
        yield from _advise_faster(plan, ("hardware.compile=true",), reason)


def _advise_fewer_validations(plan: RunPlan) -> Iterator[Advice]:
    return _advise_longer_interval(plan, "validation", "eval_every", "validations")


def _advise_fewer_evaluations(plan: RunPlan) -> Iterator[Advice]:
    every = plan.config.evaluation.every
    if every is None or (plan.steps is not None and every >= plan.steps):  # there is one at the end anyway
        return iter(())
    return _advise_longer_interval(plan, "evaluation", "evaluation.every", "evaluations")


def _advise_fewer_saves(plan: RunPlan) -> Iterator[Advice]:
    return _advise_longer_interval(plan, "saving", "save_every", "saves")


def _advise_longer_interval(plan: RunPlan, part: str, key: str, name: str) -> Iterator[Advice]:
    """Advises a larger value of `key` where the part of the time that it sets is more than MAX_OVERHEAD."""
    time = plan.time
    if time is None or not time.parts["steps"]:
        return
    share = time.parts[part] / time.parts["steps"]
    if share > MAX_OVERHEAD:
        interval: int = attrgetter(key)(plan.config)
        every = round(interval * share / MAX_OVERHEAD)
        reason = f"{name} take {100 * share:.0f} % of the time of the steps"
        yield from _advise_faster(plan, (f"{key}={every}",), reason)


def _advise_vocabulary(plan: RunPlan) -> Iterator[Advice]:
    """The chunked loss pads the head; the full one does not."""
    is_padded = plan.setting.loss != "full" or plan.setting.device.kind == "cpu"
    if is_padded or plan.vocab_size % MATRIX_MULTIPLE == 0 or plan.config.tokenizer.path is not None:
        return
    yield Advice(
        "speed",
        (f"tokenizer.multiple_of={MATRIX_MULTIPLE}",),
        f"a vocabulary of {plan.vocab_size} entries makes slow products; matrix units work on tiles (NVIDIA, "
        '"Matrix multiplication background user\'s guide")',
    )


def _advise_widths(plan: RunPlan) -> Iterator[Advice]:
    """Advises on widths that matrix units cannot divide; they are part of the model."""
    if plan.setting.device.kind == "cpu":
        return
    intermediate = getattr(plan.config.model, "intermediate_size", None)
    if intermediate is not None and intermediate % MATRIX_MULTIPLE:
        size = -(-intermediate // MATRIX_MULTIPLE) * MATRIX_MULTIPLE
        yield Advice(
            "speed",
            (f"model.intermediate_size={size}",),
            f"{intermediate} is not a multiple of {MATRIX_MULTIPLE}; matrix units work on tiles (NVIDIA, "
            '"Matrix multiplication background user\'s guide")',
        )
    width = plan.architecture.attention[0].key_width if plan.architecture.attention else 0
    if width % HEAD_MULTIPLE and hasattr(plan.config.model, "head_dim"):
        size = -(-width // HEAD_MULTIPLE) * HEAD_MULTIPLE
        yield Advice(
            "speed",
            (f"model.head_dim={size}",),
            f"Flash Attention pads heads of {width} to {size} (Dao 2023)",
        )


def _advise_packing(plan: RunPlan) -> Iterator[Advice]:
    """Padding is computed like tokens, and nothing is learned from it."""
    if plan.padding <= MAX_PADDING:
        return
    overrides = ("packing=wrapped",)
    reason = (
        f"{100 * plan.padding:.0f} % of the positions are padding; wrapped rows have none (Krell et al. 2021)"
    )
    if plan.config.steps is None:
        yield from _advise_faster(plan, overrides, reason)
    else:
        yield Advice("data", overrides, f"{reason}, and the same steps train on more tokens")


# --- whether it makes sense --------------------------------------------------------------------------------


def _count_steps(plan: RunPlan, tokens: int) -> int:
    """Returns the largest number of steps with which the run trains on at most `tokens`, at least one.

    With batch.tokens=auto, more steps have more tokens each.
    """
    if compute_auto_batch(plan.config) is None:
        return max(1, tokens // plan.tokens_per_step)
    batch = plan.setting.batch
    unit = batch.micro_batch_size * batch.world_size * plan.config.sequence_len
    parameters = count_hidden_parameters(plan.config.model.model_dump())
    assert parameters is not None

    def count_tokens(steps: int) -> int:
        return steps * unit * round_accumulation(compute_batch(parameters, steps), unit)

    return max(1, bisect_right(range(1, tokens // unit + 1), tokens, key=count_tokens))


def _advise_batch(plan: RunPlan) -> Iterator[Advice]:
    if plan.flops is None or plan.flops < BATCH_FIT_FLOPS or plan.tokens is None:
        return
    best = compute_batch_of_tokens(plan.tokens)
    if plan.tokens_per_step <= LARGE_BATCH * best:
        return
    unit = plan.config.sequence_len * plan.setting.batch.world_size
    tokens = max(1, round(best / unit)) * unit
    steps = -(-plan.tokens // tokens)
    length = (f"steps={steps}",) if plan.config.steps is not None else ()
    overrides = (f"batch.tokens={tokens}", *length)
    if change_plan(plan, overrides) is not None:
        yield Advice(
            "data",
            overrides,
            f"{plan.tokens_per_step:,} tokens per step are {plan.tokens_per_step / best:.0f} × the near-optimal "
            "batch for these tokens (Li et al. 2025, Step Law)",
        )


def _advise_warmup(plan: RunPlan) -> Iterator[Advice]:
    warmup = plan.config.scheduler.warmup
    if warmup > MAX_WARMUP:
        yield Advice(
            "data",
            (f"scheduler.warmup={WARMUP_FRACTION:g}",),
            f"the warm-up takes {100 * warmup:.0f} % of the steps, which do not train at the full learning rate; "
            "published runs take a few percent (Touvron et al. 2023, LLaMA)",
        )


def _advise_length(plan: RunPlan) -> Iterator[Advice]:
    """Advises a longer run if it has few tokens per parameter and there is text for it."""
    ratio = plan.tokens_per_parameter
    if ratio is None or ratio >= MIN_RATIO or plan.config.steps is None:
        return
    tokens = COMPUTE_OPTIMAL_RATIO * plan.architecture.parameters
    steps = _count_steps(plan, tokens) + 1
    if plan.text is not None and tokens > MAX_USEFUL_EPOCHS * plan.text.tokens:
        return  # there is not enough text
    yield Advice(
        "data",
        (f"steps={steps}",),
        f"{ratio:.2g} tokens per parameter; a smaller model would be better for these FLOPs, and about "
        f"{COMPUTE_OPTIMAL_RATIO} are compute-optimal (Hoffmann et al. 2022)",
    )


def _advise_repetition(plan: RunPlan) -> Iterator[Advice]:
    if plan.epochs is None or plan.text is None or plan.epochs <= MAX_USEFUL_EPOCHS:
        return
    if plan.config.epochs is not None:
        overrides = (f"epochs={MAX_USEFUL_EPOCHS}",)
    else:
        overrides = (f"steps={_count_steps(plan, MAX_USEFUL_EPOCHS * plan.text.tokens)}",)
    yield Advice(
        "data",
        overrides,
        f"{plan.epochs:.3g} epochs; tokens that are repeated more than {MAX_USEFUL_EPOCHS} times are worth less and "
        "less: add text, or train for less (Muennighoff et al. 2023)",
        _get_time_ratio(plan, changed) if (changed := change_plan(plan, overrides)) else None,
    )


RULES: tuple[Callable[[RunPlan], Iterator[Advice]], ...] = (
    _advise_bf16, _advise_compile, _advise_no_checkpointing, _advise_fewer_validations, _advise_fewer_evaluations,
    _advise_fewer_saves, _advise_packing, _advise_vocabulary, _advise_widths, _advise_batch, _advise_warmup,
    _advise_length, _advise_repetition,
)  # fmt: skip
"""The rules after what fits: speed, then sense."""
