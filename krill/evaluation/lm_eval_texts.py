"""The text of a document of lm-eval's tasks as a training text would contain it: the question with its answer."""

from __future__ import annotations

from typing import Any


def build_document_text(task: Any, document: Any) -> str | None:
    """Returns the question of `document`, without description and examples, and its right answer.

    `task`: a `Task` of lm-eval. Of several right answers it is the first. None: the task has no text of the answer.
    """
    try:
        question, answer = task.doc_to_text(document), task.doc_to_target(document)
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            return str(answer).strip()
        choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else ()
        if getattr(task, "multiple_input", 0):  # the choices are questions, of which `question` is the index
            question = choices[question]
        if isinstance(answer, (list, tuple)):
            answer = answer[0]
        if isinstance(answer, int):
            answer = choices[answer]
    except Exception:  # whatever the code of the task raises
        return None
    if not isinstance(question, str) or not isinstance(answer, str):
        return None
    is_joined = task.OUTPUT_TYPE == "loglikelihood" or answer[:1].isspace()
    return f"{question}{'' if is_joined else task.get_config('target_delimiter')}{answer}".strip()
