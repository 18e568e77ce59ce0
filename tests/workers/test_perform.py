"""One job in this process, from the queue to its stored answer."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import orjson
import pytest
import torch

from schemas.arrays import Shelf
from schemas.registry import ROUTINES
from schemas.samples import samples
from tests.contract.test_mirror import SAMPLE_FACTS
from tests.workers.conftest import Queue, eventually
from workers.desk import Desk
from workers.perform import explain, perform
from workers.port import Question

SINKHORN = ROUTINES["transport.sinkhorn"]
ALIGN = ROUTINES["spatial.align"]
# float64 answers of the same problem by another route agree to the solver's tolerance
AGREES = 1e-5


@dataclasses.dataclass(frozen=True)
class Bench:
    """A queue and a worker that takes from it when told to."""

    queue: Queue

    def ask(self, name: str, request: dict[str, Any], kind: str = "solve") -> str:
        routine, shelf = ROUTINES[name], Shelf(datasets=dict.fromkeys(samples(), SAMPLE_FACTS))
        model = {"solve": routine.request, "vjp": routine.vjp}.get(kind)
        if model is not None:
            checked = model.model_validate(request, context={"shelf": shelf})
            request = checked.model_dump(context={"names_only": True})
        question = Question(name, "1", kind, orjson.dumps(request), f"{kind}{request}")
        call = self.queue.ledger.submit("t", question, shelf.staged.values())
        return self.queue.do(call).job

    def work(self, job: str) -> Any:
        perform(Desk(self.queue.settings, self.queue.store, "here"), job)
        return self.queue.record(job)

    def result(self, job: str) -> bytes:
        _, key = self.queue.do(self.queue.ledger.result("t", job))
        return self.queue.do(self.queue.ledger.blob(key))

    def answer(self, name: str, request: dict[str, Any], kind: str = "solve") -> Any:
        job = self.ask(name, request, kind)
        record = self.work(job)
        assert record.status == "succeeded", record.error
        return orjson.loads(self.result(job))


@pytest.fixture
def bench(queue: Queue) -> Bench:
    for digest, path in samples().items():
        facts = orjson.dumps(SAMPLE_FACTS)
        queue.do(queue.ledger.put_dataset(digest, facts, path.read_bytes()))
    return Bench(queue)


@pytest.mark.parametrize("name", ROUTINES)
def test_every_example_is_answered(bench: Bench, name: str) -> None:
    answer = bench.answer(name, ROUTINES[name].example)
    assert answer["status"] == "converged"
    assert answer["provenance"]["routine"] == name
    assert answer["provenance"]["timings"]["compute_ms"] > 0


def test_arrays_of_an_answer_are_stored_under_their_digests(bench: Bench) -> None:
    plan = bench.answer(SINKHORN.name, SINKHORN.example)["plan"]
    found = bench.queue.do(bench.queue.ledger.get([plan["digest"]]))[plan["digest"]]
    np.testing.assert_array_equal(found.array, np.array(plan["values"]))


def test_large_arrays_are_left_out_of_the_json(bench: Bench) -> None:
    small = Bench(bench.queue.but(inline_limit=3))
    answer = small.answer(SINKHORN.name, SINKHORN.example)
    assert "values" not in answer["plan"]
    assert len(answer["f"]["values"]) == 3


def test_float32_is_used_when_asked_for(bench: Bench) -> None:
    wide = bench.answer(SINKHORN.name, SINKHORN.example)
    narrow = bench.answer(SINKHORN.name, SINKHORN.example | {"precision": "float32", "tol": 1e-4})
    assert narrow["plan"]["dtype"] == "float32"
    assert narrow["value"] == pytest.approx(wide["value"], rel=1e-3)


def test_a_problem_names_its_field(bench: Bench) -> None:
    request = SINKHORN.example | {"precision": "float32", "epsilon": 1e-6, "tol": 1e-12}
    record = bench.work(bench.ask(SINKHORN.name, request))
    assert record.status == "failed"
    assert record.error.code == "infeasible-problem"
    assert record.error.errors[0].pointer == "#/tol"
    assert not record.error.retry


def test_a_fault_has_an_incident_and_no_details(bench: Bench) -> None:
    job = bench.ask(SINKHORN.name, {"epsilon": "broken"}, kind="batch")
    record = bench.work(job)
    assert record.status == "failed"
    assert record.error.code == "internal"
    assert record.error.incident
    assert record.error.retry


def test_an_expired_input_is_told(bench: Bench) -> None:
    job = bench.ask(SINKHORN.name, SINKHORN.example)
    for key in bench.queue.raw.keys(f"{bench.queue.ledger.prefix}array:*"):
        bench.queue.raw.delete(key)
    assert bench.work(job).error.code == "result-expired"


def test_an_expired_dataset_is_told(bench: Bench) -> None:
    job = bench.ask(ALIGN.name, ALIGN.example)
    for key in bench.queue.raw.keys(f"{bench.queue.ledger.prefix}dataset:*"):
        bench.queue.raw.hdel(key, "data")
    record = bench.work(job)
    assert record.error.errors[0].pointer == "#/source/dataset"


def test_a_batch_answers_each_item(bench: Bench) -> None:
    shelf = Shelf()
    good = SINKHORN.request.model_validate(SINKHORN.example, context={"shelf": shelf})
    dumped = good.model_dump(context={"names_only": True})
    impossible = dumped | {"precision": "float32", "epsilon": 1e-6, "tol": 1e-12}
    refused = {"error": {"code": "validation", "detail": "no", "errors": []}}
    items = [{"request": dumped}, refused, {"request": impossible}, {"request": dumped}]
    call = bench.queue.ledger.put(shelf.staged.values())
    bench.queue.do(call)
    answer = bench.answer(SINKHORN.name, {"items": items}, kind="batch")["items"]
    assert answer[0]["result"]["status"] == "converged"
    assert answer[1] == refused
    assert answer[2]["error"]["errors"][0]["pointer"] == "#/tol"
    assert answer[3]["result"]["value"] == answer[0]["result"]["value"]


def test_gradients_agree_with_differences(bench: Bench) -> None:
    asked = {"request": SINKHORN.example | {"tol": 1e-12}, "cotangents": {"value": 1.0},
             "wrt": ["geometry.x", "a"]}  # fmt: skip
    answer = bench.answer(SINKHORN.name, asked, kind="vjp")
    step, moved = 1e-5, []
    for sign in (1, -1):
        x = [row.copy() for row in SINKHORN.example["geometry"]["x"]]
        x[1][0] += sign * step
        request = asked["request"] | {"geometry": SINKHORN.example["geometry"] | {"x": x}}
        moved.append(bench.answer(SINKHORN.name, request)["value"])
    slope = (moved[0] - moved[1]) / (2 * step)
    assert answer["gradients"]["geometry.x"]["values"][1][0] == pytest.approx(slope, rel=AGREES)
    assert len(answer["gradients"]["a"]["values"]) == 3


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"cotangents": {"nothing": 1.0}}, "#/cotangents/nothing"),
        ({"cotangents": {"plan": 1.0}}, "#/cotangents/plan"),
    ],
)
def test_bad_cotangents_are_problems(bench: Bench, change: dict[str, Any], pointer: str) -> None:
    asked = {"request": SINKHORN.example, "cotangents": {"value": 1.0}, "wrt": ["a"]} | change
    record = bench.work(bench.ask(SINKHORN.name, asked, kind="vjp"))
    assert record.error.errors[0].pointer == pointer


def test_an_input_without_influence_has_gradient_zero(bench: Bench) -> None:
    # the optimum is P = b at a single source point whatever C: only <P, C> depends on it
    asked = {
        "request": {"geometry": {"kind": "cost", "C": [[1.0, 2.0]]}, "epsilon": 1.0},
        "cotangents": {"plan": [[1.0, 0.0]]},
        "wrt": ["geometry.C"],
    }
    answer = bench.answer(SINKHORN.name, asked, kind="vjp")
    np.testing.assert_allclose(answer["gradients"]["geometry.C"]["values"], 0, atol=1e-8)


def test_gradients_of_what_has_none_are_refused(bench: Bench) -> None:
    question = Question(ALIGN.name, "1", "vjp", orjson.dumps({}), "x")
    job = bench.queue.do(bench.queue.ledger.submit("t", question)).job
    assert bench.work(job).error.errors[0].pointer == "#/cotangents"


@pytest.mark.parametrize("name", ROUTINES)
@pytest.mark.parametrize("media", ["image/png", "image/svg+xml"])
@pytest.mark.slow
def test_every_answer_has_a_picture(bench: Bench, name: str, media: str) -> None:
    parent = bench.ask(name, ROUTINES[name].example)
    assert bench.work(parent).status == "succeeded"
    job = bench.ask(name, {"job": parent, "media": media}, kind="render")
    assert bench.work(job).status == "succeeded"
    start = b"\x89PNG" if media == "image/png" else b"<?xml"
    assert bench.result(job).startswith(start)
    assert len(bench.result(job)) > 5000


def test_a_cost_matrix_is_drawn_as_a_heat_map(bench: Bench) -> None:
    costs = {"kind": "cost", "C": [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]}
    parent = bench.ask(SINKHORN.name, {"geometry": costs, "epsilon": 0.5})
    bench.work(parent)
    job = bench.ask(SINKHORN.name, {"job": parent, "media": "image/png"}, kind="render")
    assert bench.work(job).status == "succeeded"


def test_an_alignment_is_written_as_annotated_data(bench: Bench, tmp_path: Path) -> None:
    parent = bench.ask(ALIGN.name, ALIGN.example)
    bench.work(parent)
    answer = orjson.loads(bench.result(parent))
    job = bench.ask(ALIGN.name, {"job": parent, "media": "application/x-hdf5"}, kind="render")
    assert bench.work(job).status == "succeeded"
    path = tmp_path / "aligned.h5ad"
    path.write_bytes(bench.result(job))
    data = anndata.read_h5ad(path)
    first = anndata.read_h5ad(sample_path(ALIGN.example["source"]["dataset"]))
    n = first.n_obs
    assert list(data.obs_names[:n]) == list(first.obs_names)
    assert set(data.obs["slice"]) == {"source", "target"}
    aligned = data.obsm["spatial_aligned"][:n]
    transform = data.uns["alignment"]["transform"]
    places = np.column_stack([data.obsm["spatial"][:n], np.ones(n)])
    np.testing.assert_allclose(aligned, (places @ transform.T)[:, :2], atol=1e-9)
    assert data.uns["alignment"]["objective"] == answer["value"]
    np.testing.assert_array_equal(data.X[:n].toarray(), first[:, list(data.var_names)].X.toarray())


def sample_path(digest: str) -> Path:
    return samples()[digest]


def test_a_picture_of_nothing_is_told(bench: Bench) -> None:
    job = bench.ask(SINKHORN.name, {"job": "0" * 32, "media": "image/png"}, kind="render")
    assert bench.work(job).error.code == "result-expired"


# so sharp that only a deadline or its owner ends it
LONG = {
    "geometry": {"kind": "cost", "C": np.random.default_rng(0).random((120, 120)).tolist()},
    "epsilon": 1e-4, "tol": 1e-12, "max_iter": 10_000_000,
}  # fmt: skip


def later(seconds: float, do: Callable[[], Any]) -> None:
    threading.Timer(seconds, do).start()


def test_a_deadline_keeps_the_best_answer(bench: Bench) -> None:
    answer = bench.answer(SINKHORN.name, LONG | {"timeout_s": 0.3})
    assert answer["status"] == "interrupted"
    assert [w["code"] for w in answer["warnings"]] == ["deadline"]


def test_cancelling_ends_a_running_job(bench: Bench) -> None:
    job = bench.ask(SINKHORN.name, LONG)
    told: list[float] = []

    def cancel() -> None:
        eventually(lambda: bench.queue.record(job).progress, within_s=20)
        told.append(time.monotonic())
        bench.queue.do(bench.queue.ledger.cancel("t", job))

    later(0.1, cancel)
    record = bench.work(job)
    assert record.status == "cancelled"
    assert time.monotonic() - told[0] < 2
    assert record.progress.iteration > 0
    assert bench.queue.do(bench.queue.ledger.result("t", job))[1] == ""


def test_a_lost_lease_drops_the_answer(bench: Bench) -> None:
    job = bench.ask(SINKHORN.name, LONG)

    def steal() -> None:
        bench.queue.lapse(job)
        bench.queue.reap()

    later(0.3, steal)
    record = bench.work(job)
    assert record.status == "queued"
    assert record.attempt == 1


def test_a_job_that_is_not_there_is_left_alone(bench: Bench) -> None:
    assert bench.work("0" * 32) is None


def test_lack_of_memory_is_told() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    failure = explain(caught.value, "job")
    assert failure.code == "out-of-memory"
    assert failure.retry
