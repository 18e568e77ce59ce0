"""How a question that has no answer is told to its asker."""

from algorithms.errors import IllPosed
from schemas.problems import Failure, FieldError
from workers.bind import NotFinite


def problem_of(error: IllPosed | NotFinite) -> Failure:
    """Name what the mathematics refused, or the number that it lost."""
    if isinstance(error, NotFinite):
        return Failure(
            code="numerical-divergence",
            detail=f"{error.field} is not finite; the numbers of the question may be too large or "
            "too far apart for the precision that was asked for",
        )
    pointer = "#/" + error.field.replace(".", "/")
    place = FieldError(pointer=pointer, code=error.code, message=error.reason)
    return Failure(code=error.code, detail=str(error), errors=[place])
