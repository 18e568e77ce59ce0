"""What mathematics may say of a question: it has no answer, or its answer needs a caution."""

from dataclasses import dataclass


class IllPosed(ValueError):
    """The question has no answer as asked; `field` names the input at fault in dotted form.

    `code` is the problem type that the caller sees: `infeasible-problem` unless a narrower one
    fits.
    """

    def __init__(self, field: str, reason: str, *, code: str = "infeasible-problem") -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.code = code


@dataclass(frozen=True)
class Caution:
    """A warning that travels with an answer: a stable code, what was seen, what to try."""

    code: str
    message: str
    hint: str
