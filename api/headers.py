"""What every answer carries, whoever made it: request id, security headers; faults become problems.

A plain ASGI middleware around everything: it sees the first and the last byte of each answer.
"""

import logging
import re
import secrets
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Refusal, respond

log = logging.getLogger("brenier.gateway")
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
NOTHING_ELSE = b"default-src 'none'; frame-ancestors 'none'"
SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Traffic:
    """Count requests by route, method and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Announce the two metrics."""
        labels = ("method", "route", "status")
        self.requests = Counter("http_requests", "Requests answered.", labels, registry=registry)
        self.seconds = Histogram(
            "http_request_seconds", "Time to the last byte.", ("route",), buckets=BUCKETS,
            registry=registry,
        )  # fmt: skip

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Take note of one answer; unknown addresses share one label."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if route != "none" else "any"
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)


class Edge:
    """The outermost layer of the gateway."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        """Wrap an application."""
        self._app, self._traffic = app, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, headless = _request_id(scope), scope["method"] == "HEAD"
        scope = {**scope, "method": "GET" if headless else scope["method"]}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "head": headless}
        answer = _Answer(send, request_id, headless)
        began = time.perf_counter()
        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            log.info("request %s: the client went away", request_id)
        except Exception:  # a bug: the log has it, the caller gets its number
            if answer.status:
                raise
            await respond(_fault(request_id), request_id)(scope, receive, answer)
        finally:
            self._traffic.count(scope, answer.status, time.perf_counter() - began)


class _Answer:
    """Passes an answer on, with headers added; HEAD gets no body."""

    def __init__(self, send: Send, request_id: str, headless: bool) -> None:
        self._send, self._id, self._headless = send, request_id.encode(), headless
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._decorate(message)
        elif self._headless:
            message = {**message, "body": b""}
        await self._send(message)

    def _decorate(self, message: MutableMapping[str, Any]) -> None:
        headers = [*message.get("headers", ()), (b"x-request-id", self._id), *SECURITY]
        if not any(name == b"content-security-policy" for name, _ in headers):
            headers.append((b"content-security-policy", NOTHING_ELSE))
        message["headers"] = headers


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if REQUEST_ID.fullmatch(text) else uuid.uuid4().hex
    return uuid.uuid4().hex


def _fault(request_id: str) -> Refusal:
    incident = secrets.token_hex(6)
    log.exception("incident %s in request %s", incident, request_id)
    return Refusal(
        "internal", f"a fault of the service; the log has it under {incident}", incident=incident
    )
