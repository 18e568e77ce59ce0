"""What is said when there is no answer: RFC 9457 problem details, with pointers into the body."""

from pydantic import Field

from schemas.arrays import Strict


class FieldError(Strict):
    """One thing wrong with one place of the request."""

    pointer: str = Field(description="RFC 6901 pointer into the body, as in `#/geometry/x/3/2`")
    code: str
    message: str


class Failure(Strict):
    """Why a job has no answer, as stored with the job; the gateway adds the HTTP status."""

    code: str
    detail: str
    errors: list[FieldError] = []
    retry: bool = Field(default=False, description="the same question may succeed when asked again")
    incident: str | None = Field(
        default=None, description="number under which the log has the details"
    )


class Problem(Strict):
    """An `application/problem+json` body."""

    type: str = Field(description="`/problems/{code}`: a page that explains this kind of problem")
    title: str
    status: int
    detail: str = Field(description="what was received, what was expected, what to do next")
    instance: str = Field(description="URN of the request, as in the X-Request-ID header")
    errors: list[FieldError] = []
    truncated: bool = Field(default=False, description="more than the listed errors were found")
    total: int | None = Field(default=None, description="number of errors found, when truncated")
    retry: bool = False
    incident: str | None = None
