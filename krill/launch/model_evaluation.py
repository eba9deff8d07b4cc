"""Evaluates the model of a configuration: what has been evaluated is read, the rest is computed and kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch

from krill import atomic
from krill.config.paths import get_outputs_root, relative_path
from krill.config.schema import EvaluateConfig
from krill.config.signature import compute_signature
from krill.data.store import Store
from krill.errors import UsageError
from krill.evaluation.bundled import PAIR_TASKS, TASK_LANGUAGES
from krill.evaluation.evaluate import CLOZE, TEXT, evaluate_task, expand_tasks, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings, Evaluator
from krill.evaluation.languages import list_languages
from krill.evaluation.rank_share import RankShare
from krill.evaluation.results import FOLDER, VERSION, TaskResult, get_result_file, read_result, write_result
from krill.evaluation.subject import Subject, find_run_folder, find_training_store, sample_text
from krill.inference.load import ModelFiles, load_model
from krill.launch.evaluation_ranks import count_evaluation_ranks, evaluate_on_ranks
from krill.training.compute.device import resolve_device
from krill.training.ranks import all_gather_object, get_rank, get_world_size, is_rank0, on_rank0

log = logging.getLogger("krill")


@dataclass(frozen=True)
class ModelEvaluation:
    """The evaluation of one model."""

    config: EvaluateConfig
    files: ModelFiles
    store: Store | None
    root: Path
    """The folder that contains, or will contain, evaluations/."""

    @classmethod
    def open(cls, config: EvaluateConfig, folder: Path | None = None) -> ModelEvaluation:
        """Finds the model and the tokens that it was trained on; `folder`: that of the results, in place of output=.

        Raises UsageError if there is no model, for an unknown task, if contamination=true has no training text, or if
        no task uses data=.
        """
        files = ModelFiles.locate(config.model.path, config.tokenizer.path)
        root = folder or (Path(config.output).absolute() if config.output else find_run_folder(files.folder))
        evaluation = cls(
            config, files, find_training_store(files.folder, files.tokenizer), root or get_outputs_root()
        )
        if evaluation.settings.contamination and evaluation.store is None:
            raise UsageError(
                f"contamination=true: the tokens that {files.name} was trained on are not here, and nothing can be "
                "looked up in them; leave it out"
            )
        if config.data is not None and TEXT not in evaluation.tasks:
            raise UsageError("data= is the text of the task text, which is not in tasks=; use tasks=text")
        for evaluator in evaluation.evaluators.values():
            evaluator.identify(evaluation.settings)
        return evaluation

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.root / FOLDER

    @cached_property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        tasks = self.config.evaluation.tasks
        if tasks != "auto":
            return expand_tasks(tasks)
        pairs = list(PAIR_TASKS)
        if self.store is not None:
            languages = list_languages(sample_text(self.store, self.files.tokenizer))
            pairs = [task for task, language in TASK_LANGUAGES.items() if language in languages]
        has_held_out = self.store is not None and self.store.validation.tokens > 0
        text = [TEXT] if has_held_out or self.config.data is not None else []
        return [*text, *pairs, *([CLOZE] if has_held_out else [])]

    @cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Task → its evaluator."""
        return {task: find_evaluator(task, self.config.data) for task in self.tasks}

    @cached_property
    def settings(self) -> EvaluationSettings:
        section = self.config.evaluation
        names = [field.name for field in fields(EvaluationSettings)]
        return EvaluationSettings(**{name: getattr(section, name) for name in names})

    @cached_property
    def _model_hash(self) -> list[str]:
        return self.files.hash()

    def describe(self) -> list[str]:
        """Returns lines for the terminal: the model, the text, the tasks."""
        store = relative_path(self.store.folder) if self.store is not None else "not here; no n-gram models"
        return [
            f"weights     {relative_path(self.files.folder.absolute())}",
            f"tokens      {store}",
            f"tasks       {', '.join(self.tasks)}",
        ]

    def run(self) -> list[TaskResult]:
        """Returns the results of all tasks, the same on every rank, and writes those that are new.

        A single process starts hardware.processes ranks for those that are new.
        """
        atomic.create_folder(self.folder)  # before work that could not be kept
        found = {} if self.config.again else on_rank0(self._read_results)
        for task in found:
            log.info("%-14s found %s", self.evaluators[task].name, relative_path(self._get_file(task)))
        missing = [task for task in self.tasks if task not in found]
        if missing and get_world_size() == 1 and count_evaluation_ranks(self.config) > 1:
            evaluate_on_ranks(self._select_tasks(missing), self.root)
            found |= self._read_results()
        else:
            found |= self._evaluate(missing)
        return [found[task] for task in self.tasks]

    def _evaluate(self, tasks: Sequence[str]) -> dict[str, TaskResult]:
        """Evaluates tasks, together with the other ranks, and writes the result of each as soon as it is there."""
        subject = self._load() if tasks else None
        results: dict[str, TaskResult] = {}
        for task in tasks:
            assert subject is not None
            evaluator = self.evaluators[task]
            result = evaluate_task(evaluator, subject, self.settings)
            results[task] = result.model_copy(update={"signature": self._signatures[task]})
            if is_rank0():
                write_result(self._get_file(task), results[task])
                file = relative_path(self._get_file(task))
                log.info("%-14s %.1f s, %s", evaluator.name, result.seconds, file)
        return results

    def _read_results(self) -> dict[str, TaskResult]:
        """Returns the results that are there, by their tasks."""
        results = {task: read_result(self._get_file(task), self._signatures[task]) for task in self.tasks}
        return {task: result for task, result in results.items() if result is not None}

    def _select_tasks(self, tasks: list[str]) -> EvaluateConfig:
        """Returns the configuration that evaluates `tasks`, whether or not there are results."""
        evaluation = self.config.evaluation.model_copy(update={"tasks": tasks})
        return self.config.model_copy(update={"evaluation": evaluation, "again": True})

    def _get_file(self, task: str) -> Path:
        return get_result_file(self.root, self.evaluators[task].name, self._signatures[task])

    @cached_property
    def _signatures(self) -> dict[str, str]:
        return {task: self._compute_signature(evaluator) for task, evaluator in self.evaluators.items()}

    def _compute_signature(self, evaluator: Evaluator) -> str:
        store = self.store.signature if self.store is not None else None
        return compute_signature(
            "evaluation", VERSION, evaluator.name, evaluator.identify(self.settings), store, self._model_hash,
            self._resolve_precision(),
        )  # fmt: skip

    def _resolve_precision(self) -> str:
        """Returns the precision that changes the scores; auto is fp32 on a CPU, and that of the weights on CUDA."""
        precision: str = self.config.hardware.precision
        return "fp32" if precision == "auto" and self._device.type == "cpu" else precision

    @cached_property
    def _device(self) -> torch.device:
        device = resolve_device(self.config.device)
        return (
            torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
            if device == "cuda"
            else torch.device(device)
        )

    def _load(self) -> Subject:
        if self.config.hardware.threads is not None:
            torch.set_num_threads(self.config.hardware.threads)
        loaded = load_model(
            self.config.model.path, self._device, self.config.tokenizer.path, self.config.hardware.precision
        )
        max_batch_tokens = self.config.evaluation.max_batch_tokens
        share = RankShare(get_rank(), get_world_size(), all_gather_object)
        return Subject(
            self.config.model.path, loaded.model, loaded.tokenizer, self.store, max_batch_tokens, share
        )
