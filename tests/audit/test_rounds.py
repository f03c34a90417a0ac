"""What is sampled and read, against the sum over every response."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from kleash.audit import rounds
from kleash.audit.compare import compare
from kleash.audit.config import CompareConfig
from kleash.audit.estimate import least_variance, least_width, measure
from kleash.audit.pair import Pair, encode
from kleash.audit.prompts import Prompt
from kleash.audit.result import Comparison
from kleash.audit.rounds import Measured, Sampler
from kleash.audit.sources import find
from kleash.functional.intervals import clustered_mean
from tests.audit.pairs import (
    END,
    LONGEST,
    VOCAB,
    log_joint,
    save_pair,
    save_unigram,
    true_kl,
)
from tests.train.small import LETTERS, save_small_model

POPULATION = ["".join(x) for x in itertools.product(LETTERS, repeat=3)]
"""All prompts there are: those of a comparison are drawn from them."""


class Known:
    """A pair of models of which everything is known.

    Args:
        directory: where they are saved.
        seed: of both.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        policy, reference = (find(str(path)) for path in save_pair(directory, seed))
        self.pair = Pair(policy, reference)
        self.encoded = encode(self.pair, [Prompt(text) for text in POPULATION], LONGEST, None)
        prompts = torch.tensor(self.encoded)
        self.policy, self.reference = (
            log_joint(Path(side.load), prompts) for side in (policy, reference)
        )
        self.reverse = true_kl(self.policy, self.reference)
        self.forward = true_kl(self.reference, self.policy)
        mixture = torch.logaddexp(self.policy, self.reference) - math.log(2)
        self.js = 0.5 * (true_kl(self.policy, mixture) + true_kl(self.reference, mixture))

    def sample(self, count: int, seed: int, **settings: object) -> Measured:
        """A comparison on prompts that are drawn from the population."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(POPULATION), (count,), generator=generator).tolist()
        config = CompareConfig.model_validate(
            {
                "policy": "p",
                "reference": "r",
                "prompts": "-",
                "max_new_tokens": LONGEST,
                "seed": seed,
                **settings,
            }
        )
        rows = [self.encoded[i] for i in drawn]
        texts = [POPULATION[i] for i in drawn]
        return Sampler(self.pair, texts, rows, config, lambda *_: None).run()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(tmp_path_factory.mktemp("known"), 5)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    tensor = torch.tensor(values, dtype=torch.double)
    return float(tensor.mean()), float(tensor.std()) / math.sqrt(len(values))


def test_every_estimate_is_unbiased(known: Known) -> None:
    """Over comparisons on other prompts and other responses each mean is the truth, within three and a half errors."""
    found: dict[str, list[float]] = {"reverse": [], "forward": [], "js": []}
    for seed in range(25):
        measured = known.sample(32, seed)
        drift = measure(measured.policy, measured.reference, "r")
        found["reverse"].append(drift.reverse.value)
        found["forward"].append(drift.forward.value)
        found["js"].append(drift.js.value)
    for name, values in found.items():
        mean, error = mean_and_error(values)
        truth = float(getattr(known, name).mean())
        assert abs(mean - truth) < 3.5 * error, (name, mean, truth, error)
        assert error < 0.05 * truth


@pytest.mark.parametrize(
    ("pairs", "each", "least", "most"),
    [
        pytest.param(2, 40, 0.88, 1.0, marks=pytest.mark.slow),
        pytest.param(5, 60, 0.93, 0.97, marks=pytest.mark.long),
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(
    pairs: int, each: int, least: float, most: float, tmp_path: Path
) -> None:
    """Of random pairs on random prompts, against the sum over every response."""
    held = {"reverse": 0, "forward": 0, "js": 0}
    for seed in range(pairs):
        known = Known(tmp_path / str(seed), seed)
        for repetition in range(each):
            measured = known.sample(32, 1000 * seed + repetition)
            drift = measure(measured.policy, measured.reference, "r")
            for name in held:
                reading, truth = getattr(drift, name), float(getattr(known, name).mean())
                held[name] += reading.low <= truth <= reading.high
    shares = {name: hits / (pairs * each) for name, hits in held.items()}
    assert least <= shares["reverse"] <= most, shares
    assert least <= shares["forward"] <= most, shares
    assert 0.88 <= shares["js"] <= 0.98, shares  # of few prompts it covers less than it says


def compared(policy: Path, reference: Path, prompts: Path, **settings: object) -> Comparison:
    return compare(
        CompareConfig.model_validate(
            {
                "policy": str(policy),
                "reference": str(reference),
                "prompts": str(prompts),
                "max_new_tokens": LONGEST,
                **settings,
            }
        )
    )


def save_prompts(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(texts) + "\n")
    return path


def test_a_model_and_itself_are_exactly_nothing_apart(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    found = compared(model, model, save_prompts(tmp_path / "p.txt", POPULATION[:8]))
    drift = found.drift
    for each in (drift.reverse, drift.forward, drift.reverse_token, drift.js, drift.js_token):
        assert (each.value, each.low, each.high) == (0.0, 0.0, 0.0)
    assert found.policy.weights == found.reference.weights
    assert found.where["tokens"] == {"gained": [], "lost": []}
    assert all(answer["same"] for answer in found.where["answers"])


def test_a_hotter_model_is_as_far_as_is_computed_by_hand(tmp_path: Path) -> None:
    """The next token depends on nothing, so that KL per token is one number, and a response's that times its length."""
    logits = torch.linspace(-1.0, 1.0, VOCAB)
    small = save_small_model(tmp_path / "small")
    reference = save_unigram(small, tmp_path / "reference", logits)
    policy = save_unigram(small, tmp_path / "policy", logits, temperature=2.0)
    prompts = save_prompts(tmp_path / "p.txt", POPULATION[:64])
    found = compared(policy, reference, prompts, samples=8)
    q, p = ((logits.double() / tau).softmax(-1) for tau in (2.0, 1.0))
    per_token = float((q * (q / p).log()).sum())
    length = sum(float(1 - q[END]) ** t for t in range(LONGEST))
    drift = found.drift
    assert drift.reverse_token.value == pytest.approx(per_token, rel=1e-5)
    assert drift.entropy_policy.value == pytest.approx(float(-(q * q.log()).sum()), rel=1e-5)
    low, high = drift.reverse.low, drift.reverse.high
    assert low is not None
    assert high is not None
    assert low <= per_token * length <= high
    # Every response is its number of tokens times one KL.
    assert drift.reverse.value == pytest.approx(per_token * drift.length_policy.value, rel=1e-5)
    gained = {x["id"]: x["probability"] for x in found.where["tokens"]["gained"]}
    for token, probability in gained.items():
        assert probability == pytest.approx(float(q[token] - p[token]), rel=1e-4)


def test_one_temperature_divides_the_logits_of_both(tmp_path: Path) -> None:
    logits, small = torch.linspace(-1.0, 1.0, VOCAB), save_small_model(tmp_path / "small")
    one = save_unigram(small, tmp_path / "one", logits)
    other = save_unigram(small, tmp_path / "other", 3 * logits)
    prompts = save_prompts(tmp_path / "p.txt", POPULATION[:8])
    q, p = ((scale * logits.double() / 1.7).softmax(-1) for scale in (1, 3))
    found = compared(one, other, prompts, temperature=1.7)
    expected = float((q * (q / p).log()).sum())
    assert found.drift.reverse_token.value == pytest.approx(expected, rel=1e-5)


def test_more_rounds_make_the_interval_as_narrow_as_was_asked(known: Known) -> None:
    one = known.sample(64, 3)
    wide = measure(one.policy, one.reference, "r").reverse
    assert wide.low is not None
    assert wide.high is not None
    wanted = 0.9 * (wide.high - wide.low)
    more = known.sample(64, 3, precision=wanted)
    narrow = measure(more.policy, more.reference, "r").reverse
    assert (one.stopped, more.stopped) == ("samples", "precision")
    assert more.rounds > 1
    assert narrow.low is not None
    assert narrow.high is not None
    assert narrow.high - narrow.low <= wanted


def test_no_round_is_begun_that_the_budget_has_no_room_for(known: Known) -> None:
    found = known.sample(64, 3, precision=0.3, max_tokens=2000)
    assert found.stopped in {"max_tokens", "prompts"}
    assert found.num_tokens <= 2000


def test_prompts_that_differ_among_themselves_are_not_asked_for_ever(known: Known) -> None:
    """Between few prompts there is a spread that no number of responses to them lessens."""
    found = known.sample(4, 3, precision=1e-3, max_tokens=100_000)
    assert found.stopped == "prompts"
    assert found.policy.count >= 4 * rounds.ENOUGH  # not told from two responses to each
    assert least_width(found.policy) > 1e-3


@pytest.mark.parametrize("wave", [rounds.WAVE_TOKENS, 8 * LONGEST, 1])
def test_low_memory_measures_the_same(
    wave: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many batches one model answers before the other is loaded."""
    monkeypatch.setattr(rounds, "WAVE_TOKENS", wave)
    policy, reference = save_pair(tmp_path)
    prompts = save_prompts(tmp_path / "p.txt", POPULATION[:16])
    found = [
        compared(policy, reference, prompts, low_memory=low, batch_size=4).to_json()
        for low in (False, True)
    ]
    for document in found:
        del document["settings"]["low_memory"]
    assert found[0] == found[1]


def test_more_responses_to_a_prompt_than_a_batch_holds(tmp_path: Path) -> None:
    policy, reference = save_pair(tmp_path)
    prompts = save_prompts(tmp_path / "p.txt", POPULATION[:3])
    found = compared(policy, reference, prompts, samples=7, batch_size=4)
    assert (found.drift.reverse.n, found.drift.reverse.clusters) == (21, 3)
    assert sum(each["count"] for each in found.where["positions"][:1]) == 21


def test_the_same_seed_gives_the_same_document_and_another_another(tmp_path: Path) -> None:
    policy, reference = save_pair(tmp_path)
    prompts = save_prompts(tmp_path / "p.txt", POPULATION[:8])
    one, again, other = (
        compared(policy, reference, prompts, seed=seed).to_json() for seed in (0, 0, 1)
    )
    assert one == again
    assert one["kl_policy_ref_per_response"] != other["kl_policy_ref_per_response"]


def test_positions_and_prompts_add_up_to_the_reading(known: Known, tmp_path: Path) -> None:
    policy, reference = save_pair(tmp_path)
    prompts = save_prompts(tmp_path / "p.txt", POPULATION[:16])
    found = compared(policy, reference, prompts)
    for way, reading in (
        ("kl_policy_ref", found.drift.reverse),
        ("kl_ref_policy", found.drift.forward),
    ):
        positions = sum(each[way] for each in found.where["positions"])
        mean = sum(each[way] for each in found.where["prompts"]) / 16
        assert positions == pytest.approx(reading.value, rel=1e-9)
        assert mean == pytest.approx(reading.value, rel=1e-9)


def test_slices_are_comparisons_of_their_own_prompts(tmp_path: Path) -> None:
    import json

    policy, reference = save_pair(tmp_path)
    lines = [{"prompt": x, "slice": "ab"[i % 2]} for i, x in enumerate(POPULATION[:16])]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    found = compared(policy, reference, prompts)
    assert list(found.slices) == ["a", "b"]
    halves = [each.reverse for each in found.slices.values()]
    assert sum(half.value for half in halves) / 2 == pytest.approx(found.drift.reverse.value)
    assert [half.clusters for half in halves] == [8, 8]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_of_few_prompts_jensen_shannon_is_no_surer_than_kl(count: int, known: Known) -> None:
    """And its value is what both models' responses say, not what rounding does."""
    found = [known.sample(count, seed, samples=4) for seed in range(6)]
    for measured in found:
        drift = measure(measured.policy, measured.reference, "r")
        assert 0 <= drift.js.value <= math.log(2)
        if count == 1:
            assert (drift.js.low, drift.js.high) == (None, None)
            continue
        widths = [(x.high or 0) - (x.low or 0) for x in (drift.js, drift.reverse)]
        assert widths[0] / drift.js.value > 0.2 * widths[1] / drift.reverse.value


def test_the_share_of_a_noise_is_no_surer_than_its_clusters() -> None:
    """A mean that a noise was taken from keeps the coverage of an ordinary one, at 8 clusters as at 32."""
    for clusters in (8, 32):
        held = 0
        for _ in range(400):
            values = torch.randn(clusters, dtype=torch.double)
            noise = torch.randn(clusters, dtype=torch.double) - 0.7 * values
            mixed = values + least_variance(values, noise, torch.arange(clusters)) * noise
            found = clustered_mean(mixed, torch.ones_like(mixed), torch.arange(clusters))
            assert found.low is not None
            assert found.high is not None
            held += found.low <= 0.0 <= found.high
        assert held >= 0.91 * 400, (clusters, held)
