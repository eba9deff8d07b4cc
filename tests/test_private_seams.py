"""Pins the private members of other packages that krill overrides, calls or sets.

Private members change without notice. When one of these tests fails after an upgrade, it names the member and the
file of krill that relies on it.
"""

from __future__ import annotations

import ast
import atexit
import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from torch._dynamo.exc import TorchDynamoException
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import krill
from krill.training.trainer import KrillTrainer

ROOT = Path(krill.__file__).parents[1]

CALLABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "transformers.conversion_mapping:get_checkpoint_conversion_mapping": (
        ("model_type",), "krill/launch/warm_up.py",
    ),
    "transformers:Trainer.create_accelerator_and_postprocess": (("self",), "krill/training/trainer.py"),
    "transformers:Trainer.get_train_dataloader": (("self",), "krill/training/trainer.py"),
    "transformers:Trainer.create_optimizer": (("self", "model"), "krill/training/trainer.py"),
    "transformers:Trainer.create_scheduler": (
        ("self", "num_training_steps", "optimizer"), "krill/training/trainer.py",
    ),
    "transformers:Trainer.compute_loss": (
        ("self", "model", "inputs", "return_outputs", "num_items_in_batch"), "krill/training/trainer.py",
    ),
    "transformers:Trainer.get_batch_samples": (
        ("self", "epoch_iterator", "num_batches", "device"), "krill/training/trainer.py",
    ),
    "transformers:Trainer._prepare_input": (("self", "data"), "krill/training/trainer.py"),
    "transformers:Trainer._prepare_inputs": (("self", "inputs"), "krill/training/trainer.py"),
    "transformers:Trainer.training_step": (
        ("self", "model", "inputs", "num_items_in_batch"), "krill/training/trainer.py",
    ),
    "transformers:Trainer._clip_grad_norm": (("self", "model"), "krill/training/trainer.py"),
    "transformers:Trainer.log": (("self", "logs", "start_time"), "krill/training/trainer.py"),
    "transformers:Trainer.evaluate": (
        ("self", "eval_dataset", "ignore_keys", "metric_key_prefix"), "krill/training/trainer.py",
    ),
    "transformers:Trainer._evaluate": (
        ("self", "trial", "ignore_keys_for_eval", "skip_scheduler"), "krill/training/trainer.py",
    ),
    "transformers:Trainer.floating_point_ops": (("self", "inputs"), "krill/training/trainer.py"),
    "transformers:Trainer._load_optimizer_and_scheduler": (("self", "checkpoint"), "krill/training/trainer.py"),
    "transformers:Trainer._init_training_state": (
        (
            "self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint",
            "trial",
        ),
        "krill/training/trainer.py",
    ),
    "transformers:Trainer._run_epoch": (
        (
            "self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
            "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
        "krill/training/trainer.py",
    ),
    "transformers:Trainer._get_output_dir": (("self", "trial"), "krill/training/trainer.py"),
    "transformers:Trainer._save_checkpoint": (("self", "model", "trial"), "krill/training/trainer.py"),
    "transformers:Trainer._save": (("self", "output_dir", "state_dict"), "krill/training/trainer.py"),
    "transformers:Trainer._save_optimizer_and_scheduler": (("self", "output_dir"), "krill/training/trainer.py"),
    "transformers:TrainerState.compute_steps": (("self", "args", "max_steps"), "krill/training/trainer.py"),
    "liger_kernel.transformers.monkey_patch:_apply_liger_kernel_to_instance": (
        ("model", "kwargs"), "krill/training/compute/liger.py",
    ),
    "torchao.float8:convert_to_float8_training": (
        ("module", "module_filter_fn", "config"), "krill/training/compute/fp8.py",
    ),
    "torchao.float8.float8_linear:Float8Linear.forward": (("self", "input"), "krill/training/compute/fp8.py"),
    "accelerate.utils:FullyShardedDataParallelPlugin.__init__": (
        ("self", "fsdp_version", "state_dict_type"), "krill/training/compute/fsdp.py",
    ),
    "torch.utils._pytree:tree_leaves": (("tree", "is_leaf"), "krill/training/checkpoint/async_save.py"),
    "torch.distributed.distributed_c10d:_set_pg_timeout": (("timeout", "group"), "krill/training/ranks.py"),
    "torch.cuda:_is_in_bad_fork": ((), "krill/launch/preload_server.py"),
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_arguments": (
        ("overrides", "max_batch_size"), "krill/sweep/search.py",
    ),
    "hydra._internal.core_plugins.file_config_source:FileConfigSource.list": (
        ("self", "config_path", "results_filter"), "krill/cli/compose.py",
    ),
    "hydra._internal.core_plugins.file_config_source:FileConfigSource.load_config": (
        ("self", "config_path"), "krill/cli/compose.py",
    ),
    "hydra._internal.hydra:Hydra.get_mode": (("self", "config_name", "overrides"), "krill/cli/compose.py"),
    "omegaconf.base:parse": (("value", "parser_rule", "lexer_mode"), "krill/sweep/composer.py"),
    "omegaconf._utils:get_yaml_loader": ((), "krill/config/yaml_files.py"),
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._apply_overrides_to_config": (
        ("overrides", "cfg"), "krill/sweep/composer.py",
    ),
    "hydra._internal.config_loader_impl:get_overrides_dirname": (
        ("overrides", "exclude_keys", "item_sep", "kv_sep"), "krill/sweep/composer.py",
    ),
    "hydra._internal.sources_registry:SourcesRegistry.instance": (("args", "kwargs"), "krill/cli/compose.py"),
    "hydra.core.plugins:Plugins.register": (("self", "clazz"), "krill/cli/compose.py"),
    "submitit:SlurmExecutor._submit_command": (("self", "command"), "krill/launch/sbatch.py"),
    "submitit:SlurmExecutor._make_submission_file_text": (("self", "command", "uid"), "krill/launch/sbatch.py"),
    "submitit:SlurmExecutor._valid_parameters": ((), "krill/launch/sbatch.py"),
    "submitit.helpers:clean_env": (("extra_names",), "krill/launch/sbatch.py"),
    "uvicorn:Server.capture_signals": (("self",), "krill/serving/server.py"),
    "uvicorn.protocols.http.h11_impl:H11Protocol.connection_made": (
        ("self", "transport"), "krill/serving/server.py",
    ),
    "uvicorn.protocols.http.h11_impl:H11Protocol.data_received": (("self", "data"), "krill/serving/server.py"),
    "uvicorn.protocols.http.h11_impl:H11Protocol.connection_lost": (("self", "exc"), "krill/serving/server.py"),
    "threading:_shutdown": ((), "krill/launch/preload_server.py"),
}  # fmt: skip
"""module:member → its parameters, and the file of krill that calls or overrides it. `FullyShardedDataParallelPlugin`
and Liger take more than krill passes, so only these parameters must be among theirs."""

PARTIAL_SIGNATURES = (
    "accelerate.utils:FullyShardedDataParallelPlugin.__init__",
    "liger_kernel.transformers.monkey_patch:_apply_liger_kernel_to_instance",
)

ONES = (torch.ones(2), torch.ones(2))


def _foreach(name: str, *args: Any, **kwargs: Any) -> list[float]:
    """Calls torch._foreach_* on two tensors of ones; returns the values of the first result."""
    tensors = [tensor.clone() for tensor in ONES]
    result = getattr(torch, name)(tensors, *args, **kwargs)
    return (tensors if name.endswith("_") else result)[0].tolist()


def _fused_sgd(found_inf: float) -> list[float]:
    tensor = torch.ones(2)
    torch._fused_sgd_(
        [tensor], [tensor], [], weight_decay=0.0, momentum=0.0, lr=1.0, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=False, found_inf=torch.tensor(found_inf),
    )  # fmt: skip
    return tensor.tolist()


OPERATORS: dict[str, tuple[Callable[[], object], object, str]] = {
    "torch._foreach_sub_": (lambda: _foreach("_foreach_sub_", 1.0), [0.0, 0.0], "krill/optim/muon.py"),
    "torch._foreach_add_": (lambda: _foreach("_foreach_add_", ONES, alpha=-2.0), [-1.0, -1.0], "krill/optim/muon.py"),
    "torch._foreach_mul": (lambda: _foreach("_foreach_mul", ONES), [1.0, 1.0], "krill/optim/muon.py"),
    "torch._foreach_mul_": (
        lambda: _foreach("_foreach_mul_", [3.0, 4.0]), [3.0, 3.0], "krill/optim/normuon.py",
    ),
    "torch._foreach_sign_": (lambda: _foreach("_foreach_sign_"), [1.0, 1.0], "krill/optim/muon.py"),
    "torch._foreach_clamp_max_": (
        lambda: _foreach("_foreach_clamp_max_", 0.5), [0.5, 0.5], "krill/optim/muon.py",
    ),
    "torch._foreach_lerp": (
        lambda: _foreach("_foreach_lerp", [torch.zeros(2)] * 2, 0.25), [0.75, 0.75], "krill/optim/muon.py",
    ),
    "torch._foreach_lerp_": (
        lambda: _foreach("_foreach_lerp_", [torch.zeros(2)] * 2, 0.25), [0.75, 0.75], "krill/optim/normuon.py",
    ),
    "torch._foreach_copy_": (
        lambda: _foreach("_foreach_copy_", [torch.zeros(2)] * 2), [0.0, 0.0], "krill/optim/distributed.py",
    ),
    "torch._fused_sgd_": (
        lambda: (_fused_sgd(found_inf=0.0), _fused_sgd(found_inf=1.0)), ([0.0, 0.0], [1.0, 1.0]),
        "krill/optim/skip_mask.py",
    ),
}  # fmt: skip
"""Operators of torch without a Python signature → a call like krill's, its result, and the file that calls it."""


def _is_adamw_scaling_supported() -> bool:
    parameter = torch.nn.Parameter(torch.ones(1))
    fused, plain = (torch.optim.AdamW([parameter], fused=is_fused) for is_fused in (True, False))
    return fused._step_supports_amp_scaling and not getattr(plain, "_step_supports_amp_scaling", False)


def _has_last_lr() -> bool:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    scheduler._last_lr = [0.25]
    return scheduler.get_last_lr() == [0.25]


def _is_cdata_shared() -> bool:
    tensor = torch.ones(4)
    return tensor.untyped_storage()._cdata == tensor[:2].untyped_storage()._cdata


def _has_no_worker_failed() -> bool:
    return _load("torch.utils.data._utils.signal_handling:_error_if_any_worker_fails")() is None


def _is_loss_function_replaced() -> bool:
    model = PreTrainedModel(PretrainedConfig())
    model._loss_function = replacement = lambda *_: None
    return model.loss_function is replacement


def _has_autocast_for_fake_tensors() -> bool:
    linear = torch.nn.Linear(2, 3, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        out = linear.to_empty(device="cpu")(torch.ones(1, 2))
    return isinstance(out, FakeTensor) and out.dtype == torch.bfloat16


def _is_n_gpu_read() -> bool:
    getter = TrainingArguments.n_gpu
    assert isinstance(getter, property)
    return "_n_gpu" in inspect.getsource(getter.fget)  # type: ignore[arg-type]


def _are_dataset_fingerprints_strings() -> bool:
    datasets = pytest.importorskip("datasets")
    return isinstance(datasets.Dataset.from_dict({"text": ["a"]})._fingerprint, str)


ATTRIBUTES: dict[str, tuple[Callable[[], bool], str]] = {
    "transformers.Trainer._tr_loss": (
        lambda: {"_tr_loss", "_globalstep_last_logged"} <= _trainer_attributes(), "krill/training/trainer.py",
    ),
    "transformers.TrainingArguments._n_gpu": (_is_n_gpu_read, "krill/training/run.py"),
    "transformers.PreTrainedModel._loss_function": (
        _is_loss_function_replaced, "krill/training/compute/head_loss.py",
    ),
    "transformers.PretrainedConfig._attn_implementation": (
        lambda: isinstance(PretrainedConfig._attn_implementation, property), "krill/models/attention_probe.py",
    ),
    "transformers.PreTrainedModel._no_split_modules": (
        lambda: set(transformers.LlamaForCausalLM._no_split_modules) == {"LlamaDecoderLayer"},
        "krill/training/compute/compilation.py",
    ),
    "transformers.PreTrainedModel._supports_sdpa": (
        lambda: PreTrainedModel._supports_sdpa is False, "krill/models/isolation.py",
    ),
    "transformers.PreTrainedModel._supports_flex_attn": (
        lambda: PreTrainedModel._supports_flex_attn is False, "krill/models/isolation.py",
    ),
    "transformers.PreTrainedModel._supports_attention_backend": (
        lambda: PreTrainedModel._supports_attention_backend is False, "krill/models/isolation.py",
    ),
    "transformers.PreTrainedModel._is_stateful": (
        lambda: PreTrainedModel._is_stateful is False, "krill/models/isolation.py",
    ),
    "torch.optim.Optimizer._step_supports_amp_scaling": (
        _is_adamw_scaling_supported, "krill/optim/skip_mask.py",
    ),
    "torch.optim.lr_scheduler.LambdaLR._last_lr": (_has_last_lr, "krill/optim/schedules.py"),
    "torch._subclasses.fake_tensor.FakeTensorMode": (_has_autocast_for_fake_tensors, "krill/models/cost.py"),
    "torch._dynamo.exc.TorchDynamoException": (
        lambda: issubclass(_load("torch._dynamo.exc:BackendCompilerFailed"), TorchDynamoException),
        "krill/training/compute/compilation.py",
    ),
    "torch.utils.data._utils.signal_handling._error_if_any_worker_fails": (
        _has_no_worker_failed, "krill/training/batches.py",
    ),
    "torch.UntypedStorage._cdata": (_is_cdata_shared, "krill/training/checkpoint/async_save.py"),
    "datasets.Dataset._fingerprint": (_are_dataset_fingerprints_strings, "krill/sources/hub.py"),
    "atexit._run_exitfuncs": (lambda: callable(atexit._run_exitfuncs), "krill/launch/preload_server.py"),
    "hydra._internal.sources_registry.SourcesRegistry.types": (
        lambda: "types" in vars(_load("hydra._internal.sources_registry:SourcesRegistry").instance()),
        "krill/cli/compose.py",
    ),
}  # fmt: skip
"""Attribute → a check that it exists and does what krill expects, and the file that reads or sets it."""

PUBLIC_UNDERSCORES = ("_asdict", "_fields", "_replace", "_exit", "_target_")
"""Documented members of namedtuple and os, and Hydra's _target_ key: not private despite the underscore."""


def _load(path: str) -> Any:
    module, _, member = path.partition(":")
    loaded: Any = importlib.import_module(module)
    for name in member.split("."):
        loaded = getattr(loaded, name)
    return loaded


@pytest.mark.parametrize("path", CALLABLES)
def test_callable_exists_with_the_expected_parameters(path: str) -> None:
    expected, user = CALLABLES[path]
    package = path.partition(".")[0].partition(":")[0]
    if package in ("liger_kernel", "torchao"):
        pytest.importorskip(package)
    try:
        member = _load(path)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{path} is used by {user} and does not exist in this version: {error}")
    parameters = tuple(inspect.signature(member).parameters)
    if path in PARTIAL_SIGNATURES:
        assert set(expected) <= set(parameters), f"{path} changed its parameters; {user} passes {expected}"
    else:
        assert parameters == expected, f"{path} changed its parameters; {user} relies on them"


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_computes_the_expected_result(name: str) -> None:
    call, expected, user = OPERATORS[name]
    try:
        result = call()
    except (AttributeError, TypeError, RuntimeError) as error:
        pytest.fail(f"{name} cannot be called as {user} calls it: {error}")
    assert result == expected, f"{name} returns another result; {user} relies on it"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute_behaves_as_expected(name: str) -> None:
    check, user = ATTRIBUTES[name]
    try:
        is_as_expected = check()
    except AttributeError as error:
        pytest.fail(f"{name} is used by {user} and does not exist in this version: {error}")
    assert is_as_expected, f"{name} has changed; {user} relies on it"


@cache
def _trainer_nodes() -> list[ast.AST]:
    return list(ast.walk(ast.parse(inspect.getsource(transformers.trainer))))


def _trainer_attributes() -> set[str]:
    """Returns the attributes that transformers' Trainer assigns."""
    nodes = (node for node in _trainer_nodes() if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}


@cache
def _trainer_calls() -> dict[str, list[ast.Call]]:
    """Returns the calls of methods in transformers' Trainer, by name; without those that unpack arguments."""
    calls: dict[str, list[ast.Call]] = {}
    for node in _trainer_nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_unpacking = any(isinstance(arg, ast.Starred) for arg in node.args) or not all(
                item.arg for item in node.keywords
            )
            if ast.unparse(node.func.value) == "self" and not is_unpacking:
                calls.setdefault(node.func.attr, []).append(node)
    return calls


def _list_overrides() -> list[str]:
    """Returns the methods of KrillTrainer that override one of transformers' Trainer."""
    return [name for name in vars(KrillTrainer) if not name.startswith("__") and hasattr(Trainer, name)]


@pytest.mark.parametrize("name", _list_overrides())
def test_overridden_method_accepts_the_calls_that_transformers_makes(name: str) -> None:
    assert f"transformers:Trainer.{name}" in CALLABLES, f"pin Trainer.{name}, which KrillTrainer overrides"
    signature = inspect.signature(getattr(KrillTrainer, name))
    for call in _trainer_calls().get(name, []):
        try:
            signature.bind(None, *call.args, **{str(item.arg): item.value for item in call.keywords})
        except TypeError as error:
            pytest.fail(
                f"transformers calls {ast.unparse(call)}, which KrillTrainer.{name} in krill/training/trainer.py "
                f"does not accept: {error}"
            )


# --- nothing private is used without a pin -----------------------------------------------------------------


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_", *PUBLIC_UNDERSCORES)


def _iterate_definitions(tree: ast.Module) -> Iterator[str]:
    """Yields the names that a file defines: functions, classes, variables and attributes of self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (item for root in targets for item in ast.walk(root)):
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) in ("self", "cls"):
                    yield target.attr


def _iterate_uses(tree: ast.Module) -> Iterator[str]:
    """Yields the private names that a file reads as attributes, imports, or names in getattr and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Call) and "attr" in ast.unparse(node.func):
            names = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if "._" in (node.module or ""):
                yield from names
        else:
            continue
        yield from filter(_is_private, names)


def test_every_private_member_that_krill_uses_is_pinned() -> None:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "krill").rglob("*.py")}
    defined = {name for tree in trees.values() for name in _iterate_definitions(tree)}
    pinned = {name.rpartition(".")[2].rpartition(":")[2] for name in (*CALLABLES, *OPERATORS, *ATTRIBUTES)}
    pinned |= {part for name in (*CALLABLES, *ATTRIBUTES) for part in name.replace(":", ".").split(".")}
    missing = {
        f"{name} in {file.relative_to(ROOT)}"
        for file, tree in trees.items()
        for name in _iterate_uses(tree)
        if name not in defined and name not in pinned
    }
    assert not missing, f"add to this file: {', '.join(sorted(missing))}"


def test_pins_name_files_that_use_the_member() -> None:
    users = {
        **{path: user for path, (_, user) in CALLABLES.items()},
        **{name: user for name, (_, _, user) in OPERATORS.items()},
        **{name: user for name, (_, user) in ATTRIBUTES.items()},
    }
    for path, user in users.items():
        owner, _, member = path.replace(":", ".").rpartition(".")
        word = owner.rpartition(".")[2] if member == "__init__" else member
        assert word in (ROOT / user).read_text(encoding="utf-8"), f"{user} does not use {path}"
