"""One job from claim to finish, and the name of every way to fail."""

import logging
import time
import uuid

import orjson
import torch
from pydantic import ValidationError
from redis.exceptions import RedisError

from algorithms.errors import IllPosed
from schemas.problems import Failure
from workers.answer import batch, solve
from workers.bind import NotFinite
from workers.desk import Attempt, Desk, Outcome
from workers.failures import problem_of
from workers.gradient import vjp
from workers.port import Claim
from workers.pulse import Pulse
from workers.render import render

log = logging.getLogger("brenier.worker")
FINISH_FOR_S = 120.0
KINDS: dict[str, Attempt] = {"solve": solve, "batch": batch, "vjp": vjp, "render": render}


def perform(desk: Desk, job: str) -> None:
    """Take a job, answer it, store the answer; do nothing when it is not there to take."""
    claim = desk.store.do(desk.ledger.claim(job, desk.worker))
    if claim is None:
        return
    with desk.heart.beating(Pulse(desk.settings, desk.store, claim)) as pulse:
        outcome = _attempt(desk, claim, pulse)
        if pulse.reason == "cancelled":
            outcome = Outcome("cancelled")
        _finish(desk, claim, outcome)


def _attempt(desk: Desk, claim: Claim, pulse: Pulse) -> Outcome:
    try:
        return KINDS[claim.kind](desk, claim, pulse)
    except Exception as error:  # the one place that catches everything
        return Outcome("failed", failure=explain(error, claim.id))


def _finish(desk: Desk, claim: Claim, outcome: Outcome) -> None:
    call = desk.ledger.finish(
        claim,
        outcome.status,
        result=outcome.result,
        arrays=outcome.arrays,
        failure=outcome.failure,
        warnings=orjson.dumps(outcome.warnings),
    )
    until = time.monotonic() + FINISH_FOR_S
    while True:
        try:
            if not desk.store.do(call):
                log.warning("job %s: lease lost, the answer of this attempt is dropped", claim.id)
            return
        except RedisError as error:
            if time.monotonic() > until:
                log.error("job %s: store away for too long: %s", claim.id, error)
                return
            time.sleep(0.5)


def explain(error: Exception, job: str) -> Failure:
    """Give a failure its name: a problem of the question, of capacity, or a fault of ours."""
    if isinstance(error, IllPosed | NotFinite):
        return problem_of(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _host_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Failure(code="out-of-memory", detail=str(error)[:500], retry=True)
    if isinstance(error, ValidationError) and _expired(error):
        return Failure(code="result-expired", detail="an input of the question has expired")
    incident = uuid.uuid4().hex
    log.error("incident %s in job %s", incident, job, exc_info=error)
    detail = "an error of the service, not of the question"
    return Failure(code="internal", detail=detail, retry=True, incident=incident)


def _host_memory(error: Exception) -> bool:
    """Recognise torch's CPU allocator, which has no exception of its own."""
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _expired(error: ValidationError) -> bool:
    return any(e["type"] in ("no-such-array", "no-such-dataset") for e in error.errors())
