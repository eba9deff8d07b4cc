"""Shows the progress of a batch, and a summary."""

from __future__ import annotations

import logging
from collections import Counter

from krill.inference.batch import Answer
from krill.inference.count_progress import CountProgress

log = logging.getLogger("krill")


class BatchProgress:
    """Counts the answers; a context manager that displays them."""

    def __init__(self, total: int, done: int):
        self._total, self._done, self._new_tokens = total, done, 0
        self._reasons: Counter[str] = Counter()
        self._progress = CountProgress("answers")

    def __enter__(self) -> BatchProgress:
        self._progress.start(self._done, self._total)
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        if error == (None, None, None):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self._reasons.most_common())
            log.info("answers     %s; %s", self._describe(), reasons or "all were there")

    def report(self, answer: Answer) -> None:
        """Counts an answer."""
        self._done += 1
        self._new_tokens += answer.answer_tokens
        self._reasons[answer.finish_reason] += 1
        text = self._describe()
        self._progress.show(self._done, self._total, text, f"answers     {text}")

    def _describe(self) -> str:
        rate = self._new_tokens / self._progress.seconds
        return f"{self._done:,} of {self._total:,}, {rate:,.0f} tokens/s"
