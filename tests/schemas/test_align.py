"""What an alignment may begin from: refused before the queue where it cannot."""

import pytest
from pydantic import ValidationError

import algorithms.spatial.align
import schemas.spatial.align
from schemas.arrays import Shelf
from schemas.samples import samples
from schemas.sparse import SparsePlan
from schemas.spatial.align import EXAMPLE, AlignRequest

FACTS = {
    "kind": "h5ad",
    "arrays": {"obsm/spatial": [80, 2], "obsm/tissue": [80, 2]},
    "obs_columns": ["domain"],
}
PAIRS = [[0, 1], [5, 7]]


def asked(spots=80, **fields):
    shelf = Shelf(datasets=dict.fromkeys(samples(), FACTS | {"obs": spots}))
    return AlignRequest.model_validate({**EXAMPLE, **fields}, context={"shelf": shelf})


@pytest.mark.parametrize("mass", [None, "auto", 1, 0.25])
def test_masses(mass):
    assert asked(mass=mass).mass == mass


def test_pairs_and_plans():
    assert asked(pairs=PAIRS).pairs.shape == [2, 2]
    assert asked(plan0=[[1.0, 0.0]]).plan0.shape == [1, 2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pairs": PAIRS, "plan0": [[1.0]]}, "instead of pairs"),
        ({"pairs": [[0, 1], [-3, 2]]}, "the smallest is -3"),
        ({"pairs": [[0, 1]]}, "two pairs at least"),
        ({"plan0": [[0.5, -0.5]]}, "the smallest entry is -0.5"),
        ({"mass": 0.0}, "greater than 0"),
        ({"mass": "most"}, "'auto'"),
        ({"mass": 0.5, "solver": "hierarchical"}, "mass is of the dense solver"),
        ({"plan0": [[1.0]], "solver": "hierarchical"}, "plan0 is of the dense solver"),
    ],
)
def test_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        asked(**fields)


def test_memory_is_that_of_matrices_of_all_pairs():
    matrix = 8 * 50_000**2
    assert 12 * matrix < asked(50_000, solver="dense").footprint() < 20 * matrix
    assert 12 * matrix < asked(50_000, mass=0.5).footprint() < 20 * matrix
    assert asked(80, solver="dense").footprint() < 1 << 22


def test_memory_of_large_slices_grows_with_the_spots():
    few, many = (asked(spots, solver="hierarchical").footprint() for spots in (10_000, 20_000))
    assert many == 2 * few < 4 << 30
    assert asked(50_000).footprint() == asked(50_000, solver="hierarchical").footprint()
    # what is kept of a large file may still be few enough for the dense solver
    assert asked(6_000).footprint() == asked(5_000, solver="dense").footprint()


def test_both_sides_of_the_mirror_choose_alike():
    assert schemas.spatial.align.DENSE_SPOTS == algorithms.spatial.align.DENSE_SPOTS


@pytest.mark.parametrize("rows", [[0.0, 1.0], [-1, 0]])
def test_a_plan_counts_rows_by_whole_numbers_from_0(rows):
    plan = {"rows": rows, "cols": [0, 1], "mass": [0.5, 0.5]}
    with pytest.raises(ValidationError, match="whole numbers from 0") as refused:
        SparsePlan.model_validate(plan)
    assert refused.value.errors()[0]["ctx"]["field"] == "rows"
