"""The client against a running service: every derived method, arrays, files, jobs, problems."""

import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

import brenier
from brenier.demo import is_free
from brenier.questions import INLINE_BYTES
from brenier.results import RemoteArray
from brenier.simulate import simulate_sections
from schemas.facts import digest_of
from schemas.registry import ROUTINES
from schemas.samples import FOLDER, sample
from schemas.transport import sinkhorn

RNG_SEED = 7
ROUNDING = 1e-12  # float64 arithmetic on numbers of order one
ENDLESS = {"epsilon": 1e-4, "tol": 1e-12, "max_iter": 10_000_000}


@pytest.fixture(scope="module")
def client(service: httpx.Client) -> Iterator[brenier.Client]:
    with brenier.Client(str(service.base_url)) as client:
        yield client


class Spy(httpx.BaseTransport):
    """Passes requests on to the service and remembers them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.seen.append((request.method, request.url.path, len(request.content)))
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def spied(service: httpx.Client) -> Iterator[tuple[brenier.Client, Spy]]:
    spy = Spy()
    with brenier.Client(str(service.base_url), transport=spy) as client:
        yield client, spy


def clouds(n: int = 30, m: int = 20, seed: int = RNG_SEED) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal((m, 2))}


# what is derived from the registry


@pytest.mark.parametrize("name", ROUTINES)
def test_every_routine_is_a_documented_attribute(name: str) -> None:
    family, short = name.split(".")
    client = brenier.Client()
    assert family in dir(client)
    call = getattr(getattr(client, family), short)
    assert short in dir(getattr(client, family))
    routine = ROUTINES[name]
    assert set(inspect.signature(call).parameters) == set(routine.request.model_fields)
    assert inspect.getdoc(call).startswith(routine.summary)
    for field in routine.request.model_fields:
        assert field in call.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUTINES)
def test_every_example_runs(client: brenier.Client, name: str) -> None:
    answer = client.routine(name)(**ROUTINES[name].example)
    assert answer.status == "converged"
    assert set(answer) == set(ROUTINES[name].result.model_fields)
    assert answer.provenance.routine == name


def test_unknown_names_say_what_there_is() -> None:
    client = brenier.Client()
    with pytest.raises(AttributeError, match="transport"):
        _ = client.transprot
    with pytest.raises(AttributeError, match="sinkhorn"):
        _ = client.transport.sinkhron
    with pytest.raises(KeyError, match="sinkhorn"):
        client.routine("transport.sinkhron")
    assert client.routines()["transport.exact"] == ROUTINES["transport.exact"].summary


def test_importing_the_client_loads_neither_torch_nor_the_service() -> None:
    script = (
        "import sys, brenier, brenier.cli;"
        "heavy = {'torch', 'anndata', 'scipy', 'celery', 'redis', 'fastapi', 'matplotlib'};"
        "ours = {'api', 'workers', 'algorithms'};"
        "print(sorted((heavy | ours) & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# arrays


def test_arrays_of_any_make_give_one_answer(client: brenier.Client) -> None:
    import torch

    given = clouds()
    as_lists = {k: v.tolist() for k, v in given.items()}
    as_tensors = {k: torch.tensor(v, requires_grad=True) for k, v in given.items()}
    as_big_endian = {k: v.astype(">f8") for k, v in given.items()}
    as_columns = {k: np.asfortranarray(v) for k, v in given.items()}
    jobs = {
        client.transport.sinkhorn.submit(geometry={"kind": "points", **g}, epsilon=0.5).id
        for g in (given, as_lists, as_tensors, as_big_endian, as_columns)
    }
    assert len(jobs) == 1, "equal arrays are the same question, so the same job"


def test_the_kind_of_a_geometry_follows_from_its_fields(client: brenier.Client) -> None:
    from_points = client.transport.sinkhorn(geometry=clouds(), epsilon=0.5)
    x, y = clouds().values()
    C = ((x[:, None] - y[None]) ** 2).sum(-1)
    from_cost = client.transport.sinkhorn(geometry={"C": C}, epsilon=0.5)
    assert from_points.value == pytest.approx(from_cost.value, rel=ROUNDING)


def test_large_arrays_are_sent_once(spied: tuple[brenier.Client, Spy]) -> None:
    client, spy = spied
    given = clouds(n=INLINE_BYTES // 16 + 1, m=4, seed=int(time.time()))
    for epsilon in (5.0, 6.0):
        client.transport.sinkhorn.submit(geometry=given, epsilon=epsilon)
    methods = [(method, path) for method, path, _ in spy.seen if path.startswith("/v1/arrays")]
    digest = digest_of(given["x"])
    head = ("HEAD", f"/v1/arrays/{digest}")
    assert methods == [head, ("POST", "/v1/arrays"), head]
    sizes = [size for method, path, size in spy.seen if path == "/v1/transport/sinkhorn"]
    assert max(sizes) < 1000, "questions carry the digest, not the array"


def test_uploads_come_back_bit_by_bit(client: brenier.Client) -> None:
    for dtype in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool"):
        array = np.random.default_rng(1).random((5, 3)).astype(dtype)
        digest = client.upload(array)
        assert digest == digest_of(array)
        back = client.array(digest)
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
    assert client.upload(np.arange(3, dtype=np.int16)) == client.upload(np.arange(3))
    with pytest.raises(TypeError, match="complex128"):
        client.upload(np.array([1j]))
    with pytest.raises(TypeError):
        client.upload(["no", "numbers"])


def test_answers_are_numpy(client: brenier.Client) -> None:
    answer = client.transport.sinkhorn(geometry=clouds(), epsilon=0.5)
    assert answer.plan.shape == (30, 20)
    assert answer.plan.dtype == np.float64
    assert answer.plan.sum() == pytest.approx(1, abs=1e-5)  # tol of the routine
    assert answer.certificate.duality_gap >= -ROUNDING
    assert answer["f"] is answer.f
    assert "plan=float64[30, 20]" in repr(answer)
    assert "plan" in dir(answer)
    with pytest.raises(AttributeError, match="transport_cost"):
        _ = answer.cost


def test_large_answers_are_fetched_when_looked_at(spied: tuple[brenier.Client, Spy]) -> None:
    client, spy = spied
    answer = client.transport.sinkhorn(geometry=clouds(80, 70), epsilon=0.5)
    assert not [path for _, path, _ in spy.seen if path.startswith("/v1/arrays")]
    plan = answer.plan
    assert plan.shape == (80, 70)
    assert answer.plan is plan, "fetched once"
    assert len([path for _, path, _ in spy.seen if path.startswith("/v1/arrays")]) == 1


def test_an_answer_is_passed_on_without_fetching_it(spied: tuple[brenier.Client, Spy]) -> None:
    client, spy = spied
    answer = client.transport.sinkhorn(geometry=clouds(80, 70), epsilon=0.5)
    plan = answer.remote("plan")
    assert isinstance(plan, RemoteArray)
    client.transport.exact(geometry={"C": plan})
    assert not [path for _, path, _ in spy.seen if path.startswith("/v1/arrays")]


# batches and gradients


def test_a_batch_gives_answers_and_errors_side_by_side(client: brenier.Client) -> None:
    good = {"geometry": clouds(5, 4), "epsilon": 0.5}
    bad = {"geometry": clouds(5, 4), "epsilon": -1.0}
    first, second, third = client.transport.sinkhorn.batch([good, bad, good])
    assert isinstance(first, brenier.Result)
    assert isinstance(second, brenier.ProblemError)
    assert isinstance(third, brenier.Result)
    alone = client.transport.sinkhorn(**good)
    assert np.allclose(first.plan, alone.plan, atol=ROUNDING)
    assert second.errors[0].pointer == "#/problems/1/epsilon"
    with pytest.raises(ValueError, match="batch"):
        first.picture()


def test_a_batch_too_large_for_json_arrives_whole(client: brenier.Client) -> None:
    problems = [{"geometry": clouds(60, 60, seed), "epsilon": 1.0} for seed in range(70)]
    answers = client.transport.sinkhorn.batch(problems)
    plans = [answer.plan for answer in answers if isinstance(answer, brenier.Result)]
    assert len(plans) == 70
    assert all(plan.sum() == pytest.approx(1, abs=1e-5) for plan in plans)
    assert not np.allclose(plans[0], plans[1])


def test_gradients_match_differences(client: brenier.Client) -> None:
    request = {"geometry": clouds(6, 5), "epsilon": 0.5, "tol": 1e-12}
    answer = client.transport.sinkhorn.vjp(
        request, cotangents={"transport_cost": 1.0}, wrt=["geometry.x"]
    )
    gradient = answer.gradients["geometry.x"]
    assert gradient.shape == (6, 2)
    step = 1e-5
    shifted = []
    for sign in (1, -1):
        moved = clouds(6, 5)
        moved["x"][2, 1] += sign * step
        shifted.append(client.transport.sinkhorn(**{**request, "geometry": moved}).transport_cost)
    difference = (shifted[0] - shifted[1]) / (2 * step)
    assert gradient[2, 1] == pytest.approx(difference, rel=1e-5)  # step squared, and tol / step


# jobs


def test_a_job_is_found_again(client: brenier.Client) -> None:
    job = client.transport.sinkhorn.submit(**sinkhorn.EXAMPLE)
    again = client.job(job.id)
    assert again.wait().status == "succeeded"
    assert again.routine == "transport.sinkhorn"
    assert again.error is None
    assert again.result().value == client.transport.sinkhorn(**sinkhorn.EXAMPLE).value
    listed = [
        j.id for _, j in zip(range(60), client.jobs(routine="transport.sinkhorn"), strict=False)
    ]
    assert job.id in listed
    fresh = client.transport.sinkhorn.submit(fresh=True, **sinkhorn.EXAMPLE)
    assert fresh.id != job.id
    fresh.forget()
    with pytest.raises(brenier.ProblemError) as caught:
        _ = client.job(fresh.id).status
    assert (caught.value.code, caught.value.status) == ("no-such-job", 404)


def test_a_job_is_watched_and_cancelled(
    client: brenier.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = {"kind": "cost", "C": np.random.default_rng(0).random((120, 120))}
    job = client.transport.sinkhorn.submit(geometry=costs, **ENDLESS)
    with pytest.raises(TimeoutError, match=job.id):
        job.wait(timeout_s=0.5)
    threading.Timer(1.0, job.cancel).start()
    assert job.wait(progress=True).status == "cancelled"
    with pytest.raises(brenier.ProblemError) as caught:
        job.result()
    assert caught.value.code == "job-cancelled"
    job.cancel()  # nothing happens any more
    assert "cancelled" in repr(job)


def test_pictures_and_files_of_an_answer(client: brenier.Client) -> None:
    answer = client.transport.exact(**ROUTINES["transport.exact"].example)
    assert answer.picture().startswith(b"\x89PNG")
    assert b"<svg" in answer.picture("svg")
    with pytest.raises(ValueError, match="jpeg"):
        answer.picture("jpeg")
    with pytest.raises(brenier.ProblemError, match="not-acceptable"):
        answer.h5ad()


# files


@pytest.mark.slow
def test_slices_may_be_paths_datasets_or_objects(spied: tuple[brenier.Client, Spy]) -> None:
    client, spy = spied
    path = FOLDER / "section_1.h5ad"
    target = brenier.Dataset(FOLDER / "section_2.h5ad", label_key="domain")
    by_path = client.spatial.align.submit(source=path, target=target)
    by_name = client.spatial.align.submit(
        source=str(path), target={"dataset": sample("section_2.h5ad"), "label_key": "domain"}
    )
    assert by_path.id == by_name.id
    assert "POST" not in {m for m, p, _ in spy.seen if p.startswith("/v1/datasets")}, (
        "the service has its samples"
    )
    answer = by_path.result()
    assert answer.aligned.shape[1] == 2
    assert answer.anndata().n_obs > 0


def test_an_anndata_is_sent_as_a_file(client: brenier.Client) -> None:
    section, _ = simulate_sections(spots=60, genes=40, seed=3)
    sent = client.dataset(section.to_anndata(), label_key="domain")
    assert sent.facts["obs"] == len(section.ids)
    assert sent.facts["obs_columns"] == ["domain"]
    assert sent.keys == {"label_key": "domain"}
    assert "label_key='domain'" in repr(sent)
    with pytest.raises(brenier.ProblemError) as caught:
        client.spatial.align.submit(
            source=brenier.Dataset(section, label_key="cluster"), target=sent
        )
    assert caught.value.errors[0].pointer == "#/source/label_key"


def test_a_missing_file_is_named(client: brenier.Client) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5ad"):
        client.spatial.align(source="nowhere.h5ad", target="nowhere.h5ad")


# problems


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"epsilon": -1.0}, "validation", "#/epsilon"),
        ({"epsilon": float("nan")}, None, None),
        ({"epsilom": 1.0}, "validation", "#/epsilom"),
        ({"geometry": {"x": [[0.0, 1.0], [2.0]], "y": [[0.0]]}}, "shape-mismatch",
         "#/geometry/x/1"),
        ({"geometry": {"x": np.array([[np.nan]]), "y": np.ones((1, 1))}}, "non-finite-number",
         "#/geometry/x/0/0"),
        ({"a": np.array([0.5, 0.7, 0.1])}, "infeasible-problem", "#/b"),
        ({"geometry": {}}, "validation", None),
        ({"geometry": 3}, "validation", "#/geometry"),
    ],
)  # fmt: skip
def test_problems_name_code_and_place(
    client: brenier.Client, change: dict[str, Any], code: str | None, pointer: str | None
) -> None:
    with pytest.raises(brenier.ProblemError) as caught:
        client.transport.sinkhorn(**{**sinkhorn.EXAMPLE, **change})
    problem = caught.value
    assert problem.status in (400, 422)
    assert code in (None, problem.code)
    if pointer is not None:
        assert problem.errors[0].pointer == pointer
        assert pointer in str(problem)
    assert str(problem).count("\n") <= 1


def test_no_service_is_said_in_one_line() -> None:
    port = next(p for p in range(9100, 9200) if is_free(p))
    client = brenier.Client(f"http://127.0.0.1:{port}")
    with pytest.raises(brenier.Unreachable, match="brenier up"):
        client.transport.sinkhorn(**sinkhorn.EXAMPLE)
    with pytest.raises(brenier.Unreachable):
        client.upload(np.ones(3))


def test_the_key_travels_and_stays_secret() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization", ""))
        return httpx.Response(503, text="the store is away", headers={"Retry-After": "2"})

    client = brenier.Client("http://somewhere", "secret", transport=httpx.MockTransport(answer))
    with pytest.raises(brenier.ProblemError) as caught:
        client.job("0" * 32).wait()
    assert seen == ["Bearer secret"]
    assert caught.value.retry_after == 2
    assert "secret" not in repr(client) + str(caught.value)
