"""Defines the error that a client gets as the JSON object of OpenAI's API."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.content: dict[str, Any] = {
            "error": {"message": message, "type": _get_type(status), "param": param, "code": code}
        }
        """The body of the answer."""


def _get_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
