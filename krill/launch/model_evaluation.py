"""Evaluates the model of a configuration: what has been evaluated is read, the rest is computed and kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from krill import atomic
from krill.config.paths import get_outputs_root, relative_path
from krill.config.schema import EvaluateConfig
from krill.config.signature import compute_signature
from krill.data.store import Store
from krill.evaluation.bundled import PAIR_TASKS, TASK_LANGUAGES
from krill.evaluation.evaluate import CLOZE, TEXT, evaluate_task, expand_tasks, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings, Evaluator
from krill.evaluation.languages import list_languages
from krill.evaluation.results import FOLDER, VERSION, TaskResult, get_result_file, read_result, write_result
from krill.evaluation.subject import Subject, find_run_folder, find_training_store, sample_text
from krill.inference.load import ModelFiles, load_model
from krill.training.compute.device import resolve_device

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

        Raises UsageError if there is no model, or for an unknown task.
        """
        files = ModelFiles.locate(config.model.path, config.tokenizer.path)
        root = folder or (Path(config.output).absolute() if config.output else find_run_folder(files.folder))
        evaluation = cls(
            config, files, find_training_store(files.folder, files.tokenizer), root or get_outputs_root()
        )
        for evaluator in evaluation.evaluators:
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
        if self.store is None:
            return list(PAIR_TASKS)
        languages = list_languages(sample_text(self.store, self.files.tokenizer))
        pairs = [task for task, language in TASK_LANGUAGES.items() if language in languages]
        return [TEXT, *pairs, CLOZE] if self.store.validation.tokens else pairs

    @cached_property
    def evaluators(self) -> list[Evaluator]:
        """The evaluators of the tasks."""
        return [find_evaluator(task) for task in self.tasks]

    @cached_property
    def settings(self) -> EvaluationSettings:
        section = self.config.evaluation
        return EvaluationSettings(
            section.limit, section.text_tokens, section.overlap, section.few_shot, section.olmo_items
        )

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
        """Returns the results of all tasks, and writes those that are new."""
        atomic.create_folder(self.folder)  # before work that could not be kept
        results = []
        subject: Subject | None = None
        for evaluator in self.evaluators:
            signature = self._compute_signature(evaluator)
            file = get_result_file(self.root, evaluator.name, signature)
            result = None if self.config.again else read_result(file, signature)
            if result is not None:
                log.info("%-14s found %s", evaluator.name, relative_path(file))
            else:
                subject = subject or self._load()
                result = evaluate_task(evaluator, subject, self.settings)
                result = result.model_copy(update={"signature": signature})
                write_result(file, result)
                log.info("%-14s %.1f s, %s", evaluator.name, result.seconds, relative_path(file))
            results.append(result)
        return results

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
        return torch.device(resolve_device(self.config.device))

    def _load(self) -> Subject:
        if self.config.hardware.threads is not None:
            torch.set_num_threads(self.config.hardware.threads)
        loaded = load_model(
            self.config.model.path, self._device, self.config.tokenizer.path, self.config.hardware.precision
        )
        max_batch_tokens = self.config.evaluation.max_batch_tokens
        return Subject(self.config.model.path, loaded.model, loaded.tokenizer, self.store, max_batch_tokens)
