"""Evaluates the model in training on tasks, as krill-evaluate does its checkpoints, every evaluation.every steps."""

from __future__ import annotations

import logging
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from krill.config.paths import relative_path
from krill.errors import UsageError, get_first_line
from krill.evaluation.evaluator import EvaluationSettings, Evaluator, MissingTextError
from krill.evaluation.rank_share import EvaluationError, RankShare
from krill.evaluation.results import TaskResult
from krill.evaluation.score_metrics import check_best_metric, list_metrics
from krill.evaluation.subject import Subject
from krill.resources import release_heap, release_memory
from krill.runs.json_lines import EVALUATION_SECONDS, read_evaluations
from krill.training import ranks
from krill.training.callbacks.signals import EvaluationInterrupted, StopOnSignal
from krill.training.compute.device import BF16_PRECISIONS
from krill.training.compute.evaluation_mode import evaluation_mode
from krill.training.setup import RunSetup
from krill.training.trainer import KrillTrainer

log = logging.getLogger("krill")


class TaskEvaluation(TrainerCallback):
    """Evaluates on all ranks and logs the scores; training continues with the same bytes.

    A signal interrupts an evaluation; the resumed run starts with what is due and not in metrics.jsonl.

    Raises UsageError for a best_metric that the tasks do not measure.
    """

    def __init__(self, setup: RunSetup, trainer: KrillTrainer, stop: StopOnSignal):
        self.setup, self.trainer, self.stop = setup, trainer, stop
        self.config = setup.config.evaluation
        self.evaluators = _find_evaluators(setup) if self.config.every else []
        self.subject: Subject | None = None
        self.seconds = 0.0
        self.last_step = 0
        """The step of the last evaluation that this process began; one that failed is not repeated."""
        self.last_results: tuple[int, list[TaskResult]] = (0, [])
        """The step of the last evaluation of this process, and its results."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.started_at = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_evaluate |= self._is_due(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.seconds:
            share = self.seconds / (time.perf_counter() - self.started_at)
            log.info(
                "evaluation  took %.0f s, %.1f %% of the time of the training", self.seconds, 100 * share
            )

    def get_final_results(self, step: int) -> list[TaskResult]:
        """Returns the results of `step`, the last one, if the exported model has the weights that were evaluated."""
        is_rounded = self.setup.precision in BF16_PRECISIONS and self.trainer.is_fsdp_enabled
        is_same = (
            not is_rounded and self.setup.precision != "fp8" and self.setup.config.export_dtype == "fp32"
        )
        return self.last_results[1] if is_same and self.last_results[0] == step else []

    def evaluate_if_due(self) -> None:
        """Evaluates at the current step if that is due and has not been done, also by a process that was killed.

        Logs the scores, or why there are none. A signal makes the training save and stop.
        """
        state, control = self.trainer.state, self.trainer.control
        step = state.global_step
        if not self._is_due(state) or step == self.last_step or self._is_evaluated(step):
            return
        self.last_step = step
        started_at = time.perf_counter()
        release_heap()
        try:
            with self.trainer.throughput.pause(), evaluation_mode(self.trainer.model):
                results = self._score_tasks()
        except EvaluationInterrupted:
            control.should_save = control.should_training_stop = True
            return
        except Exception as error:
            if ranks.get_world_size() > 1 and not isinstance(error, (EvaluationError, UsageError)):
                raise  # the other ranks may wait for this one
            log.warning("evaluation  failed at step %d: %s", state.global_step, get_first_line(error))
            self.subject = None
            release_memory()
            return
        self.last_results = (state.global_step, results)
        seconds = time.perf_counter() - started_at
        self.seconds += seconds
        self.trainer.log({**list_metrics(results), EVALUATION_SECONDS: round(seconds, 2)})

    def _is_due(self, state: TrainerState) -> bool:
        step = state.global_step
        return self.config.every is not None and (step % self.config.every == 0 or step == state.max_steps)

    def _is_evaluated(self, step: int) -> bool:
        evaluations = ranks.on_rank0(lambda: read_evaluations(self.setup.folder))
        return any(line["step"] == step for line in evaluations)

    def _score_tasks(self) -> list[TaskResult]:
        if self.subject is None:
            share = RankShare(
                ranks.get_rank(), ranks.get_world_size(), ranks.all_gather_object, self.stop.interrupt_evaluation,
                self.trainer.is_fsdp_enabled,
            )  # fmt: skip
            name = str(relative_path(self.setup.folder))
            self.subject = Subject(
                name,
                self.trainer.model,
                self.setup.tokenizer,
                self.setup.store,
                self.config.max_batch_tokens,
                share,
            )
        from krill.evaluation.evaluate import evaluate_task

        settings, results = EvaluationSettings.from_config(self.config), []
        for evaluator in list(self.evaluators):
            try:
                results.append(evaluate_task(evaluator, self.subject, settings))
            except MissingTextError as error:
                if self.config.tasks != "auto":
                    raise
                log.info("skipped     %s", error.reason)
                self.evaluators.remove(evaluator)
        return results


def _find_evaluators(setup: RunSetup) -> list[Evaluator]:
    from krill.evaluation.evaluate import choose_tasks, find_evaluators  # with the word lists of the tasks

    tasks = choose_tasks(setup.config.evaluation.tasks, setup.store, setup.tokenizer)
    evaluators = list(find_evaluators(tasks).values())
    check_best_metric(setup.config.best_metric, evaluators)
    return evaluators
