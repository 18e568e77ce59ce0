"""Requests to the service: one place where answers become problems."""

import ipaddress
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from brenier.errors import Unreachable, problem_of

JSON = "application/json"
NPY = "application/x-npy"
NPZ = "application/x-npz"
PATIENCE_S = 60.0  # beyond what the service was asked to wait
CONNECT_S = 10.0


class Wire:
    """A connection pool to one service; safe to share between threads."""

    def __init__(
        self, url: str, key: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        """Connect to nothing yet."""
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            transport=transport or httpx.HTTPTransport(retries=1),
            trust_env=not _is_loopback(self.url),  # a proxy does not know this machine's services
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> httpx.Response:
        """Send one request and return its answer.

        Raises:
            ProblemError: the service answered with an error status.
            Unreachable: it did not answer.
        """
        try:
            response = self._http.request(
                method,
                path,
                content=content,
                headers=headers,
                params=params,
                timeout=httpx.Timeout(PATIENCE_S + wait_s, connect=CONNECT_S),
            )
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(
                f"no answer from {self.url} ({reason}): is it running? `brenier up` starts it"
            ) from error
        if response.status_code >= 400:
            raise problem_of(response)
        return response

    def knows(self, path: str) -> bool:
        """Tell whether a resource exists."""
        try:
            return self._http.head(path, timeout=PATIENCE_S).status_code == 200
        except httpx.TransportError:
            return False  # the request that follows says what is wrong


def as_json(body: Any) -> bytes:
    """Write a body; NaN is left in it so that the service can say where it stands."""
    return json.dumps(body, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a question: {value!r:.80}")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
