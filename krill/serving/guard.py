"""Checks who uses the server: a client with the API key, and never a web page of another site."""

from __future__ import annotations

import hmac
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers

from krill.serving.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health"})
"""Paths that need no key: the page, which asks for it, and the health check."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Checks the headers of a request."""

    def __init__(self, api_key: str | None, host: str):
        """`host`: the address that the server listens on; only its names are accepted where there is no key."""
        self._api_key = None if api_key is None else api_key.encode()
        self._names = LOOPBACK_NAMES | {host.lower()}

    def check(self, path: str, headers: Headers) -> None:
        """Raises ApiError unless the request is allowed.

        Without a key, a web page could send requests with the user's browser: through a name of its own that leads to
        this machine (DNS rebinding), which the header Host shows, or directly, which Origin shows.
        """
        if self._api_key is None:
            self._check_site(headers)
        elif path not in OPEN_PATHS:
            self._check_key(headers, self._api_key)

    def _check_key(self, headers: Headers, api_key: bytes) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), api_key):
            reason = "wrong API key" if key else "this server needs an API key"
            raise ApiError(
                401,
                f"{reason}; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_site(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if (name := _split_url(f"//{host}")) is None or name.hostname not in self._names:
            raise ApiError(
                403,
                f"Host {host!r} is not a name of this server; to use it under another name, set an API key "
                "(KRILL_API_KEY)",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is None:
            return
        if (site := _split_url(origin)) is None or site.netloc.lower() != host.lower():
            raise ApiError(
                403, f"a page of another site, {origin!r}, may not use this server", code="origin_not_allowed"
            )


def _split_url(url: str) -> SplitResult | None:
    """Returns the parts of a URL, or None if it is not one."""
    try:
        return urlsplit(url)
    except ValueError:
        return None
