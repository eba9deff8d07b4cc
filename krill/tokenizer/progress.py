"""The progress bar of the training of a tokenizer, on a terminal: the text read, then the time of learning."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from krill.terminal import start_progress_bar


class TokenizerProgress:
    """Context manager that displays the progress; without a terminal it does nothing.

    The trainers do not report how much they have learned: the bar pulses until they end.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._bar: Progress | None = None

    def __enter__(self) -> TokenizerProgress:
        columns = (BarColumn(), TextColumn("{task.fields[work]}"), TimeElapsedColumn())
        self._bar = start_progress_bar("tokenizer", *columns, is_transient=True)
        if self._bar:
            self._task = self._bar.add_task("", total=None, work="reading")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def show_reading(self, documents: int, text_bytes: int) -> None:
        """Displays the documents and bytes of text that were read so far."""
        if self._bar:
            self._bar.update(self._task, work=f"reading: {documents:,} documents, {text_bytes / 1e6:.1f} MB")

    def show_learning(self) -> None:
        """Displays that all text was read."""
        if self._bar:
            self._bar.update(self._task, work=f"learning {self._vocab_size:,} entries")
