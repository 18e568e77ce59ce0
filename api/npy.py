"""The .npy format, read without trusting it: nothing is allocated before the sizes agree.

References:
    https://numpy.org/neps/nep-0001-npy-format.html
"""

import io
import math
import re

import numpy as np
from numpy.typing import NDArray

from schemas.facts import DTYPES, MAX_DEPTH

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096
_DESCR = re.compile(r"'descr'\s*:\s*'([<>|=]?[a-zA-Z]\d*)'")
_ORDER = re.compile(r"'fortran_order'\s*:\s*(True|False)")
_SHAPE = re.compile(r"'shape'\s*:\s*\(([\d\s,]*)\)")


class NotNpy(ValueError):
    """The bytes are not an array that we read; the message is for the sender."""


def parse(raw: bytes) -> NDArray[np.generic]:
    """Read a .npy file; plain number types only, so pickles are refused."""
    dtype, shape, fortran, start = head(raw)
    wanted, got = math.prod(shape) * dtype.itemsize, len(raw) - start
    if wanted != got:
        raise NotNpy(f"the header announces {wanted} bytes of entries, {got} follow")
    flat = np.frombuffer(raw, dtype=dtype, offset=start)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    if dtype.byteorder == ">":
        array = array.astype(dtype.newbyteorder("<"))
    return np.ascontiguousarray(array) if fortran else array


def head(raw: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], bool, int]:
    """Read the header: element type, shape, whether columns come first, where entries begin."""
    if raw[:6] != MAGIC or len(raw) < 10:
        raise NotNpy("not a .npy file: it begins otherwise")
    width = 2 if raw[6] == 1 else 4
    size = int.from_bytes(raw[8 : 8 + width], "little")
    start = 8 + width + size
    if raw[6] not in (1, 2, 3) or size > MAX_HEADER or start > len(raw):
        raise NotNpy("the .npy header is damaged")
    text = raw[8 + width : start].decode("utf-8", "replace")
    descr, order, shape = _DESCR.search(text), _ORDER.search(text), _SHAPE.search(text)
    if descr is None or order is None or shape is None:
        raise NotNpy("the .npy header describes no array of plain numbers")
    return _dtype(descr[1]), _sizes(shape[1]), order[1] == "True", start


def write(array: NDArray[np.generic]) -> bytes:
    """Write a .npy file."""
    return _header(array.dtype, array.shape) + array.tobytes()


def size(dtype: str, shape: list[int]) -> int:
    """Tell how long the .npy file of an array is."""
    kind = np.dtype(dtype)
    return len(_header(kind, tuple(shape))) + math.prod(shape) * kind.itemsize


def _header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.replace(",", " ").split()
    if len(sizes) > MAX_DEPTH or any(len(size) > 18 for size in sizes):
        raise NotNpy(f"the .npy header announces more than {MAX_DEPTH} axes, or a huge one")
    return tuple(map(int, sizes))


def _dtype(descr: str) -> np.dtype[np.generic]:
    try:
        dtype = np.dtype(descr)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in DTYPES:
        raise NotNpy(f"element type {descr} is not one of {', '.join(DTYPES)}")
    return dtype
