"""Which representation to send: the Accept header against what there is (RFC 9110, 12.5.1)."""

from collections.abc import Sequence

from api.problems import Refusal

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
NPZ = "application/x-npz"
NPY = "application/x-npy"
H5AD = "application/x-hdf5"
RENDERS = {"png": "image/png", "svg": "image/svg+xml", "h5ad": H5AD}


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """Pick the media type that the client likes best; among equals the one offered first.

    Raises:
        Refusal: not-acceptable, listing what there is.
    """
    if not accept:
        return offered[0]
    wishes = [_wish(part) for part in accept.split(",")[:64]]
    best, liked = offered[0], 0.0
    for media in offered:
        quality = _quality(media, wishes)
        if quality > liked:
            best, liked = media, quality
    if liked == 0.0:
        raise unacceptable(accept, offered)
    return best


def unacceptable(accept: str, offered: Sequence[str], why: str = "") -> Refusal:
    """Refuse, and list what could have been had."""
    text = why or f"nothing here is {accept[:100]}"
    return Refusal(
        "not-acceptable", f"{text}; available: {', '.join(offered)}", headers={"Vary": "Accept"}
    )


def _wish(part: str) -> tuple[str, float]:
    media, *parameters = (p.strip().lower() for p in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return media, _number(value)
    return media, 1.0


def _number(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


def _quality(media: str, wishes: Sequence[tuple[str, float]]) -> float:
    """Return the quality of the most specific wish that fits."""
    fits = ("*/*", media.split("/")[0] + "/*", media)
    found = [(fits.index(wish), quality) for wish, quality in wishes if wish in fits]
    return max(found, default=(0, 0.0))[1]
