"""Generates for all requests in one thread: it takes them from a queue, and posts what each step adds.

The event loop of the server submits generations and iterates over the `RequestStream` of their pieces; the thread
calls nothing of the loop but `call_soon_threadsafe`.
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
    """The text and scores that a step added to one answer to a request."""

    index: int
    text: str
    scores: list[TokenScore]
    """The scores of the tokens since the last piece, eos included, if the generation is scored."""
    finish_reason: FinishReason | None
    """Set in the last piece of an answer."""


class RequestStream:
    """The generations of one request; iterate over it for their pieces, in the order in which they are generated."""

    def __init__(self, generations: Sequence[Generation], loop: asyncio.AbstractEventLoop):
        self.generations = list(generations)
        self.is_started = False
        """Whether its first token has been generated."""
        self._has_failed = False
        self._loop = loop
        self._pieces: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self._index = {id(generation): index for index, generation in enumerate(self.generations)}
        self._num_scores = [0] * len(self.generations)

    @property
    def is_finished(self) -> bool:
        """Whether all its generations have ended, or an error has ended it."""
        return self._has_failed or all(generation.finish_reason for generation in self.generations)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        remaining = len(self.generations)
        while remaining:
            piece = await self._pieces.get()
            if isinstance(piece, ApiError):
                raise piece
            remaining -= piece.finish_reason is not None
            yield piece

    def post(self, piece: Piece | ApiError) -> None:
        """Hands a piece, or the error that ends the stream, to the event loop; called by the worker's thread."""
        self._has_failed |= isinstance(piece, ApiError)
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
        """`build_engine`: called again after an engine has failed."""
        self._build_engine, self._max_queue = build_engine, max_queue
        self._engine = build_engine()
        self._condition = threading.Condition()
        self._new: list[RequestStream] = []
        self._cancelled: list[RequestStream] = []
        self._owners: dict[int, RequestStream] = {}
        self._streams: set[RequestStream] = set()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="krill-generation", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it accepts requests."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def active(self) -> int:
        """Number of answers that are being generated."""
        return self._engine.active

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their first token."""
        return sum(not stream.is_started for stream in tuple(self._streams))

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Ends all streams at the next token with status 503, and the thread; `timeout` 0 does not wait for it."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if timeout != 0 and self._thread.is_alive():
            self._thread.join(timeout)

    def submit(self, generations: Sequence[Generation]) -> RequestStream:
        """Returns the stream of `generations`; called in the event loop.

        Raises ApiError if the queue is full or the server stops.
        """
        stream = RequestStream(generations, asyncio.get_running_loop())
        with self._condition:
            if not self.is_alive:
                raise _stopping_error()
            unfinished = sum(
                not generation.finish_reason for other in self._streams for generation in other.generations
            )
            # Alone, a request may have more answers than the batch has room for.
            has_room = not unfinished or unfinished + len(generations) <= self._engine.max_batch_size
            if not has_room and self.waiting >= self._max_queue:
                raise ApiError(
                    429,
                    f"the queue is full: {self.waiting} requests wait; try again",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": "1"},
                )
            self._streams.add(stream)
            self._new.append(stream)
            self._condition.notify()
        return stream

    def cancel(self, stream: RequestStream) -> None:
        """Ends a stream at the next token; does nothing if it has ended."""
        with self._condition:
            if stream in self._streams:
                self._cancelled.append(stream)
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
        """Hands new generations to the engine, and takes cancelled ones from it."""
        with self._condition:
            new, cancelled = self._new, self._cancelled
            self._new, self._cancelled = [], []
        for stream in new:
            for generation in stream.generations:
                self._owners[id(generation)] = stream
                self._engine.add(generation)
        for stream in cancelled:
            for generation in stream.generations:
                self._engine.cancel(generation)
            self._forget(stream)

    def _post(self, progress: Sequence[Progress]) -> None:
        changed: set[RequestStream] = set()
        for item in progress:
            stream = self._owners.get(id(item.generation))
            if stream is not None:
                stream.is_started = True
                stream.post(stream.build_piece(item))
                changed.add(stream)
        for stream in changed:
            if stream.is_finished:
                self._forget(stream)

    def _forget(self, stream: RequestStream) -> None:
        for generation in stream.generations:
            self._owners.pop(id(generation), None)
        with self._condition:
            self._streams.discard(stream)

    def _fail(self, error: Exception) -> None:
        """Ends all streams with an error, and continues with a new engine."""
        if isinstance(error, KrillError):
            log.error("generation  %s", error)
            self._end_all(ApiError(503, str(error)))
        else:
            log.error("generation  failed", exc_info=error)
            self._end_all(ApiError(500, f"generation failed: {type(error).__name__}; see the server's log"))
        self._engine = self._build_engine()

    def _end_all(self, error: ApiError) -> None:
        with self._condition:
            streams, self._streams = self._streams, set()
            self._new, self._cancelled = [], []
        self._owners.clear()
        for stream in streams:
            stream.post(error)


def _stopping_error() -> ApiError:
    return ApiError(503, "the server is shutting down")
