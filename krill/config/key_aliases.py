"""Other names of keys: short ones, former ones, and those of other tools, with what to set instead."""

from __future__ import annotations

from collections.abc import Collection

SHORT_EVALUATION_KEYS = {
    name: f"evaluation.{name}" for name in ("tasks", "limit", "few_shot", "contamination")
}
"""Short key of krill-evaluate → the key."""

RENAMED_KEYS = {
    "sweep.slots": "sweep.max_parallel",
    "data.shards": "data.num_tasks",
    "data.shard": "data.task",
    "data.near": "data.minhash",
    "guard": "skip_step",
    "judge_bytes": "eval_bytes",
}
"""Former key → its name today, for keys and for sections."""

REMOVED_KEYS = {"optimizer.backend": "Muon is always krill's; leave the key out"}
"""Former key → what to do instead."""

HYDRA_KEYS = {
    "hydra.run.dir": "the folder of a run is output=…",
    "hydra.sweep.dir": "the folder of a sweep is output=…, with -m",
    "hydra.sweep.subdir": "each point of a sweep has the folder of its signature; leave the key out",
    "hydra.output_subdir": "the folder of a run always has .hydra; leave the key out",
    "hydra.job.chdir": "no command changes its working directory; leave the key out",
    "hydra.job.config_name": "Hydra sets it; leave the key out",
    "hydra.job.id": "Hydra sets it; leave the key out",
    "hydra.job.num": "Hydra sets it; leave the key out",
    "hydra.overrides": "Hydra sets its keys; leave them out",
    "hydra.runtime": "Hydra sets its keys; leave them out. The folder of a run is output=…",
}
"""Key or section of Hydra that has no effect in krill → what to do instead."""

FOREIGN_KEYS: dict[str, tuple[str, ...]] = {
    # transformers.TrainingArguments
    "output_dir": ("output=…",),
    "overwrite_output_dir": ("resume=false: it always starts a new run, in a new folder",),
    "run_name": ("name=…",),
    "learning_rate": ("lr=…",),
    "num_train_epochs": ("epochs=…",),
    "max_epochs": ("epochs=…",),
    "num_epochs": ("epochs=…",),
    "max_steps": ("steps=…",),
    "per_device_train_batch_size": ("batch.micro_batch_size=…",),
    "per_gpu_train_batch_size": ("batch.micro_batch_size=…",),
    "per_device_eval_batch_size": ("batch.micro_batch_size=…: validation uses it too",),
    "gradient_accumulation_steps": ("batch.gradient_accumulation_steps=…",),
    "auto_find_batch_size": ("batch.micro_batch_size=…: it shrinks automatically when memory runs out",),
    "logging_steps": ("log_every=…",),
    "logging_dir": ("trackers=[tensorboard]: its files are in the folder of the run",),
    "eval_steps": ("eval_every=…",),
    "eval_strategy": ("eval_every=…, a number of steps",),
    "evaluation_strategy": ("eval_every=…, a number of steps",),
    "save_steps": ("save_every=…",),
    "save_strategy": ("save_every=…, a number of steps",),
    "save_total_limit": ("keep_checkpoints=…",),
    "metric_for_best_model": ("best_metric=…",),
    "load_best_model_at_end": ("keep_best=true: it keeps the checkpoint with the lowest validation loss",),
    "resume_from_checkpoint": ("resume=…, the folder of a run; auto is the default",),
    "wandb_project": ("trackers=[wandb], with the project in WANDB_PROJECT",),
    "use_wandb": ("trackers=[wandb]",),
    "report_to": ("trackers=[wandb], [tensorboard] or [trackio]",),
    "push_to_hub": ("hub.push=true hub.id=user/name; krill-tokenizer: tokenizer.push_to=user/name",),
    "hub_model_id": ("hub.id=…",),
    "hub_token": ("hub.id=…; the token is read from hf auth login or HF_TOKEN",),
    "hub_private_repo": ("hub.private=…",),
    "hub_strategy": ("hub.checkpoints=true, or hub.push=true for the final model only",),
    "bf16": ("hardware.precision=bf16",),
    "fp16": ("hardware.precision=bf16, or fp32; there is no fp16",),
    "tf32": ("hardware.precision=bf16, or fp32",),
    "torch_dtype": ("hardware.precision=bf16, or fp32",),
    "dtype": ("hardware.precision=bf16, or fp32",),
    "mixed_precision": ("hardware.precision=bf16, or fp32",),
    "torch_compile": ("hardware.compile=…",),
    "gradient_checkpointing": ("hardware.gradient_checkpointing=…",),
    "attn_implementation": ("hardware.attention=…",),
    "use_flash_attention_2": ("hardware.attention=flash_attention_2",),
    "use_liger_kernel": ("hardware.liger=…",),
    "fsdp": ("hardware.sharding=fsdp2",),
    "deepspeed": ("hardware.sharding=fsdp2",),
    "dataloader_num_workers": ("hardware.workers=…",),
    "preprocessing_num_workers": ("data.workers=…",),
    "dataset_num_proc": ("data.workers=…",),
    "use_cpu": ("device=cpu",),
    "no_cuda": ("device=cpu",),
    "data_seed": ("seed=…: it orders the rows too",),
    "random_seed": ("seed=…",),
    "lr_scheduler_type": ("scheduler=cosine, wsd or constant",),
    "lr_scheduler": ("scheduler=cosine, wsd or constant",),
    "warmup_ratio": ("scheduler.warmup=…, a fraction of the steps",),
    "warmup_steps": ("scheduler.warmup=0.05: it is a fraction of the steps",),
    "min_lr": ("scheduler.min_ratio=0.1: it is a fraction of lr",),
    "optim": ("optimizer=adamw or muon_krill",),
    "adam_beta1": ("optimizer.betas=[0.9,0.95]",),
    "adam_beta2": ("optimizer.betas=[0.9,0.95]",),
    "adam_epsilon": ("optimizer.eps=…",),
    "weight_decay": ("optimizer.weight_decay=…",),
    "max_grad_norm": ("optimizer.max_grad_norm=…",),
    "gradient_clipping": ("optimizer.max_grad_norm=…",),
    "grad_clip": ("optimizer.max_grad_norm=…",),
    "z_loss": ("optimizer.z_loss=…",),
    "z_loss_multiplier": ("optimizer.z_loss=…",),
    "early_stopping_patience": ("stop.patience=…",),
    # the scripts of transformers and TRL
    "model_name_or_path": ("model.path=…", "model=pretrained model.from=…"),
    "tokenizer_name": ("tokenizer=pretrained tokenizer.path=…",),
    "tokenizer_name_or_path": ("tokenizer=pretrained tokenizer.path=…",),
    "tokenizer_file": ("tokenizer=pretrained tokenizer.path=…",),
    "train_file": ("data=files data.paths=[…]",),
    "dataset_name": ("data=files data.paths=[…], or a data file of your own with source: hub",),
    "dataset_text_field": ("data.text_column=…",),
    "text_column_name": ("data.text_column=…",),
    "validation_split_percentage": ("data.validation_fraction=0.01: it is a fraction",),
    "max_seq_length": ("sequence_len=…",),
    "max_length": ("sequence_len=…", "max_new_tokens=…"),
    "block_size": ("sequence_len=…",),
    "seq_len": ("sequence_len=…",),
    "seq_length": ("sequence_len=…",),
    "context_length": ("sequence_len=…",),
    "batch_size": ("batch.micro_batch_size=…, or batch.tokens=… for a whole step",),
    "total_batch_size": ("batch.tokens=…, the tokens of a step",),
    "num_gpus": ("hardware.processes=…",),
    "nproc_per_node": ("hardware.processes=…",),
    "n_layer": ("model.num_hidden_layers=…",),
    "n_head": ("model.num_attention_heads=…",),
    "n_embd": ("model.hidden_size=…",),
    "d_model": ("model.hidden_size=…",),
    # transformers.GenerationConfig
    "do_sample": ("temperature=0.6, or temperature=0 for the most likely token",),
    "max_tokens": ("max_new_tokens=…", "data.max_tokens=…"),
    "max_new_token": ("max_new_tokens=…",),
    "num_beams": ("temperature=0 for the most likely token; there is no beam search",),
    "num_return_sequences": ("n=…",),
    "input": ("prompt=…",),
}
"""Name in another tool → what to set in krill; of several answers, the first whose key the command has."""


def find_hydra_key(key: str) -> str | None:
    """Returns the entry of `HYDRA_KEYS` for a key, which may be of a section there, or None."""
    return next((known for known in HYDRA_KEYS if key == known or key.startswith(f"{known}.")), None)


def find_renamed_key(key: str) -> str | None:
    """Returns the present name of a key in `RENAMED_KEYS` or in a section there, or None."""
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def find_foreign_key(key: str, known: Collection[str] | None = None) -> str | None:
    """Returns what to set instead of a key of another tool, or None.

    `known`: the keys of the command; None: any. A dotted key counts by its last part, as in training.learning_rate,
    or as a whole: batch.size as batch_size.
    """
    name = key.replace("-", "_")
    for foreign in (name.rpartition(".")[2], name.replace(".", "_")):
        for answer in FOREIGN_KEYS.get(foreign, ()):
            if known is None or answer.partition("=")[0] in known:
                return answer
    return None
