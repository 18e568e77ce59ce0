"""What mathematics may say about a question: it has no answer, or the answer needs a word of caution."""

from dataclasses import dataclass


class IllPosed(ValueError):
    """The question has no answer as asked; `field` names the input at fault in dotted form.

    `code` is the problem type that the caller sees; `infeasible-problem` unless a narrower one fits.
    """

    def __init__(self, field: str, reason: str, *, code: str = "infeasible-problem") -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.code = code


@dataclass(frozen=True)
class Caution:
    """A warning that travels with an answer: a stable code, what was seen, and what to try (with numbers)."""

    code: str
    message: str
    hint: str
