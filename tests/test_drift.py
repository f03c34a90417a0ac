"""The meter."""

import pytest
import torch

from kleash.drift import measure_drift, token_drift


def test_temperature_divides_both_sides() -> None:
    """Pitfall 15: at τ = 0.7 the meter reads the KL of the distributions that are sampled from."""
    logits, ref = torch.randn(5, 9), torch.randn(5, 9)
    tokens = torch.zeros(5, dtype=torch.long)
    q, p = torch.softmax(logits / 0.7, -1).double(), torch.softmax(ref / 0.7, -1).double()
    expected = (q * (q / p).log()).sum(-1)
    found = token_drift(logits, ref, tokens, temperature=0.7)
    assert torch.allclose(found.kl.double(), expected, atol=1e-5)
    assert torch.allclose(found.entropy.double(), -(q * q.log()).sum(-1), atol=1e-5)


def test_per_response_and_per_token_are_sums_over_responses_and_tokens() -> None:
    kl = torch.tensor([[1.0, 2.0, float("nan")], [3.0, 4.0, 5.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    clusters = torch.tensor([0, 1])
    per_response = measure_drift(kl, mask, clusters, reference="base")
    per_token = measure_drift(kl, mask, clusters, reference="base", unit="token")
    assert per_response.value == pytest.approx(7.5)
    assert per_token.value == pytest.approx(3.0)
    assert per_response.name == "kl_policy_ref_per_response"
    assert (per_response.n, per_response.clusters) == (2, 2)
