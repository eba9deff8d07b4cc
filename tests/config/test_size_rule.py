"""The rule for the learning rate, the batch, the weight decay and the warm-up: its numbers, and which value wins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from compositions import compose, load_config, load_option
from omegaconf import OmegaConf

from krill.cli.compose import compose_config
from krill.config.paths import CONF_DIR, list_config_options
from krill.config.rule_keys import explain_rule, format_rule_lines
from krill.config.run_size import RunSize, count_hidden_parameters, read_run_size
from krill.config.schema import TrainConfig, TransformerConfig
from krill.config.signature import compute_signature
from krill.config.size_rule import (
    compute_batch,
    compute_batch_of_tokens,
    compute_lr,
    compute_tokens,
    compute_warmup,
    compute_weight_decay,
)
from krill.config.validation import validate_config
from krill.errors import UsageError
from krill.plan.architecture import GatedArchitecture
from krill.training.batch_shape import compute_batch_shape, format_micro_batch_overrides, shrink_micro_batch

NANO = 1_572_864
"""Hidden parameters of the default model: 4 layers of 2·192² + 2·192·64 + 3·192·512."""

# --- the formulas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parameters", "tokens"), [(1.6e6, 1e6), (3e7, 5e8), (1e9, 2e10), (7e10, 2e12)])
def test_the_learning_rate_is_that_of_the_compute(parameters: float, tokens: float) -> None:
    lr = 0.27 * (6 * parameters * tokens) ** -0.125
    assert compute_lr(parameters, tokens) == pytest.approx(lr, rel=0.05)
    assert compute_lr(parameters, tokens, factor=0.5) == pytest.approx(lr / 2, rel=0.05)


@pytest.mark.parametrize(
    ("parameters", "tokens", "published"),
    [(0.4e9, 8.9e9, 9.5e-4), (1.5e9, 38.9e9, 8.3e-4), (6.9e9, 2e12, 4.2e-4)],
)
def test_the_learning_rate_is_within_12_percent_of_published_ones(
    parameters: float, tokens: float, published: float
) -> None:
    """The smallest and the largest model of the scaling law of Liu et al. 2025, "Muon is Scalable for LLM Training",
    and Bi et al. 2024, table 2."""
    assert compute_lr(parameters, tokens) == pytest.approx(published, rel=0.121)


def test_rates_stay_in_their_range() -> None:
    assert (compute_lr(1, 1), compute_lr(1e15, 1e18)) == (2e-2, 1e-4)
    assert (compute_weight_decay(NANO, 500), compute_weight_decay(NANO, 10**9)) == (0.1, 0.01)
    assert compute_lr(NANO, 1.024e6) == 6.4e-3, "two significant digits"


def test_the_batch_is_a_fixed_point_of_the_tokens() -> None:
    """Li et al. 2025: 0.58 · D^0.571, of a run of S steps with D = S · batch."""
    assert compute_batch_of_tokens(1e9) == pytest.approx(0.58 * 1e9**0.571)
    for steps in (10, 500, 20_000):
        batch = compute_batch(1e12, steps)
        assert batch == pytest.approx(0.58 * (steps * batch) ** 0.571)
        assert compute_tokens(1e12, steps) == steps * max(1024, batch)
    assert compute_batch(1e18, 2**31) == compute_batch_of_tokens(1e18) == 2**22


def test_the_batch_does_not_grow_beyond_that_of_compute_optimal_tokens() -> None:
    assert compute_batch(NANO, 20_000) == compute_batch_of_tokens(20 * NANO)


@pytest.mark.parametrize(
    ("parameters", "steps"), [(NANO, 1_000_000), (1e8, 500), (1e9, 17_000), (1e9, 200_000)]
)
def test_weights_forget_over_a_part_of_the_run(parameters: float, steps: int) -> None:
    """Bergsma et al. 2025: 1 / (lr · weight_decay · steps) = 1.084 · (D / N)^-0.527."""
    tokens, decay = compute_tokens(parameters, steps), compute_weight_decay(parameters, steps)
    assert 0.01 < decay < 0.1
    timescale = 1 / (compute_lr(parameters, tokens) * decay * steps)
    assert timescale == pytest.approx(1.084 * (tokens / parameters) ** -0.527, rel=0.03)


def test_the_weight_decay_is_near_that_of_moonlight() -> None:
    """Liu et al. 2025: 0.1, for 0.4 to 1.5 billion parameters with about 20 tokens each."""
    for parameters in (0.4e9, 1.5e9):
        assert compute_weight_decay(parameters, None) == pytest.approx(0.1, rel=0.1)


def test_the_warm_up_has_at_most_2000_steps() -> None:
    assert [compute_warmup(steps) for steps in (1, 500, 40_000, 400_000)] == [0.01, 0.01, 0.01, 0.005]
    assert compute_warmup(None) == 0.01


# --- the size of a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", list_config_options("model", [CONF_DIR]))
def test_hidden_parameters_are_those_of_the_plan(option: str) -> None:
    model = load_option(f"model={option}").model
    if not isinstance(model, TransformerConfig):
        assert count_hidden_parameters(model.model_dump()) is None
        return
    architecture = GatedArchitecture(model, vocab_size=300)
    counted = sum(kind.count * kind.entries for kind in architecture.list_matrices())
    assert count_hidden_parameters(model.model_dump()) == counted


@pytest.mark.parametrize("keys", [("n_embd", "n_layer"), ("hidden_size", "num_hidden_layers")])
def test_another_architecture_counts_by_width_and_depth(keys: tuple[str, str]) -> None:
    width, depth = keys
    for section in (
        {"config": {width: 64, depth: 3}},
        {"options": {width: 64, depth: 3}},
        {width: 64, depth: 3},
    ):
        assert count_hidden_parameters({"family": "auto", **section}) == 12 * 3 * 64**2
    assert count_hidden_parameters({"family": "auto", "config": {width: 64}}) is None


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], RunSize(NANO, 500)), (["steps=10000"], RunSize(NANO, 10_000)), (["rule=off"], None),
        (["epochs=3", "steps=null"], RunSize(NANO, None)), (["model=auto", "model.model_type=gpt2"], None),
    ],
)  # fmt: skip
def test_the_size_is_read_before_and_after_validation(overrides: list[str], size: RunSize | None) -> None:
    for values in (compose("train", *overrides), load_config(*overrides).model_dump()):
        assert read_run_size(values) == size


BATCHES = (
    "batch.micro_batch_size=1", "batch.tokens=8192", "batch.tokens=null",
    "batch.gradient_accumulation_steps=3",
)  # fmt: skip


@pytest.mark.parametrize("override", BATCHES)
def test_the_batch_changes_no_rate(override: str) -> None:
    """So that a smaller micro batch after an out-of-memory error resumes the same run."""
    default, other = load_config("steps=20000"), load_config("steps=20000", override)
    assert (other.lr, other.optimizer, other.scheduler) == (default.lr, default.optimizer, default.scheduler)
    assert compute_signature("train", other) == compute_signature("train", default)


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_smaller_micro_batches_of_the_same_rows_are_the_same_run(world_size: int) -> None:
    base = ["model=llama_125m", "steps=17000", f"hardware.processes={world_size}"]
    config = load_config(*base)
    shape = compute_batch_shape(config, world_size)
    size = shrink_micro_batch(shape.micro_batch_size, shape)
    smaller = load_config(*base, *format_micro_batch_overrides(config.batch, shape, size).split())
    assert compute_batch_shape(smaller, world_size).rows_per_step == shape.rows_per_step
    assert compute_signature("train", smaller) == compute_signature("train", config)


def test_a_model_of_unknown_size_has_one_micro_batch_a_step() -> None:
    config = load_config("model=auto", "model.model_type=gpt2", "steps=100000")
    assert compute_batch_shape(config).accumulation_steps == 1


# --- which value wins --------------------------------------------------------------------------------------


def test_a_run_has_the_rates_of_its_size() -> None:
    nano, longer, larger = load_config(), load_config("steps=1000000"), load_config("model=llama_125m")
    assert (nano.lr, nano.optimizer.weight_decay, nano.scheduler.warmup) == (7e-3, 0.1, 0.01)
    assert longer.lr < nano.lr
    assert longer.optimizer.weight_decay < nano.optimizer.weight_decay
    assert longer.scheduler.warmup == 0.002
    assert larger.lr < nano.lr


def test_the_tokenizer_does_not_count() -> None:
    assert load_config("tokenizer=bpe_32k").lr == load_config().lr


def test_what_is_set_wins(tmp_path: Path) -> None:
    chosen = ["lr=1e-3", "optimizer.weight_decay=0.3", "scheduler.warmup=0.01", "batch.tokens=512"]
    config = load_config(*chosen)
    assert (config.lr, config.optimizer.lr, config.optimizer.weight_decay) == (1e-3, 1e-3, 0.3)
    assert (config.scheduler.warmup, config.batch.tokens) == (0.01, 512)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nlr: 0.002\n")
    composed = compose_config("train", ["experiment=mine", "steps=3000"], [tmp_path])
    assert validate_config(TrainConfig, composed).lr == 2e-3
    assert load_config("optimizer=muon_pto").optimizer.weight_decay == 0, "the preset has none"


@pytest.mark.parametrize("off", ["off", "false", "'off'"])
def test_without_the_rule_the_values_are_fixed(tmp_path: Path, off: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\nrule: {off}\n")
    composed = compose_config("train", ["experiment=mine", "steps=100000"], [tmp_path])
    for config in (validate_config(TrainConfig, composed), load_config(f"rule={off}", "steps=100000")):
        assert config.rule == "off"
        assert (config.lr, config.optimizer.weight_decay, config.scheduler.warmup) == (3e-3, 0.1, 0.05)


def test_lr_scale_multiplies_what_the_rule_gives() -> None:
    rule = load_config().lr
    assert [load_config(f"lr_scale={scale}").lr for scale in (0.5, 1, 2)] == [rule / 2, rule, rule * 2]
    assert load_config("lr_scale=0.3", "rule=off").lr == 9e-4
    scaled = load_config("lr_scale=0.5").optimizer
    assert scaled.lr == rule / 2


@pytest.mark.parametrize("overrides", [["lr=1e-3"], ["experiment=tiny_ko"]])
def test_lr_scale_needs_the_lr_of_the_rule(overrides: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        load_config(*overrides, "lr_scale=0.5")
    assert str(raised.value) == (
        "lr_scale=0.5 multiplies the learning rate that rule gives, but lr=0.001 is set; set lr=0.0005 and "
        "lr_scale=1, or leave lr out"
    )
    assert load_config(*overrides, "lr_scale=1").lr == 1e-3


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("rule=on", "rule="), ("lr_scale=0", "lr_scale="), ("lr_scale=big", "lr_scale="), ("steps=abc", "steps"),
        ("steps=-1", "steps="), ("model.hidden_size=wide", "model.hidden_size="), ("batch.tokens=many", "batch."),
        (f"steps={10**40}", "steps="), ("model.num_attention_heads=0", "model.num_attention_heads="),
        ("optimizer.lr=1e-4", "optimizer.lr follows lr; set lr=0.0001"), ("batch.micro_batch_size=0", "batch.micro"),
    ],
)  # fmt: skip
def test_an_error_names_the_key_that_is_wrong(override: str, key: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_config(override)
    assert key in str(raised.value)
    assert "interpolation" not in str(raised.value)
    assert "by_size" not in str(raised.value)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "1e39", "1" + 400 * "0"])
@pytest.mark.parametrize("lr", [[], ["lr=1e-3"]])
def test_an_lr_scale_that_is_not_valid_is_the_only_error(scale: str, lr: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        load_config(*lr, f"lr_scale={scale}")
    (line,) = str(raised.value).splitlines()
    assert line.startswith("lr_scale=")
    assert "input should be" in line


def test_the_lr_of_a_custom_optimizer_may_follow_the_rule(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    text = (
        "# @package _global_\ndefaults: [_adamw@optimizer, _self_]\n"
        "lr: {}\noptimizer: {{name: custom, build: 'lion.py:build', options: {{}}}}\n"
    )
    for lr, expected in (("${krill.lr_by_size:1.0e-04,0.1}", 7e-4), ("5.0e-04", 5e-4)):
        (tmp_path / "optimizer" / "lion.yaml").write_text(text.format(lr))
        config = validate_config(TrainConfig, compose_config("train", ["optimizer=lion"], [tmp_path]))
        assert (config.lr, config.optimizer.lr) == (expected, expected)


# --- what the header says ----------------------------------------------------------------------------------


def explain(*overrides: str) -> list[str]:
    unresolved: Any = OmegaConf.to_container(compose("train", *overrides), resolve=False)
    return format_rule_lines(explain_rule(unresolved, load_config(*overrides)))


NANO_SIZE = "rule: 1.6 M hidden parameters"
DECAY = "; optimizer.weight_decay=… sets it)"
WARMUP = "of the steps (rule: at most 2,000 steps; scheduler.warmup=… sets it)"


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        ([], [
            f"lr          7.0e-03 ({NANO_SIZE}, 500 steps; lr=… sets it)",
            f"decay       0.1 ({NANO_SIZE}, 500 steps{DECAY}",
            f"warmup      0.01 {WARMUP}",
        ]),
        (["lr_scale=0.5", "optimizer.weight_decay=0.1", "scheduler.warmup=0.01"], [
            f"lr          3.5e-03 ({NANO_SIZE}, 500 steps, × lr_scale=0.5; lr=… sets it)",
        ]),
        (["epochs=1", "steps=null"], [
            f"lr          4.2e-03 ({NANO_SIZE}, assuming 20 tokens for each; lr=… sets it)",
            f"decay       0.1 ({NANO_SIZE}, assuming 20 tokens for each{DECAY}",
            f"warmup      0.01 {WARMUP}",
        ]),
        (["model=auto", "model.model_type=gpt2", "scheduler.warmup=0"], [
            "lr          3.0e-03 (fixed: the rule does not know the size of model=gpt2; lr=… sets it)",
            f"decay       0.1 (fixed: the rule does not know the size of model=gpt2{DECAY}",
        ]),
        (["model=pretrained", "model.from=run", "optimizer.weight_decay=0.1", "scheduler.warmup=0"], [
            "lr          3.0e-03 (fixed, for weights from scratch: use a lower one; lr=… sets it)",
        ]),
        (["steps=400000", "lr=1e-3", "optimizer=muon_pto"], [f"warmup      0.005 {WARMUP}"]),
        (["rule=off"], []),
        (["lr=1e-3", "optimizer.weight_decay=0.1", "scheduler.warmup=0.01"], []),
    ],
)  # fmt: skip
def test_a_line_explains_what_is_not_set(overrides: list[str], lines: list[str]) -> None:
    assert explain(*overrides) == lines


# --- docs --------------------------------------------------------------------------------------------------


def test_the_table_of_the_docs_is_up_to_date() -> None:
    house = Path(__file__).parents[2]
    sys.path.insert(0, str(house / "docs"))
    try:
        from make_rates import PAGE, insert_table
    finally:
        sys.path.pop(0)
    page = PAGE.read_text(encoding="utf-8")
    assert insert_table(page) == page, "python docs/make_rates.py"


def test_an_lr_scale_that_is_not_valid_is_reported_once() -> None:
    with pytest.raises(UsageError) as error:
        load_config("lr_scale=0")
    assert "lr_scale=0: input should be greater than 0" in str(error.value)
    assert "lr=0" not in str(error.value)


@pytest.mark.parametrize("key", ["lr", "optimizer.weight_decay", "scheduler.warmup"])
def test_auto_is_answered_with_how_the_rule_chooses(key: str) -> None:
    with pytest.raises(
        UsageError, match=f"{key}=auto: rule=size chooses {key} where it is not set: leave it out"
    ):
        load_config(f"{key}=auto")
