"""Counts what a server does, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histogram of durations, in seconds."""


class Metrics:
    """Counters of requests; all its methods are called in the event loop."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._durations: Counter[float] = Counter()
        self._sum_of_durations = 0.0
        self.prompt_tokens = 0
        """Number of tokens of the prompts of answered requests."""
        self.answer_tokens = 0
        """Number of tokens of the answers."""
        self.disconnects = 0
        """Number of requests whose client hung up before the answer was complete."""

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that has been answered with `status`."""
        self._requests[path, status] += 1
        self._durations[next((bound for bound in BUCKETS if seconds <= bound), float("inf"))] += 1
        self._sum_of_durations += seconds

    def count_usage(self, usage: Mapping[str, int]) -> None:
        """Counts the tokens of a request."""
        self.prompt_tokens += usage["prompt_tokens"]
        self.answer_tokens += usage["completion_tokens"]

    def format(self, active: int, waiting: int) -> str:
        """Returns the text of /metrics; `active` answers are being generated, `waiting` requests are queued."""
        lines = [
            "# HELP krill_requests_total Answered requests.",
            "# TYPE krill_requests_total counter",
            *(
                f'krill_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ),
        ]
        for name, kind, text, value in (
            ("prompt_tokens_total", "counter", "Tokens of the prompts.", self.prompt_tokens),
            ("answer_tokens_total", "counter", "Tokens of the answers.", self.answer_tokens),
            ("disconnects_total", "counter", "Requests whose client hung up.", self.disconnects),
            ("active_answers", "gauge", "Answers that are being generated.", active),
            ("waiting_requests", "gauge", "Requests in the queue.", waiting),
        ):
            lines += [f"# HELP krill_{name} {text}", f"# TYPE krill_{name} {kind}", f"krill_{name} {value}"]
        return "\n".join([*lines, *self._format_durations()]) + "\n"

    def _format_durations(self) -> list[str]:
        name, total = "krill_request_duration_seconds", 0
        lines = [f"# HELP {name} Time from a request to the end of its answer.", f"# TYPE {name} histogram"]
        for bound in (*BUCKETS, float("inf")):
            total += self._durations[bound]
            lines.append(f'{name}_bucket{{le="{"+Inf" if bound == float("inf") else bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum_of_durations:.6f}", f"{name}_count {total}"]
