"""The meter."""

import pytest
import torch

from kleash.drift import measure_drift


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
