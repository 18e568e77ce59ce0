"""Both ends of the queue against a real store: every script, every verdict."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from celery import Celery
from kombu import Connection

from schemas.facts import stored
from schemas.jobs import Progress
from schemas.problems import Failure
from tests.workers.conftest import Queue, eventually, question
from workers.embedded import EmbeddedStore
from workers.port import STALE_MS, Store


class TestSubmit:
    def test_a_new_question_is_queued_with_one_message(self, queue: Queue) -> None:
        made = queue.submit()
        assert made.verdict == "created"
        record = queue.record(made.job)
        assert (record.status, record.attempt, record.request_digest) == ("queued", 0, "q")
        assert queue.index("queued") == {made.job}
        assert queue.messages() == 1

    @pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
    def test_the_same_question_is_the_same_job(self, queue: Queue, state: str) -> None:
        made = queue.submit()
        if state != "queued":
            claim = queue.claim(made.job)
            if state == "succeeded":
                assert queue.do(queue.ledger.finish(claim, "succeeded", result=b"{}"))
        assert queue.submit() == type(made)("known", made.job)
        assert queue.messages() == 1

    @pytest.mark.parametrize("state", ["failed", "cancelled", "cancelling", "expired"])
    def test_a_job_without_answer_satisfies_nobody(self, queue: Queue, state: str) -> None:
        claim = queue.take()
        if state == "cancelling":
            queue.do(queue.ledger.cancel("t", claim.id))
        elif state == "expired":
            queue.do(queue.ledger.finish(claim, "succeeded", result=b"{}"))
            queue.raw.hset(f"{queue.ledger.prefix}job:{claim.id}", "expires", 1)
        else:
            queue.do(queue.ledger.finish(claim, state))
        again = queue.submit()
        assert again.verdict == "created"
        assert again.job != claim.id

    def test_a_fresh_question_is_a_new_job(self, queue: Queue) -> None:
        first, second = queue.submit(), queue.submit(fresh=True)
        assert second.verdict == "created"
        assert queue.submit().job == second.job != first.job

    def test_idempotency_keys_replay_and_conflict(self, queue: Queue) -> None:
        made = queue.submit("a", idempotency=("key", "print-a"))
        assert queue.submit("a", idempotency=("key", "print-a")) == type(made)("replayed", made.job)
        assert queue.submit("b", idempotency=("key", "print-b")) == type(made)("conflict", made.job)
        other = queue.submit("b", idempotency=("key", "print-b"), tenant="u")
        assert other.verdict == "created"
        queue.do(queue.ledger.finish(queue.claim(made.job), "failed"))
        again = queue.submit("a", idempotency=("key", "print-a"))
        assert again == type(made)("replayed", made.job)

    def test_a_full_queue_takes_known_questions_only(self, queue: Queue) -> None:
        small = queue.but(queue_limit=2)
        first, second = small.submit("a"), small.submit("b")
        assert small.submit("c") == type(first)("full", "")
        assert small.submit("a").verdict == "known"
        small.claim(second.job)
        assert small.submit("c").verdict == "created"

    def test_sixteen_equal_questions_at_once_make_one_job(self, queue: Queue) -> None:
        start = threading.Barrier(16)

        def ask(_: int) -> tuple[str, str]:
            with closing(Store(queue.settings)) as store:
                start.wait()
                made = store.do(queue.ledger.submit("t", question()))
                return made.verdict, made.job

        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(ask, range(16)))
        assert len({job for _, job in made}) == 1
        assert sorted(verdict for verdict, _ in made) == ["created"] + ["known"] * 15
        assert queue.messages() == 1

    @pytest.mark.parametrize("fresh", [False, True])
    def test_sent_twice_because_the_reply_was_lost(self, queue: Queue, fresh: bool) -> None:
        call = queue.ledger.submit("t", question(fresh=fresh, idempotency=("k", "p")))
        made = queue.do(call)
        claim = queue.claim(made.job)
        assert queue.do(call) == made
        assert queue.record(made.job).status == "running"
        assert queue.do(queue.ledger.finish(claim, "succeeded", result=b"{}"))
        assert queue.messages() == 1

    def test_arrays_that_came_along_are_stored_first(self, queue: Queue) -> None:
        array = stored(np.arange(6.0).reshape(2, 3))
        queue.do(queue.ledger.submit("t", question(arrays=(array.digest,)), [array]))
        assert queue.do(queue.ledger.facts([array.digest, "sha256:no"])) == {
            array.digest: array.facts
        }
        found = queue.do(queue.ledger.get([array.digest]))[array.digest]
        np.testing.assert_array_equal(found.array, array.array)

    def test_a_question_keeps_its_inputs_alive(self, queue: Queue) -> None:
        array = stored(np.ones(2))
        queue.do(queue.ledger.put([array]))
        queue.do(queue.ledger.put_dataset("sha256:d", b'{"n":1}', b"bytes"))
        keys = [
            f"{queue.ledger.prefix}array:{array.digest}",
            f"{queue.ledger.prefix}dataset:sha256:d",
        ]
        for key in keys:
            queue.raw.expire(key, 5)
        queue.submit(arrays=(array.digest,), datasets=("sha256:d",))
        assert all(queue.raw.ttl(key) > 1000 for key in keys)
        assert queue.do(queue.ledger.datasets(["sha256:d"])) == {"sha256:d": {"n": 1}}
        assert queue.do(queue.ledger.get_dataset("sha256:d")) == b"bytes"


class TestAttempt:
    def test_one_claim_wins(self, queue: Queue) -> None:
        made = queue.submit()
        claim = queue.claim(made.job)
        assert claim is not None
        assert (claim.tenant, claim.routine, claim.kind) == ("t", "transport.sinkhorn", "solve")
        assert (claim.attempt, claim.request) == (1, {"seed": 0})
        assert claim.queue_ms >= 0
        assert queue.claim(made.job) is None  # busy
        assert (queue.index("queued"), queue.index("running")) == (set(), {made.job})
        assert queue.do(queue.ledger.finish(claim, "succeeded", result=b"{}"))
        assert queue.claim(made.job) is None  # done
        assert queue.claim("0" * 32) is None  # gone

    def test_a_lapsed_lease_is_the_reapers_to_judge(self, queue: Queue) -> None:
        claim = queue.take()
        queue.lapse(claim.id)
        assert queue.claim(claim.id) is None

    def test_heartbeat(self, queue: Queue) -> None:
        claim = queue.take()
        queue.lapse(claim.id)
        progress = Progress(iteration=7, residual=0.5)
        assert queue.do(queue.ledger.heartbeat(claim, progress)) == "ok"
        assert queue.record(claim.id).progress == progress
        assert queue.reap() == (0, 0)
        queue.do(queue.ledger.cancel("t", claim.id))
        assert queue.do(queue.ledger.heartbeat(claim)) == "cancel"
        queue.lapse(claim.id)
        queue.reap()
        assert queue.do(queue.ledger.heartbeat(claim)) == "lost"

    def test_finishing_leaves_the_answer(self, queue: Queue) -> None:
        claim, array = queue.take(), stored(np.ones(3))
        call = queue.ledger.finish(
            claim, "succeeded", result=b'{"x":1}', arrays=[array], warnings=b"[]"
        )
        assert queue.do(call)
        record, key = queue.do(queue.ledger.result("t", claim.id))
        assert record.status == "succeeded"
        assert record.finished_at < record.expires_at
        assert queue.do(queue.ledger.blob(key)) == b'{"x":1}'
        assert array.digest in queue.do(queue.ledger.get([array.digest]))
        assert queue.index("running") == set()

    def test_finishing_twice_because_the_reply_was_lost(self, queue: Queue) -> None:
        claim = queue.take()
        call = queue.ledger.finish(claim, "succeeded", result=b"{}")
        assert queue.do(call)
        assert queue.do(call)
        _, key = queue.do(queue.ledger.result("t", claim.id))
        assert queue.do(queue.ledger.blob(key)) == b"{}"
        assert queue.raw.hget(f"{queue.ledger.prefix}counters", "succeeded") == b"1"

    def test_failing_leaves_the_reason(self, queue: Queue) -> None:
        claim, failure = queue.take(), Failure(code="ill-posed", detail="no")
        assert queue.do(queue.ledger.finish(claim, "failed", failure=failure))
        assert queue.record(claim.id).error == failure

    def test_a_zombie_leaves_nothing(self, queue: Queue) -> None:
        zombie = queue.take()
        queue.lapse(zombie.id)
        assert queue.reap() == (1, 0)
        assert not queue.do(queue.ledger.finish(zombie, "succeeded", result=b"zombie"))
        claim = queue.claim(zombie.id)
        assert claim is not None
        assert claim.attempt == 2
        assert queue.do(queue.ledger.heartbeat(zombie)) == "lost"
        before = queue.fields(claim.id)
        assert not queue.do(queue.ledger.finish(zombie, "succeeded", result=b"zombie"))
        assert queue.fields(claim.id) == before
        assert queue.do(queue.ledger.finish(claim, "succeeded", result=b"true"))
        assert not queue.do(queue.ledger.finish(zombie, "failed", result=b"zombie"))
        _, key = queue.do(queue.ledger.result("t", claim.id))
        assert queue.do(queue.ledger.blob(key)) == b"true"
        assert {k for k in queue.stored() if ":out:" in k} == {key}


class TestCancel:
    def test_queued(self, queue: Queue) -> None:
        made = queue.submit()
        assert queue.do(queue.ledger.cancel("t", made.job)) == "cancelled"
        assert queue.record(made.job).status == "cancelled"
        assert queue.claim(made.job) is None
        assert queue.index("queued") == set()

    def test_running(self, queue: Queue) -> None:
        claim = queue.take()
        assert queue.do(queue.ledger.cancel("t", claim.id)) == "cancelling"
        assert queue.record(claim.id).cancel_requested
        assert queue.do(queue.ledger.finish(claim, "succeeded", result=b"late"))
        assert queue.record(claim.id).status == "cancelled"
        assert not any(":out:" in key for key in queue.stored())

    def test_running_and_lost(self, queue: Queue) -> None:
        claim = queue.take()
        queue.do(queue.ledger.cancel("t", claim.id))
        queue.lapse(claim.id)
        assert queue.reap() == (0, 1)
        assert queue.record(claim.id).status == "cancelled"

    def test_ended_jobs_are_forgotten(self, queue: Queue) -> None:
        claim = queue.take()
        queue.do(queue.ledger.finish(claim, "succeeded", result=b"{}"))
        assert queue.do(queue.ledger.cancel("t", claim.id)) == "forgotten"
        assert queue.record(claim.id) is None
        assert queue.do(queue.ledger.cancel("t", claim.id)) == "gone"
        assert queue.do(queue.ledger.jobs("t", "", 10)) == []
        assert not any(":out:" in key for key in queue.stored())
        assert queue.submit().verdict == "created"


class TestReap:
    def test_a_lost_job_is_queued_again(self, queue: Queue) -> None:
        claim = queue.take()
        queue.do(queue.ledger.heartbeat(claim, Progress(iteration=1)))
        assert queue.reap() == (0, 0)
        queue.lapse(claim.id)
        assert queue.reap() == (1, 0)
        record = queue.record(claim.id)
        assert (record.status, record.attempt, record.progress) == ("queued", 1, None)
        assert queue.messages() == 2
        assert queue.reap() == (0, 0)

    def test_after_so_many_attempts_it_fails(self, queue: Queue) -> None:
        poison = queue.submit().job
        for attempt in range(1, 4):
            claim = queue.claim(poison)
            assert claim is not None
            assert claim.attempt == attempt
            queue.lapse(poison)
            queue.reap()
        record = queue.record(poison)
        assert (record.status, record.error.code, record.error.retry) == (
            "failed", "worker-lost", True,
        )  # fmt: skip
        assert not queue.do(queue.ledger.finish(claim, "succeeded", result=b"zombie"))
        assert queue.record(poison) == record
        assert queue.submit().verdict == "created"

    def test_one_reaper_at_a_time(self, queue: Queue) -> None:
        assert queue.reap() == (0, 0)
        assert queue.do(queue.ledger.reap("another")) == (-1, 0)

    def test_a_lost_message_is_sent_again(self, queue: Queue) -> None:
        made = queue.submit()
        queue.raw.delete(queue.ledger.queue)
        assert queue.reap() == (0, 0)
        long_ago = time.time() * 1000 - STALE_MS - 1
        queue.raw.zadd(f"{queue.ledger.prefix}idx:queued", {made.job: long_ago})
        assert queue.reap() == (1, 0)
        assert (queue.messages(), queue.reap()) == (1, (0, 0))

    def test_a_lost_message_is_sent_again_although_others_wait(self, queue: Queue) -> None:
        lost = queue.submit("lost").job
        queue.raw.delete(queue.ledger.queue)
        long_ago = time.time() * 1000 - STALE_MS - 1
        queue.raw.zadd(f"{queue.ledger.prefix}idx:queued", {lost: long_ago})
        queue.submit("waiting")
        assert queue.reap() == (1, 0)
        assert (queue.messages(), queue.reap()) == (2, (0, 0))

    def test_a_slow_queue_is_not_a_lost_message(self, queue: Queue) -> None:
        for name in "abc":
            made = queue.submit(name)
            long_ago = time.time() * 1000 - STALE_MS - 1000 + ord(name)
            queue.raw.zadd(f"{queue.ledger.prefix}idx:queued", {made.job: long_ago})
        assert queue.reap() == (0, 0)
        assert queue.messages() == 3


class TestKeeping:
    def test_results_expire_and_leave_a_tombstone(self, queue: Queue) -> None:
        brief = queue.but(retention_s=1, tombstone_s=1)
        claim = brief.take()
        brief.do(brief.ledger.finish(claim, "succeeded", result=b"{}"))
        eventually(lambda: brief.record(claim.id).status == "expired", 3)
        record, key = brief.do(brief.ledger.result("t", claim.id))
        assert record.id == claim.id
        eventually(lambda: brief.do(brief.ledger.blob(key)) is None, 3)
        assert brief.submit().verdict == "created"
        eventually(lambda: brief.record(claim.id) is None, 4)

    def test_tenants_do_not_see_each_other(self, queue: Queue) -> None:
        mine, ledger = queue.submit(tenant="me").job, queue.ledger
        assert queue.submit(tenant="you").job != mine
        assert queue.record(mine, "you") is None
        assert queue.do(ledger.result("you", mine))[0] is None
        assert queue.do(ledger.request("you", mine)) is None
        assert queue.do(ledger.request("me", mine)) == {"seed": 0}
        assert queue.do(ledger.cancel("you", mine)) == "gone"
        assert queue.do(ledger.records("you", [mine])) == []
        assert mine not in [job for job, _ in queue.do(ledger.jobs("you", "", 10))]
        assert queue.record(mine, "me").status == "queued"

    def test_jobs_are_listed_newest_first_in_pages(self, queue: Queue) -> None:
        made = []
        for name in "abcde":
            made.append(queue.submit(name).job)
            time.sleep(0.002)
        page = queue.do(queue.ledger.jobs("t", "", 2))
        rest = queue.do(queue.ledger.jobs("t", repr(page[-1][1]), 9))
        assert [job for job, _ in page + rest] == made[::-1]
        assert [r.id for r in queue.do(queue.ledger.records("t", made))] == made

    def test_health(self, queue: Queue) -> None:
        queue.take("a")
        queue.submit("b")
        assert not queue.do(queue.ledger.alive("w1", warm=False))
        assert queue.do(queue.ledger.alive("w1", warm=True))
        assert queue.do(queue.ledger.alive("w1", warm=False))
        health = queue.do(queue.ledger.health())
        assert (health.queued, health.running, health.counters) == (1, 1, {"submitted": 2})
        assert 0 <= health.oldest_s < 5
        assert 0 <= health.workers["w1"] < 5
        assert health.memory > 0

    def test_scripts_are_loaded_again_when_the_store_forgot_them(self, queue: Queue) -> None:
        claim = queue.take()
        queue.raw.script_flush()
        assert queue.do(queue.ledger.finish(claim, "succeeded", result=b"{}"))
        queue.raw.script_flush()
        assert queue.submit("b").verdict == "created"

    def test_everything_survives_a_restart_of_the_store(
        self, queue: Queue, server: EmbeddedStore
    ) -> None:
        claim, waiting = queue.take("a"), queue.submit("b").job
        server.stop()
        server.start()
        assert queue.record(waiting).status == "queued"
        assert queue.messages() == 2
        assert queue.do(queue.ledger.heartbeat(claim)) == "ok"
        assert queue.do(queue.ledger.finish(claim, "succeeded", result=b"{}"))


class TestMessage:
    def test_it_has_the_shape_of_celerys_own(self, queue: Queue) -> None:
        job = queue.submit().job
        ours = json.loads(queue.raw.lindex(queue.ledger.queue, 0))
        app = Celery(broker=f"redis+socket://{queue.settings.socket}?virtual_host=0")

        def perform(job: str) -> None: ...

        task = app.task(name="transport.sinkhorn", ignore_result=True)(perform)
        other = f"{queue.ledger.prefix}celery"
        task.apply_async([job], task_id=job, queue=other)
        app.close()
        theirs = json.loads(queue.raw.lindex(other, 0))
        assert set(ours) == set(theirs)
        optional = {"group_index", "origin", "replaced_task_nesting", "stamped_headers", "stamps"}
        assert set(theirs["headers"]) - set(ours["headers"]) <= optional
        for name, value in ours["headers"].items():
            if name != "argsrepr":
                assert theirs["headers"][name] == value, name
        assert set(theirs["properties"]) - set(ours["properties"]) <= {"body_encoding"}
        assert set(ours["properties"]) <= set(theirs["properties"])

    def test_celery_reads_it(self, queue: Queue) -> None:
        job = queue.submit().job
        url = f"redis+socket://{queue.settings.socket}?virtual_host=0"
        with Connection(url) as link, link.SimpleQueue(queue.ledger.queue) as simple:
            message = simple.get(timeout=2)
            message.ack()
        assert message.headers["id"] == job
        assert message.payload[:2] == [[job], {}]
