"""Penalties on maps: best map and conjugate against each other, and against rivals."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from algorithms.errors import IllPosed
from algorithms.structured.regularizer import BOUNDED, Regularizer, penalty

# Sums of a dozen products of numbers of size one.
ROUNDING = 1e-12
# What a quasi-Newton method with difference gradients reaches.
OPTIMISED = 1e-5
NAMES = {
    "frobenius": {},
    "l1": {"lam": 0.3},
    "l12_source": {"lam": 0.8},
    "l12_target": {"lam": 0.8},
    "nuclear": {"lam": 0.5},
    "rank": {"rank": 2},
    "stiefel": {},
    "fro_ball": {"radius": 0.7},
    "nuclear_ball": {"radius": 0.7},
    "spectral_ball": {"radius": 0.7},
}


def moment(seed, e=4, d=3):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(e, d)))


def asked(name, G, q=1.0, **more):
    return penalty(Regularizer(name, **{**NAMES[name], **more}), q, 1.0, torch.zeros_like(G))


def expected(name, G):
    """Spell out the table of conjugates."""
    s = torch.linalg.svdvals(G)
    given = NAMES[name]
    lam, t = given.get("lam", 0.0), given.get("radius", 1.0)
    return {
        "frobenius": lambda: G.square().sum() / 2,
        "l1": lambda: (G.abs() - lam).clamp_min(0).square().sum() / 2,
        "l12_source": lambda: (G.norm(dim=0) - lam).clamp_min(0).square().sum() / 2,
        "l12_target": lambda: (G.norm(dim=1) - lam).clamp_min(0).square().sum() / 2,
        "nuclear": lambda: (s - lam).clamp_min(0).square().sum() / 2,
        "rank": lambda: s[:2].square().sum() / 2,
        "stiefel": lambda: s.sum(),
        "fro_ball": lambda: t * G.norm(),
        "nuclear_ball": lambda: t * s[0],
        "spectral_ball": lambda: t * s.sum(),
    }[name]()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3)])
def test_conjugates_are_those_of_the_table(name, shape):
    G = moment(1, *shape)
    assert abs(float(asked(name, G).conjugate(G) - expected(name, G))) < ROUNDING


def nearby(name, M, rng):
    """Draw an admissible map near another one."""
    other = M + torch.from_numpy(rng.normal(size=M.shape)) * 10 ** rng.uniform(-4, 0)
    t = NAMES[name].get("radius", 1.0)
    u, s, v = torch.linalg.svd(other, full_matrices=False)
    match name:
        case "rank":
            return (u[:, :2] * s[:2]) @ v[:2]
        case "stiefel":
            return u @ v
        case "fro_ball":
            return other * min(1.0, t / float(other.norm()))
        case "nuclear_ball":
            return other * min(1.0, t / float(s.sum()))
        case "spectral_ball":
            return (u * s.clamp_max(t)) @ v
        case _:
            return other


@pytest.mark.parametrize("name", NAMES)
def test_no_rival_beats_the_best_map(name):
    rng, G = np.random.default_rng(2), moment(2)
    R = asked(name, G)
    M = R.best_map(G)
    best = float((M * G).sum() - R.value(M))
    assert best == pytest.approx(float(R.conjugate(G)), abs=ROUNDING)
    for _ in range(200):
        rival = nearby(name, M, rng)
        assert float((rival * G).sum() - R.value(rival)) <= best + ROUNDING


@pytest.mark.parametrize("name", ["frobenius", "l1", "l12_source", "nuclear"])
@pytest.mark.parametrize("q", [1.0, 0.25, 0.0625])
def test_an_optimiser_agrees(name, q):
    G = moment(3, 3, 2)
    # weak: the nuclear norm is then smooth about the answer, and a search without slopes gets there
    R = asked(name, G, q, **({"lam": 0.05} if name == "nuclear" else {}))

    def loss(flat):
        M = torch.from_numpy(flat.reshape(3, 2))
        return float(R.value(M) - (M * G).sum())

    start = R.best_map(G).numpy().ravel() + 0.1
    found = minimize(loss, start, method="Powell", options={"xtol": 1e-9, "ftol": 1e-14})
    assert found.fun == pytest.approx(-float(R.conjugate(G)), rel=OPTIMISED, abs=OPTIMISED)


def test_masks_signs_and_priors_hold():
    G = moment(4)
    mask = torch.zeros_like(G)
    mask[:2] = 1
    M = asked("l1", G, mask=mask, nonnegative=True).best_map(G)
    assert bool((M[2:] == 0).all())
    assert bool((M >= 0).all())
    assert torch.equal(M[:2], (G[:2] - 0.3).clamp_min(0))
    pulled = asked("l1", G, prior=moment(5)).best_map(G)
    assert torch.equal(pulled, asked("l1", G).best_map(G + moment(5)))
    far = asked("frobenius", G, q=0.25, prior=moment(5)).best_map(torch.zeros_like(G))
    assert torch.allclose(far, moment(5), atol=ROUNDING)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_parts(name):
    G = torch.stack([moment(k) for k in range(3)])
    R = asked(name, G[0])
    for k in range(3):
        assert torch.allclose(R.best_map(G)[k], R.best_map(G[k]), atol=ROUNDING)
        assert abs(float(R.conjugate(G)[k] - R.conjugate(G[k]))) < ROUNDING


@pytest.mark.parametrize("name", ["l1", "l12_source", "l12_target", "nuclear"])
def test_the_annihilating_strength_is_the_least(name):
    G = moment(6)
    lam = asked(name, G).annihilating(G)
    above, below = (asked(name, G, lam=lam * share) for share in (1 + 1e-9, 1 - 1e-6))
    assert float(above.best_map(G).abs().max()) == 0
    assert float(below.best_map(G).abs().max()) > 0


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": "l1"}, "lam"),
        ({"name": "l1", "lam": 1.0, "lam_relative": 0.5}, "lam"),
        ({"name": "frobenius", "lam": 1.0}, "lam"),
        ({"name": "rank"}, "rank"),
        ({"name": "rank", "rank": 4}, "rank"),
        ({"name": "stiefel", "radius": 1.0}, "radius"),
        ({"name": "nuclear", "lam": 1.0, "nonnegative": True}, "nonnegative"),
        ({"name": "rank", "rank": 1, "mask": moment(0)}, "mask"),
        ({"name": "stiefel", "prior": moment(0)}, "prior"),
    ],
)
def test_what_makes_no_sense_is_refused(given, field):
    with pytest.raises(IllPosed) as caught:
        penalty(Regularizer(**given), 1.0, 1.0, moment(0))
    assert caught.value.field == f"regularizer.{field}"


def test_scalings_weigh_squared_norms_alone():
    for name in BOUNDED:
        with pytest.raises(IllPosed, match="squared norm"):
            penalty(Regularizer(name), 0.25, 1.0, moment(0))
