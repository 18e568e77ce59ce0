"""Check the annotated axes of a function in its first calls, anew in each test.

One check costs as much as many a small function itself; the first few calls of a test tell what
the thousandth would.
"""

import sys
from collections import Counter
from collections.abc import Callable
from functools import reduce
from inspect import getattr_static
from typing import Any

from beartype import beartype

CALLS = 8
_calls: Counter[tuple[str, str]] = Counter()
_spared: list[Any] = []


def first_calls(check: Callable[..., Any]) -> Callable[..., Any]:
    """Check types as beartype does, until a function was called so often in one test."""
    checked, home = beartype(check), (check.__module__, check.__qualname__)

    def counted(*args: Any, **kwargs: Any) -> Any:
        _calls[home] += 1
        if _calls[home] == CALLS and "<locals>" not in home[1]:
            found = reduce(getattr_static, home[1].split("."), sys.modules[home[0]])
            function = found.fget if isinstance(found, property) else found
            function.__no_type_check__ = True  # jaxtyping then passes the call on
            _spared.append(function)
        return checked(*args, **kwargs)

    return counted


def check_again() -> None:
    """Check every function anew: a test begins."""
    _calls.clear()
    while _spared:
        _spared.pop().__no_type_check__ = False
