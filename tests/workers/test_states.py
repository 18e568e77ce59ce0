"""The life of a job as a state machine: whatever happens, in whatever order, only legal moves."""

import secrets
from dataclasses import dataclass, field
from typing import ClassVar

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from schemas.settings import Settings
from tests.workers.conftest import Queue
from workers.embedded import EmbeddedStore
from workers.port import Claim, Store

MAX_ATTEMPTS = 2
LEGAL = {
    "queued": {"queued", "running", "cancelled"},
    "running": {"running", "queued", "succeeded", "failed", "cancelled"},
    "succeeded": {"succeeded"},
    "failed": {"failed"},
    "cancelled": {"cancelled"},
}


@dataclass
class Model:
    """What a job should be."""

    status: str = "queued"
    attempt: int = 0
    cancelling: bool = False
    token: str = ""
    seen: list[str] = field(default_factory=lambda: ["queued"])


class Jobs(RuleBasedStateMachine):
    """Submit, claim, beat, lose, reap, finish and cancel at random, beside a model."""

    server: ClassVar[EmbeddedStore]
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        chosen = Settings(
            data_dir=self.server.home,
            namespace=f"m{secrets.token_hex(4)}",
            max_attempts=MAX_ATTEMPTS,
        )
        self.raw = redis.Redis.from_url(chosen.store_url)
        self.queue = Queue(chosen, Store(chosen), self.raw)
        self.model: dict[str, Model] = {}
        self.asked: dict[str, str] = {}

    def teardown(self) -> None:
        self.raw.close()
        self.queue.store.close()

    @rule(target=jobs, name=st.sampled_from("ab"), fresh=st.booleans())
    def submit(self, name: str, fresh: bool) -> str:
        made = self.queue.submit(name, fresh=fresh)
        known = self.model.get(self.asked.get(name, ""))
        live = known and known.status in ("queued", "running") and not known.cancelling
        if not fresh and known and (live or known.status == "succeeded"):
            assert (made.verdict, made.job) == ("known", self.asked[name])
            return made.job
        assert made.verdict == "created"
        assert made.job not in self.model
        self.model[made.job], self.asked[name] = Model(), made.job
        return made.job

    @rule(target=claims, job=jobs)
    def claim(self, job: str) -> object:
        claim, model = self.queue.claim(job), self.model.get(job)
        if model is None or model.status != "queued":
            assert claim is None
            return multiple()
        assert claim is not None
        model.status, model.token, model.attempt = "running", claim.token, model.attempt + 1
        assert claim.attempt == model.attempt
        return claim

    @rule(claim=claims)
    def beat(self, claim: Claim) -> None:
        verdict = self.queue.do(self.queue.ledger.heartbeat(claim))
        if not self._holds(claim):
            assert verdict == "lost"
        else:
            assert verdict == ("cancel" if self.model[claim.id].cancelling else "ok")

    @rule(claim=claims, status=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, claim: Claim, status: str) -> None:
        result = b"{}" if status == "succeeded" else None
        done = self.queue.do(self.queue.ledger.finish(claim, status, result=result))
        model = self.model.get(claim.id)
        if self._holds(claim):
            assert done
            assert model is not None
            model.status = "cancelled" if model.cancelling else status
        else:  # True for a finish that is sent again, but nothing changes
            assert done == (model is not None and model.token == claim.token)

    @rule(job=jobs)
    def lose(self, job: str) -> None:
        model = self.model.get(job)
        self.queue.lapse(job) if model and model.status == "running" else None
        before = self.queue.messages()
        requeued, ended = self.queue.reap()
        if model is None or model.status != "running":
            assert (requeued, ended) == (0, 0)
            return
        again = not model.cancelling and model.attempt < MAX_ATTEMPTS
        assert (requeued, ended) == ((1, 0) if again else (0, 1))
        assert self.queue.messages() == before + requeued
        lost = "cancelled" if model.cancelling else "failed"
        model.status, model.token = "queued" if again else lost, ""

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        verdict, model = self.queue.do(self.queue.ledger.cancel("t", job)), self.model.get(job)
        if model is None:
            assert verdict == "gone"
        elif model.status == "queued":
            assert verdict == "cancelled"
            model.status = "cancelled"
        elif model.status == "running":
            assert verdict == "cancelling"
            model.cancelling = True
        else:
            assert verdict == "forgotten"
            del self.model[job]

    def _holds(self, claim: Claim) -> bool:
        model = self.model.get(claim.id)
        return model is not None and model.status == "running" and model.token == claim.token

    @invariant()
    def the_store_agrees(self) -> None:
        for job, model in self.model.items():
            record = self.queue.record(job)
            assert (record.status, record.attempt) == (model.status, model.attempt)
            assert record.status in LEGAL[model.seen[-1]]
            model.seen.append(record.status)
            _, key = self.queue.do(self.queue.ledger.result("t", job))
            assert bool(key and self.raw.exists(key)) == (record.status == "succeeded")
        for name in ("queued", "running"):
            alike = {job for job, model in self.model.items() if model.status == name}
            assert self.queue.index(name) == alike


@pytest.fixture
def machine(server: EmbeddedStore) -> type[Jobs]:
    Jobs.server = server
    return Jobs


def test_only_legal_moves(machine: type[Jobs]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
