"""One thread that generates for all requests: it takes them from a queue, and posts what each step adds.

The event loop of the server submits a `Job` and iterates over its pieces; the thread calls nothing of the loop but
`call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from krill.errors import KrillError
from krill.inference.engine import FinishReason, Generation, GenerationEngine, Progress
from krill.inference.token_scores import TokenScore
from krill.serving.errors import ApiError

log = logging.getLogger("krill")


@dataclass(frozen=True)
class Piece:
    """What was added to one answer of a job."""

    index: int
    text: str
    scores: list[TokenScore]
    """Of the tokens since the last piece, if the generation is scored; that of eos included."""
    finish_reason: FinishReason | None
    """Set in the last piece of an answer."""


class Job:
    """The generations of one request; iterate over it for their pieces, in the order in which they are generated."""

    def __init__(self, generations: Sequence[Generation], loop: asyncio.AbstractEventLoop):
        self.generations = list(generations)
        self.is_started = False
        """Whether its first token has been generated."""
        self._loop = loop
        self._pieces: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self._index = {id(generation): index for index, generation in enumerate(self.generations)}
        self._num_scores = [0] * len(self.generations)

    @property
    def is_finished(self) -> bool:
        """Whether all its generations have ended."""
        return all(generation.finish_reason for generation in self.generations)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        remaining = len(self.generations)
        while remaining:
            piece = await self._pieces.get()
            if isinstance(piece, ApiError):
                raise piece
            remaining -= piece.finish_reason is not None
            yield piece

    def post(self, piece: Piece | ApiError) -> None:
        """Hands a piece, or the error that ends the job, to the event loop; called by the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the loop is closed, so nobody waits for the piece
            return

    def build_piece(self, progress: Progress) -> Piece:
        """Returns the piece of what a step added."""
        generation = progress.generation
        index = self._index[id(generation)]
        scores = generation.scores[self._num_scores[index] :]
        self._num_scores[index] += len(scores)
        if generation.eos_score is not None:
            scores.append(generation.eos_score)
        return Piece(index, progress.text, scores, generation.finish_reason)


class GenerationWorker:
    """Drives an engine in a thread of its own between `start` and `stop`."""

    def __init__(self, build_engine: Callable[[], GenerationEngine], max_queue: int):
        """`build_engine`: called again when an engine has failed."""
        self._build_engine, self._max_queue = build_engine, max_queue
        self._engine = build_engine()
        self._condition = threading.Condition()
        self._new: list[Job] = []
        self._cancelled: list[Job] = []
        self._owners: dict[int, Job] = {}
        self._jobs: set[Job] = set()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="krill-generation", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it accepts jobs."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def active(self) -> int:
        """Number of answers that are being generated."""
        return self._engine.active

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their first token."""
        return sum(not job.is_started for job in tuple(self._jobs))

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Ends all jobs at the next token with status 503, and the thread; `timeout` 0 does not wait for it."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if timeout != 0 and self._thread.is_alive():
            self._thread.join(timeout)

    def submit(self, generations: Sequence[Generation]) -> Job:
        """Returns the job of `generations`; called in the event loop.

        Raises ApiError if the queue is full or the server stops.
        """
        job = Job(generations, asyncio.get_running_loop())
        with self._condition:
            if not self.is_alive:
                raise _stopping_error()
            unfinished = sum(
                not generation.finish_reason for other in self._jobs for generation in other.generations
            )
            has_room = unfinished + len(generations) <= self._engine.max_batch_size
            if not has_room and self.waiting >= self._max_queue:
                raise ApiError(
                    429,
                    f"the queue is full: {self.waiting} requests wait; try again",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": "1"},
                )
            self._jobs.add(job)
            self._new.append(job)
            self._condition.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Ends a job at the next token; does nothing if it has ended."""
        with self._condition:
            if job in self._jobs:
                self._cancelled.append(job)
                self._condition.notify()

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._apply_changes()
                self._post(self._engine.step())
            except Exception as error:  # one request must not end the server
                self._fail(error)
        self._end_all(_stopping_error())

    def _wait_for_work(self) -> bool:
        """Returns whether to continue."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._new or self._cancelled or self._engine.is_busy or self._is_stopping
            )
            return not self._is_stopping

    def _apply_changes(self) -> None:
        """Hands new jobs to the engine, and takes cancelled ones from it."""
        with self._condition:
            new, cancelled = self._new, self._cancelled
            self._new, self._cancelled = [], []
        for job in new:
            for generation in job.generations:
                self._owners[id(generation)] = job
                self._engine.add(generation)
        for job in cancelled:
            for generation in job.generations:
                self._engine.cancel(generation)
            self._forget(job)

    def _post(self, progress: Sequence[Progress]) -> None:
        changed: set[Job] = set()
        for item in progress:
            job = self._owners.get(id(item.generation))
            if job is not None:
                job.is_started = True
                job.post(job.build_piece(item))
                changed.add(job)
        for job in changed:
            if job.is_finished:
                self._forget(job)

    def _forget(self, job: Job) -> None:
        for generation in job.generations:
            self._owners.pop(id(generation), None)
        with self._condition:
            self._jobs.discard(job)

    def _fail(self, error: Exception) -> None:
        """Ends all jobs with an error, and continues with a new engine."""
        if isinstance(error, KrillError):
            log.error("generation  %s", error)
            self._end_all(ApiError(503, str(error)))
        else:
            log.error("generation  failed", exc_info=error)
            self._end_all(ApiError(500, f"generation failed: {type(error).__name__}; see the server's log"))
        self._engine = self._build_engine()

    def _end_all(self, error: ApiError) -> None:
        with self._condition:
            jobs, self._jobs = self._jobs, set()
            self._new, self._cancelled = [], []
        self._owners.clear()
        for job in jobs:
            job.post(error)


def _stopping_error() -> ApiError:
    return ApiError(503, "the server is shutting down")
