"""What pruning refuses before the queue."""

import pytest
from pydantic import ValidationError

from schemas.arrays import Shelf
from schemas.topk.prune import EXAMPLE, PruneRequest

FILE = "sha256:" + "1" * 64
FACTS = {
    "kind": "safetensors",
    "arrays": {"fc.weight": [4, 6], "fc.bias": [4], "ids": [1, 3], "head.weight": [2, 3, 2]},
    "dtypes": {"fc.weight": "BF16", "fc.bias": "F32", "ids": "I64", "head.weight": "F8_E4M3"},
}


def asked(facts=None, **fields):
    shelf = Shelf(datasets={FILE: facts or FACTS})
    return PruneRequest.model_validate(fields, context={"shelf": shelf})


def chosen(**keys):
    return list(asked(state={"dataset": FILE, **keys}, keep=0.5).shapes())


def test_tensors_of_a_file_are_chosen_by_name():
    assert chosen() == ["fc.weight", "head.weight"]
    assert chosen(min_axes=1) == ["fc.weight", "fc.bias", "head.weight"]
    assert chosen(include=["fc.*"], min_axes=0) == ["fc.weight", "fc.bias"]
    assert chosen(exclude=["head.*"]) == ["fc.weight"]
    with pytest.raises(ValidationError, match=r"has fc.weight, fc.bias") as caught:
        chosen(include=["*.Weight"])
    assert caught.value.errors()[0]["ctx"]["field"] == "include"


@pytest.mark.parametrize("kind", ["h5ad", "npz", "csv"])
def test_other_files_hold_no_tensors(kind):
    with pytest.raises(ValidationError, match=f"this dataset is {kind}"):
        asked(FACTS | {"kind": kind}, state={"dataset": FILE}, keep=0.5)


def test_without_facts_the_worker_has_the_last_word():
    found = PruneRequest.model_validate({"state": {"dataset": FILE}, "k": 10**6})
    assert found.shapes() == {}
    assert found.footprint() == 0
    together = {"state": {"dataset": FILE}, "k": 1, "scope": "global", "cotangent": {"w": [1.0]}}
    assert PruneRequest.model_validate(together).shapes() == {}


W = {"w": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"keep": 0.5}, "tensors", "one of the two"),
        ({"tensors": W, "state": {"dataset": FILE}, "keep": 0.5}, "tensors", "one of the two"),
        ({"tensors": W}, "sparsity", "received none"),
        ({"tensors": W, "sparsity": 0.5, "k": 1}, "k", "sparsity, k"),
        ({"tensors": W, "k": 7}, "k", "have 6 entries, 7"),
        ({"tensors": W, "k": 7, "scope": "global"}, "k", "all tensors have 6"),
        ({"tensors": W, "k": 4, "scope": "row"}, "k", "have 3 entries, 4"),
        ({"tensors": W, "k": 1, "scope": "n_m"}, "group", "needs group"),
        ({"tensors": W, "k": 1, "group": 2}, "group", "has no groups"),
        ({"tensors": W, "k": 1, "scope": "n_m", "group": 2}, "group", "no groups of 2"),
        ({"tensors": W, "k": 2, "scope": "n_m", "group": 1}, "k", "have 1 entries, 2"),
        ({"tensors": W, "keep": 0.5, "normalise": True}, "normalise", "not in per_tensor"),
        ({"tensors": W, "keep": 0.5, "cotangent": {"v": [1.0]}}, "cotangent", "v is not pruned"),
        ({"tensors": W, "keep": 0.5, "cotangent": {"w": [1.0]}}, "cotangent", r"cotangent \[1\]"),
        ({"tensors": W, "keep": 0.5, "lam": 0.1, "lam_schedule": {"steps": 2, "last": 0.2}},
         "lam_schedule.last", "not below lam"),
    ],
)  # fmt: skip
def test_refused_by_field(fields, field, text):
    with pytest.raises(ValidationError, match=text) as caught:
        asked(**fields)
    assert caught.value.errors()[0]["ctx"]["field"] == field


def test_memory_grows_with_all_tensors_and_the_longest_row():
    entries = 24 + 12
    found = asked(state={"dataset": FILE}, keep=0.5)
    assert 8 * 10 * entries < found.footprint() < 8 * 40 * entries
    together = asked(state={"dataset": FILE}, keep=0.5, scope="global")
    assert together.footprint() > found.footprint()
    assert asked(**EXAMPLE).footprint() < 8 * 40 * 10
