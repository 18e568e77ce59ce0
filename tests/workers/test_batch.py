"""A batch is answered as its questions are one by one, together where the routine can."""

from typing import Any

import pytest

from schemas.arrays import Shelf
from schemas.registry import ROUTINES
from tests.workers.conftest import Queue
from tests.workers.test_perform import Bench
from workers import answer as answers
from workers.bind import together

SINKHORN, LINE = ROUTINES["transport.sinkhorn"], ROUTINES["transport.line"]
# Two solvers of one problem agree to their tolerance.
AGREES = 1e-5


@pytest.fixture
def bench(queue: Queue) -> Bench:
    return Bench(queue)


def asked(bench: Bench, **more: Any) -> dict[str, Any]:
    """Store the arrays of the example and name them."""
    shelf, model = Shelf(), SINKHORN.request
    request = model.model_validate(SINKHORN.example | more, context={"shelf": shelf})
    bench.queue.do(bench.queue.ledger.put(shelf.staged.values()))
    return request.model_dump(context={"names_only": True})


def test_one_routine_answers_at_once_and_another_does_not() -> None:
    assert together(SINKHORN) is not None
    assert together(LINE) is None


def test_together_is_one_by_one(bench: Bench) -> None:
    variants = [{"epsilon": 0.1}, {"epsilon": 0.5}, {"rounded": True}, {"timeout_s": 60.0},
                {"precision": "float32", "tol": 1e-4}]  # fmt: skip
    items = [{"request": asked(bench, **more)} for more in variants]
    found = bench.answer(SINKHORN.name, {"items": items}, kind="batch")["items"]
    for item, more in zip(found, variants, strict=True):
        alone = bench.answer(SINKHORN.name, SINKHORN.example | more)
        result = item["result"]
        assert result.keys() == alone.keys()
        assert result["certificate"].keys() == alone["certificate"].keys()
        assert result["value"] == pytest.approx(alone["value"], rel=AGREES * 10)
        assert result["plan"]["dtype"] == alone["plan"]["dtype"]
        assert result["status"] == alone["status"] == "converged"
        assert result["provenance"]["timings"]["compute_ms"] > 0


def test_an_ill_posed_item_does_not_touch_the_others(bench: Bench) -> None:
    impossible = asked(bench, precision="float32", epsilon=1e-6, tol=1e-12)
    refused = {"error": {"code": "validation", "detail": "no", "errors": []}}
    items = [{"request": asked(bench)}, {"request": impossible}, refused, {"request": asked(bench)}]
    found = bench.answer(SINKHORN.name, {"items": items}, kind="batch")["items"]
    assert found[0]["result"]["value"] == found[3]["result"]["value"]
    assert found[1]["error"]["errors"][0]["pointer"] == "#/tol"
    assert found[2] == refused


def test_a_batch_is_cancelled_between_groups(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "TOGETHER", 1)
    eager = Bench(bench.queue.but(watch_every_s=0.0))
    items = [{"request": asked(bench)} for _ in range(4)]
    job = eager.ask(SINKHORN.name, {"items": items}, kind="batch")
    took = list[int]()
    original = answers._group

    def group(*args: Any) -> Any:
        took.append(1)
        eager.queue.do(eager.queue.ledger.cancel("t", job))
        return original(*args)

    monkeypatch.setattr(answers, "_group", group)
    assert eager.work(job).status == "cancelled"
    assert len(took) == 1
