"""Request bodies: bounded, timed, read off the event loop, turned into JSON values with arrays.

application/json               nested lists, base64 or digests
application/vnd.safetensors    tensors named by field (`geometry.x`), the rest as JSON text in
                               the metadata entry `options`
multipart/form-data            a part `request` (JSON) that names other parts, one .npy file
                               each, by {"$tensor": "name"}
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from api import parts
from api.aside import Aside
from api.json_text import NotJson, parse, parse_large
from api.problems import Refusal
from schemas.settings import Settings

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
MULTIPART = "multipart/form-data"
QUESTIONS = (JSON, SAFETENSORS, MULTIPART)
LARGE = 1 << 20  # bytes that are parsed in some ten milliseconds


@dataclass(frozen=True)
class Body:
    """What came: its media type, its bytes, and the JSON value that it stands for."""

    media: str
    raw: bytes
    value: Any

    @property
    def large(self) -> bool:
        """Tell whether working through it would hold up the event loop."""
        return len(self.raw) > LARGE


async def read(request: Request, settings: Settings, aside: Aside) -> Body:
    """Read the body of a question."""
    media, options = media_of(request, QUESTIONS)
    limit = settings.json_limit if media == JSON else settings.upload_limit
    raw = await receive(request, limit, settings.body_timeout_s)
    if media == JSON:
        return Body(media, raw, await json_value(raw, aside))
    try:
        if media == SAFETENSORS:
            value = await asyncio.to_thread(parts.from_safetensors, raw)
        else:
            value = await asyncio.to_thread(parts.from_multipart, raw, options)
    except parts.Unreadable as error:
        raise Refusal(error.code, str(error)) from None
    except NotJson as error:
        raise Refusal("invalid-json", str(error)) from None
    return Body(media, raw, value)


async def json_value(raw: bytes, aside: Aside) -> Any:
    """Read JSON: at once when small, aside when large."""
    try:
        return parse(raw) if len(raw) <= LARGE else await aside.run(parse_large, raw)
    except NotJson as error:
        raise Refusal("invalid-json", str(error)) from None


def media_of(request: Request, known: tuple[str, ...]) -> tuple[str, dict[bytes, bytes]]:
    """Read Content-Type and refuse what is not read here.

    Raises:
        Refusal: unsupported-media-type, listing what is understood.
    """
    coding = request.headers.get("content-encoding", "identity").lower()
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    media = kind.decode("latin-1").lower()
    charset = options.get(b"charset", b"utf-8").lower()
    if coding != "identity":
        raise Refusal("unsupported-media-type", f"compressed bodies ({coding[:40]}) are not read")
    if media not in known or charset not in (b"utf-8", b"utf8", b"us-ascii"):
        got = request.headers.get("content-type", "no Content-Type")
        raise Refusal(
            "unsupported-media-type", f"received {got[:100]}; this address reads {', '.join(known)}"
        )
    return media, options


async def receive(request: Request, limit: int, patience_s: float) -> bytes:
    """Collect a body, counting; refuse as soon as it is known to be too long, or too slow."""
    announced = request.headers.get("content-length")
    if announced is None and "transfer-encoding" not in request.headers:
        raise Refusal("length-required", "the request has no body")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    chunks, size = list[bytes](), 0
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(patience_s) as alarm:
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                alarm.reschedule(loop.time() + patience_s)
    except TimeoutError:
        raise Refusal(
            "body-timeout", f"nothing came for {patience_s:g} s", headers={"Connection": "close"}
        ) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        "payload-too-large",
        f"bodies of this kind may have {limit} bytes; send large arrays as binary to /v1/arrays",
        headers={"Connection": "close"},
    )
