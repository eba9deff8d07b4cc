"""Evaluates the model of a configuration: what has been evaluated is read, the rest is computed and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from krill import atomic
from krill.config.paths import get_outputs_root, relative_path
from krill.config.schema import EvaluateConfig, EvaluationConfig
from krill.config.signature import compute_signature
from krill.data.store import Store
from krill.errors import UsageError
from krill.evaluation.evaluate import choose_tasks, evaluate_task, find_evaluator
from krill.evaluation.evaluator import EvaluationSettings, Evaluator, MissingTextError
from krill.evaluation.model_index import update_model_index
from krill.evaluation.results import (
    VERSION,
    TaskResult,
    get_result_file,
    read_result,
    read_results,
    write_result,
)
from krill.evaluation.subject import Subject, find_training_store
from krill.inference.load import ModelFiles
from krill.runs.find import find_run_folder
from krill.runs.record import read_config
from krill.runs.scores import EVALUATIONS_FOLDER

MODEL_FOLDER = "model"
"""The folder of the final model in that of a run."""
log = logging.getLogger("krill")


@dataclass(frozen=True)
class ModelEvaluation:
    """The evaluation of one model."""

    config: EvaluationConfig
    files: ModelFiles
    store: Store | None
    root: Path
    """The folder that contains, or will contain, evaluations/."""
    device: torch.device
    precision: str
    """A value of hardware.precision."""
    again: bool = False
    """Whether to evaluate again what has been evaluated."""

    @classmethod
    def open(cls, config: EvaluateConfig, device: torch.device) -> ModelEvaluation:
        """Finds the model and the tokens that it was trained on.

        Raises UsageError if there is no model, for an unknown task, or if contamination=true has no training text.
        """
        files = ModelFiles.locate(config.model.path, config.tokenizer.path)
        root = Path(config.output).absolute() if config.output else find_run_folder(files.folder)
        evaluation = cls(
            config.evaluation, files, find_training_store(files.folder, files.tokenizer),
            root or get_outputs_root(), device, config.hardware.precision, config.again,
        )  # fmt: skip
        if evaluation.settings.contamination and evaluation.store is None:
            raise UsageError(
                f"contamination=true: the tokens that {files.name} was trained on are not here, and nothing can be "
                "looked up in them; leave it out"
            )
        for evaluator in evaluation.evaluators:
            evaluator.identify(evaluation.settings)
        return evaluation

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.root / EVALUATIONS_FOLDER

    @cached_property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return choose_tasks(self.config.tasks, self.store, self.files.tokenizer)

    @cached_property
    def evaluators(self) -> list[Evaluator]:
        """The evaluators of the tasks."""
        return [find_evaluator(task) for task in self.tasks]

    @cached_property
    def settings(self) -> EvaluationSettings:
        return EvaluationSettings.from_config(self.config)

    @cached_property
    def _model_hash(self) -> list[str]:
        return self.files.hash()

    @property
    def _weights(self) -> str:
        return compute_signature(self._model_hash)

    @cached_property
    def _weights_folder(self) -> str:
        """The folder of the weights in that of their run; empty: there is no run."""
        run = find_run_folder(self.files.folder)
        if run is None:
            return ""
        folder = self.files.folder.resolve().relative_to(run.resolve()).as_posix()
        return "" if folder == "." else folder

    def describe(self) -> list[str]:
        """Returns lines for the terminal: the model, the text, the tasks."""
        store = relative_path(self.store.folder) if self.store is not None else "not here; no n-gram models"
        return [
            f"weights     {relative_path(self.files.folder.absolute())}",
            f"tokens      {store}",
            f"tasks       {', '.join(self.tasks)}",
        ]

    def run(self, known_results: Sequence[TaskResult] = (), level: int = logging.INFO) -> list[TaskResult]:
        """Returns the results of all tasks, and writes those that are new; tasks=auto needs no held-out text.

        `known_results`: those of the same weights that were computed already. `level`: of the messages.
        """
        known = {result.task: result for result in known_results}
        atomic.create_folder(self.folder)  # before work that could not be kept
        results = []
        for evaluator in self.evaluators:
            signature = self._compute_signature(evaluator)
            file = get_result_file(self.root, evaluator.name, signature)
            result = None if self.again else read_result(file, signature)
            if result is not None:
                log.log(level, "%-14s found %s", evaluator.name, relative_path(file))
            else:
                try:
                    result = known.get(evaluator.name) or evaluate_task(
                        evaluator, self.subject, self.settings
                    )
                except MissingTextError as error:
                    if self.config.tasks != "auto":
                        raise
                    log.log(level, "skipped     %s", error)
                    continue
                update = {
                    "signature": signature,
                    "weights": self._weights,
                    "weights_folder": self._weights_folder,
                }
                result = result.model_copy(update=update)
                write_result(file, result)
                log.log(level, "%-14s %.1f s, %s", evaluator.name, result.seconds, relative_path(file))
            results.append(result)
        self._update_model_card()
        return results

    def _update_model_card(self) -> None:
        """Adds the results of the final model of a run to its model card."""
        run = find_run_folder(self.files.folder)
        if run is None or self.root.resolve() != run.resolve() or self._weights_folder != MODEL_FOLDER:
            return
        config = read_config(run)
        data = config.get("data")
        update_model_index(
            self.files.folder,
            str(config.get("name") or run.name),
            str(data.get("name")) if isinstance(data, dict) else "text",
            read_results(run, self._weights),
        )

    def _compute_signature(self, evaluator: Evaluator) -> str:
        store = self.store.signature if self.store is not None else None
        return compute_signature(
            "evaluation", VERSION, evaluator.name, evaluator.identify(self.settings), store, self._model_hash,
            self._resolve_precision(),
        )  # fmt: skip

    def _resolve_precision(self) -> str:
        """Returns the precision that changes the scores; auto is fp32 on a CPU, and that of the weights on CUDA."""
        return "fp32" if self.precision == "auto" and self.device.type == "cpu" else self.precision

    @cached_property
    def subject(self) -> Subject:
        """The model, loaded, with its tokens."""
        model = self.files.load(self.device, self.precision)
        return Subject(self.files.name, model, self.files.tokenizer, self.store, self.config.max_batch_tokens)
