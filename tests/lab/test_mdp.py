"""The golden problem and its optimum, against closed forms and published digits (A1, A2, A6)."""

import json
from pathlib import Path

import pytest
import torch

from kleash.errors import InputError
from kleash.lab.mdp import MDP, golden, load_mdp, load_policy, optimum

# beta, J*, E[r], KL, Var: A1
GOLDEN = [
    (2.0, 0.1771050135, 0.32860559, 0.07575029, 0.58638771),
    (1.0, 0.3222517568, 0.59740910, 0.27515735, 0.48200808),
    (0.5, 0.5607298711, 0.96451117, 0.80756260, 0.26554516),
    (0.3, 0.7772489001, 1.20867129, 1.43807464, 0.12434871),
    (0.2, 0.9484319003, 1.35652546, 2.04046781, 0.06384355),
    (0.1, 1.2064362925, 1.54035650, 3.33920208, 0.02197830),
    (0.05, 1.4074595934, 1.64807705, 4.81234923, 0.00427582),
]


def law(mdp: MDP, logits: torch.Tensor) -> torch.Tensor:
    return mdp.logprobs(logits).sum(-1)


def test_the_reference_is_the_golden_one() -> None:
    mdp = golden()
    logprobs = law(mdp, mdp.ref_logits)
    mean = float((logprobs.exp() * mdp.rewards).sum())
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert mean == pytest.approx(0.0225305475, abs=1e-8)
    second = float((logprobs.exp() * (mdp.rewards - mean).square()).sum())
    assert second == pytest.approx(0.6228128720, abs=1e-8)
    assert float(-(logprobs.exp() * logprobs).sum()) == pytest.approx(6.6701449873, abs=1e-8)
    assert float(mdp.rewards.max()) == pytest.approx(1.7150688843, abs=1e-8)
    assert mdp.tokens()[mdp.rewards.argmax()].tolist() == [0, 3, 2, 0]


@pytest.mark.parametrize(("beta", "objective", "reward", "kl", "variance"), GOLDEN)
def test_the_optimum_is_the_tilt(
    beta: float, objective: float, reward: float, kl: float, variance: float
) -> None:
    mdp = golden()
    ref = law(mdp, mdp.ref_logits)
    tilted = ref + mdp.rewards / beta
    log_z = float(tilted.logsumexp(-1))
    own = law(mdp, optimum(mdp, beta))
    torch.testing.assert_close(own, tilted - log_z, rtol=0, atol=1e-10)
    probs = own.exp()
    mean = float((probs * mdp.rewards).sum())
    assert beta * log_z == pytest.approx(objective, abs=1e-8)
    assert mean == pytest.approx(reward, abs=1e-8)
    assert float((probs * (own - ref)).sum()) == pytest.approx(kl, abs=1e-8)
    assert float((probs * (mdp.rewards - mean).square()).sum()) == pytest.approx(variance, abs=1e-8)


def test_the_gap_to_the_optimum_is_a_kl() -> None:
    """J* − J(π) = β·KL(π‖π*), for any policy."""
    mdp, beta = golden(), 0.3
    torch.manual_seed(0)
    own = law(mdp, mdp.ref_logits + torch.randn_like(mdp.ref_logits))
    ref, best = law(mdp, mdp.ref_logits), law(mdp, optimum(mdp, beta))
    value = float((own.exp() * (mdp.rewards - beta * (own - ref))).sum())
    gap = beta * float((own.exp() * (own - best)).sum())
    assert 0.7772489001 - value == pytest.approx(gap, abs=1e-8)


def write(path: Path, **changes: object) -> Path:
    rows = [[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]
    whole = {"vocab": 2, "length": 2, "ref_logits": rows, "rewards": [0, 1, 2, 3]} | changes
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def test_a_problem_is_read_as_it_was_written(tmp_path: Path) -> None:
    mdp = load_mdp(write(tmp_path / "mdp.json"))
    assert mdp.tokens().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert mdp.states().tolist() == [[0, 1], [0, 1], [0, 2], [0, 2]]
    # The second token after 0 is drawn from the second row.
    expected = torch.tensor([0.5, 0.0], dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(mdp.logprobs(mdp.ref_logits)[:2, 1], expected)
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(mdp.ref_logits.tolist()), encoding="utf-8")
    assert torch.equal(load_policy(policy, mdp), mdp.ref_logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab": 1},
        {"vocab": "2"},
        {"vocab": True},
        {"length": 0},
        {"length": 10**30},
        {"vocab": 1000, "length": 3},
        {"ref_logits": [[0.0, 1.0]]},
        {"ref_logits": [[0.0, 1.0], [0.0], [0.0, 0.0]]},
        {"ref_logits": [["a", "b"]] * 3},
        {"rewards": [0, 1, 2]},
        {"rewards": [0, 1, 2, float("nan")]},
        {"rewards": None},
        {"rewards": [0, 1, 2, True]},
        {"rewards": [0, 1, 2, 10**400]},
        {"rewards": {"0": 1}},
        {"rewards": "0123"},
        {"ref_logits": [[True, False]] * 3},
        {"ref_logits": [[0.0, float("inf")]] * 3},
        {"ref_logits": [[0.0, 1e308], [0.0, 0.0], [0.0, 0.0]]},
        {"ref_logits": [[0.0, -800.0], [0.0, 0.0], [0.0, 0.0]]},
        {"ref_logits": [[[0.0, 1.0]]] * 3},
        {"vocab": 2.0},
        {"vocab": 2**20, "length": 2**20},
        {"vocab": 8, "length": 7},
        {"length": -1},
    ],
)
def test_a_wrong_problem_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        load_mdp(write(tmp_path / "mdp.json", **changes))
    assert caught.value.expected


@pytest.mark.parametrize("name", ["vocab", "length", "ref_logits", "rewards"])
def test_a_missing_key_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "mdp.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    del data[name]
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match=name) as caught:
        load_mdp(path)
    assert caught.value.got == "no such key"


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        ([[0.0, 1.0]] * 2, "2 × 2"),
        ([[0.0, 1.0, 2.0]] * 3, "3 × 3"),
        ([[0.0, float("nan")]] * 3, "3 that are not finite"),
        ([[0.0, True]] * 3, "hold numbers"),
        ({"rows": []}, "no such key"),
        ([[0.0, 1000.0]] * 3, "-2000"),
    ],
)
def test_a_wrong_policy_is_refused(tmp_path: Path, rows: object, got: str) -> None:
    mdp, path = load_mdp(write(tmp_path / "mdp.json")), tmp_path / "policy.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_policy(path, mdp)
    assert got in caught.value.got


@pytest.mark.parametrize("beta", [1e-3, 1e-10, 1e-310])
def test_an_optimum_that_no_float_holds_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match="β") as caught:
        optimum(golden(), beta)
    assert caught.value.do == "take a larger β"


@pytest.mark.parametrize("text", ["", "[", "[1, 2]", "[" * 100_000, "\x00"])
def test_what_is_no_problem_at_all_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mdp.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        load_mdp(path)
    with pytest.raises(InputError):
        load_mdp(tmp_path / "missing.json")
