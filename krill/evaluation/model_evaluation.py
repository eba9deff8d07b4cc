"""Evaluates the model of a configuration: what has been evaluated is read, the rest is computed and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from krill import atomic
from krill.config.paths import get_outputs_root, relative_path
from krill.config.schema import DataConfig, EvaluateConfig, EvaluationConfig
from krill.config.signature import compute_signature
from krill.data.store import Store
from krill.errors import UsageError
from krill.evaluation.evaluate import TEXT, choose_tasks, evaluate_task, find_evaluators
from krill.evaluation.evaluator import EvaluationSettings, Evaluator, MissingTextError
from krill.evaluation.lm_eval_evaluator import LmEvalEvaluator
from krill.evaluation.model_index import update_model_index
from krill.evaluation.progress import EvaluationProgress
from krill.evaluation.rank_share import ONLY_RANK, RankShare
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
    data: DataConfig | None = None
    """The documents of the task text; None: those that the run held out."""
    share: RankShare = ONLY_RANK

    @classmethod
    def open(
        cls, config: EvaluateConfig, device: torch.device, share: RankShare = ONLY_RANK
    ) -> ModelEvaluation:
        """Finds the model and the tokens that it was trained on.

        Raises UsageError if there is no model, for an unknown task, if contamination=true has no training text, or if
        no task uses data= or few_shot=.
        """
        files = ModelFiles.locate(config.model.path, config.tokenizer.path)
        root = Path(config.output).absolute() if config.output else find_run_folder(files.folder)
        evaluation = cls(
            config.evaluation, files, find_training_store(files.folder, files.tokenizer),
            root or get_outputs_root(), device, config.hardware.precision, config.again, config.data, share,
        )  # fmt: skip
        if evaluation.settings.contamination and evaluation.store is None:
            raise UsageError(
                f"contamination=true: the tokens that {files.name} was trained on are not here, and nothing can be "
                "looked up in them; leave it out"
            )
        if config.data is not None and TEXT not in evaluation.tasks:
            raise UsageError("data= is the text of the task text, which is not in tasks=; use tasks=text")
        evaluators = evaluation.evaluators.values()
        if config.evaluation.few_shot is not None and not any(
            isinstance(evaluator, LmEvalEvaluator) for evaluator in evaluators
        ):
            raise UsageError(
                f"few_shot={config.evaluation.few_shot} is for the tasks of lm-eval, and tasks= has none of them; "
                "leave it out"
            )
        for evaluator in evaluators:
            evaluator.identify(evaluation.settings)
        return evaluation

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.root / EVALUATIONS_FOLDER

    @cached_property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return choose_tasks(self.config.tasks, self.store, self.files.tokenizer, self.data is not None)

    @cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Task → its evaluator."""
        return find_evaluators(self.tasks, self.data)

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
        """Returns the results of all tasks, the same on every rank, and writes those that are new.

        tasks=auto needs no held-out text. `known_results`: those of the same weights that were computed already.
        `level`: of the messages.
        """
        known = {result.task: result for result in known_results}
        atomic.create_folder(self.folder)  # before work that could not be kept
        results = self.find_results()
        for task in results:
            log.log(level, "%-14s found %s", self.evaluators[task].name, self._get_file(task).name)
        for task, evaluator in self.evaluators.items():
            if task in results:
                continue
            is_shown = self.share.rank == 0 and level >= logging.INFO
            try:
                result = known.get(evaluator.name) or self._evaluate(evaluator, is_shown)
            except MissingTextError as error:
                if self.config.tasks != "auto":
                    raise
                log.log(level, "skipped     %s", error.reason)
                continue
            update = {
                "signature": self._signatures[task],
                "weights": self._weights,
                "weights_folder": self._weights_folder,
            }
            results[task] = result = result.model_copy(update=update)
            if self.share.rank == 0:
                file = self._get_file(task)
                write_result(file, result)
                log.log(level, "%-14s %.1f s, %s", evaluator.name, result.seconds, file.name)
        if self.share.rank == 0:
            self._update_model_card()
        return [results[task] for task in self.tasks if task in results]

    def _evaluate(self, evaluator: Evaluator, has_progress: bool) -> TaskResult:
        if not has_progress:
            return evaluate_task(evaluator, self.subject, self.settings)
        subject = self.subject  # loading has messages of its own
        with EvaluationProgress(evaluator.name) as progress:
            return evaluate_task(evaluator, subject, self.settings, progress.report)

    def find_results(self) -> dict[str, TaskResult]:
        """Returns the results that are there and need not be computed again, by their tasks."""
        return {} if self.again else self.share.run_on_rank0(self._read_results)

    def _read_results(self) -> dict[str, TaskResult]:
        """Returns the results that are there, by their tasks."""
        results = {task: read_result(self._get_file(task), self._signatures[task]) for task in self.tasks}
        return {task: result for task, result in results.items() if result is not None}

    def _get_file(self, task: str) -> Path:
        return get_result_file(self.root, self.evaluators[task].name, self._signatures[task])

    @cached_property
    def _signatures(self) -> dict[str, str]:
        return {task: self._compute_signature(evaluator) for task, evaluator in self.evaluators.items()}

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
        return self.compute_model_signature(
            "evaluation", VERSION, evaluator.name, evaluator.identify(self.settings), store
        )

    def compute_model_signature(self, *content: Any) -> str:
        """Returns the signature of what the model makes of `content`, values for JSON."""
        return compute_signature(*content, self._model_hash, self._resolve_precision())

    def _resolve_precision(self) -> str:
        """Returns the precision that changes the scores; auto is fp32 on a CPU, and that of the weights on CUDA."""
        return "fp32" if self.precision == "auto" and self.device.type == "cpu" else self.precision

    @cached_property
    def subject(self) -> Subject:
        """The model, loaded, with its tokens."""
        model = self.files.load(self.device, self.precision)
        return Subject(
            self.files.name, model, self.files.tokenizer, self.store, self.config.max_batch_tokens, self.share
        )
