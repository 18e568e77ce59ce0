"""Who asks: API keys, of which the gateway knows the SHA-256 only."""

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import Refusal, respond
from schemas.settings import Settings

PUBLIC = "public"
GUARDED = ("/v1/", "/metrics")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Keys:
    """Lets requests under `/v1` pass that carry a known key, and notes whose it is.

    A fast hash is right for keys of high entropy; keys are compared in constant time, and all of
    them, so that time tells nothing.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap an application."""
        self._app = app
        self._keys = [(t, bytes.fromhex(d)) for t, d in settings.api_keys.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            tenant = self._tenant(scope)
            if tenant is None:
                await respond(_refusal(), scope["state"]["request_id"])(scope, receive, send)
                return
            scope["state"]["tenant"] = tenant
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str | None:
        if not self._keys or not scope["path"].startswith(GUARDED):
            return PUBLIC
        return self._owner(_key(Headers(scope=scope)))

    def _owner(self, key: str) -> str | None:
        digest = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        found = [tenant for tenant, known in self._keys if hmac.compare_digest(known, digest)]
        return found[0] if found else None


def check_exposed(settings: Settings) -> None:
    """Refuse to serve the world without keys.

    Raises:
        ValueError: when the gateway would listen beyond loopback and nobody needs a key.
    """
    if settings.host not in LOOPBACK and not settings.api_keys and not settings.insecure:
        raise ValueError(
            f"refusing to listen on {settings.host} without API keys: set BRENIER_API_KEYS, or "
            "BRENIER_INSECURE=1 if something in front checks who asks"
        )


def _key(headers: Headers) -> str:
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credential.strip()
    return headers.get("x-api-key", "")


def _refusal() -> Refusal:
    return Refusal(
        "unauthorized",
        "send a known key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
        headers={"WWW-Authenticate": 'Bearer realm="brenier"'},
    )
