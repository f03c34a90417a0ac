"""Studies from their command to their files, so small that nothing is learnt: what holds of whatever they find.

`overopt` is in tests/cli/test_lab_study.py, `beta-sweep` and `collapse` are in test_beta_sweep.py.
"""

import csv
import html
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from kleash.cli import main as cli
from kleash.lab.faulty_mdp import leashed_share
from kleash.lab.tailed_mdp import best, tailed
from kleash.lab.tails import gaussian_best_of_n, gaussian_gain
from kleash.models.loading import count_parameters

PROMPTS = ("the film is", "i thought the acting", "the plot of this movie", "overall the director")
ARMS = {
    "setting.steps": 5,
    "setting.num_prompts": 2,
    "setting.max_new_tokens": 6,
    "setting.pairs": 20,
    "setting.evaluation.num_prompts": 4,
    "setting.evaluation.group_size": 2,
    "seeds": 2,
}
SMALL: dict[str, dict[str, Any]] = {
    "goodhart": {
        "kls": [0.5, 1.0],
        "sizes": [12, 13],
        "chi_squared_size": 12,
        "pools": 2,
        "scales": [1.0],
        "choice_size": 12,
        "counts": [4, 16, 64],
        "watched": [64],
        "samples": 40,
        "steps": 4,
        "seeds": 2,
    },
    "hacking": {
        **ARMS,
        "rewards": '["kleash.lab.hacks:length"]',
        "benign": 3,
        "benign_steps": 6,
    },
    "retention": {**ARMS, "betas": [0.1], "coefs": [1.0], "texts": 16},
    "scaling": {
        **ARMS,
        "policies": '[{width = 32, layers = 1, steps = 2, texts = 8}, "tiny-reviews/base"]',
        "proxies": [],
        "pairs": [20],
    },
    "misaligned-base": {
        **ARMS,
        "table_betas": [0.5],
        "table_steps": 20,
        "betas": [0.0],
        "samples": 4,
    },
    "ensembles": {
        **ARMS,
        "members": 2,
        "combine": '["mean"]',
        "sources": '["data"]',
        "pool.samples": 8,
    },
}


class Made:
    """A study, made in a directory of its own."""

    def __init__(self, name: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.name, self.out, self.capsys = name, directory / "lab", capsys
        prompts = directory / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
        settings = SMALL[name]
        if name != "goodhart":
            settings = {**settings, "setting.prompts": prompts}
        self.words = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
        self.document = self.again()
        self.findings = self.document["findings"]

    def again(self) -> dict[str, Any]:
        """Asks for it, once more."""
        words = [*self.words, "--out", str(self.out), "--jobs", "1", "--json"]
        assert cli.run(["lab", self.name, *words]) == 0
        return json.loads(self.capsys.readouterr().out)

    def rows(self, table: int) -> list[dict[str, Any]]:
        """A table's rows, by its columns."""
        told = self.findings["tables"][table]
        return [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]]

    def claims(self) -> dict[str, dict[str, Any]]:
        """By name."""
        found = {claim["name"]: claim for claim in self.findings["claims"]}
        assert len(found) == len(self.findings["claims"])
        return found


def check_what_is_left(made: Made, pieces: int, remade: str) -> None:
    """Files that say the same; intervals about their estimates; and nothing is made twice, or otherwise.

    Args:
        made: the study.
        pieces: that it is made of.
        remade: how a piece's name begins that is lost, and made again.
    """
    folder = made.out / made.name
    assert json.loads((folder / "findings.json").read_text(encoding="utf-8")) == made.document
    first = made.findings["tables"][0]
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == first["columns"] == parquet.read_schema(folder / "table.parquet").names
    assert len(rows) == len(first["rows"])
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert made.findings["answer"] in page
    assert {path.suffix for path in folder.glob("figure.*")} == {".svg", ".pdf", ".png"}
    for claim in made.claims().values():
        check_estimate(claim)

    assert (made.document["cost"]["pieces_made"], made.document["cost"]["pieces_found"]) == (
        pieces,
        0,
    )
    lost = sorted(made.out.glob(f"pieces/{remade}-*"))[0]
    shutil.rmtree(lost)
    again = made.again()
    assert (again["cost"]["pieces_made"], again["cost"]["pieces_found"]) == (1, pieces - 1)
    assert again["findings"] == made.findings


def check_estimate(claim: dict[str, Any]) -> None:
    """An interval holds its estimate, and where there is none nothing is decided by it."""
    found = claim["estimate"]
    if found is None:
        return
    if found["low"] is None:  # of one observation
        assert (found["n"], claim["holds"]) == (1, None)
        return
    assert found["low"] <= found["value"] <= found["high"]
    assert found["level"] >= 0.95  # more, of what is looked at with others


@pytest.mark.slow
def test_goodhart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made("goodhart", tmp_path, capsys)
    # A normal error of one size; four errors of two sizes; three to choose from; five and a calibration; three laws.
    check_what_is_left(made, 1 + 8 + 3 + 6 + 6, "tilt-pools")

    tilts = {(row["error"], row["log₂ N"], row["under"]): row for row in made.rows(0)}
    assert len(tilts) == 4 * (3 + 2)
    for kl in (0.5, 1.0):
        gain = tilts["normal", 13, "KL"][f"E[V] at {kl:g} nats"]
        assert gain == pytest.approx(gaussian_gain(kl, 1.0), rel=0.1)
        plain, clipped = (tilts["Cauchy", 13, law] for law in ("KL", "KL, proxy clipped"))
        assert clipped[f"E[V] at {kl:g} nats"] > plain[f"E[V] at {kl:g} nats"] + 0.3
    exact = made.rows(1)[0]
    assert exact["n = 16"] == pytest.approx(gaussian_best_of_n(16, 1.0))
    for row in made.rows(2):
        assert all(0 <= row[f"flagged, {name}"] <= 1 for name in ("normal", "t₅", "t₃", "Cauchy"))
    optimum = best(tailed(), 1.0, clip=None, chi_squared=1.0)
    trained = {(row["penalty"], row["figure"]): row for row in made.rows(3)}
    assert trained["KL and χ²", "gold"]["optimum"] == pytest.approx(optimum.gold)
    for row in trained.values():
        assert row["low"] <= row["trained"] <= row["high"]


@pytest.mark.slow
def test_hacking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made("hacking", tmp_path, capsys)
    # A proxy a seed, and one more to watch; a free and a held arm a seed; sound ones.
    check_what_is_left(made, 3 + 4 + 3, "train-arm")

    free, held = made.rows(0)
    assert (free["penalty"], held["penalty"]) == ("none", "leash 8")
    for row in (free, held):
        assert row["runs"] == 2
        assert row["runs hacked"] in {0, 1, 2}
        assert 0 < row["tokens"] <= 6
        assert row["KL at the end, nats"] >= 0
    alarms = made.rows(1)
    assert alarms[-1]["alarm"] == "any of them"
    for row in alarms:
        rang = row["benign runs in which it rang"]
        assert 0 <= rang <= 3
        # A run is at risk until it rings: from its first step to all six.
        least, most = 1000 * rang / 18, 1000 * rang / (rang + 6 * (3 - rang))
        assert least - 1e-9 <= row["false per 1,000 steps"] <= most + 1e-9
    assert made.claims()["any of them: false alarms"]["estimate"]["n"] == 3
    roc = made.rows(2)
    names = [row["alarm"] for row in alarms]
    planned = {row["planned per 1,000 steps"] for row in roc}
    assert len(roc) == len(names) * len(planned)
    for row in roc:
        assert row["low"] <= row["false per 1,000 steps"] <= row["high"]
    at_one = [row for row in roc if row["planned per 1,000 steps"] == pytest.approx(1.0)]
    assert [row["false per 1,000 steps"] for row in at_one] == [
        row["false per 1,000 steps"] for row in alarms
    ]


@pytest.mark.slow
def test_retention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made("retention", tmp_path, capsys)
    # Two proxies, and what their arms begin as; three arms a seed.
    check_what_is_left(made, 2 + 2 + 2 * 3, "train-arm")

    rows = made.rows(0)
    assert [row["arm"] for row in rows] == ["β = 0", "β = 0.1", "γ = 1"]
    for row in rows:
        assert row["KL(π‖π_ref), nats"] >= 0
        # KL(π_ref‖π), of whatever was trained.
        assert row["lost on the task, nats per token"] > 0
        assert row["lost beside it, nats per token"] > 0
    assert rows[0]["of what is lost without"] == pytest.approx(1.0)


@pytest.mark.slow
def test_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made("scaling", tmp_path, capsys)
    # A student; for each of two rungs that differ two proxies and four arms, and what they begin as.
    check_what_is_left(made, 1 + 2 * (2 + 4 + 2), "fit-proxy")

    small, base, few = made.rows(0)
    assert [row["what grows"] for row in (small, base, few)] == ["policy", "policy", "data"]
    assert base["size"] == count_parameters("tiny-reviews/base")
    assert small["size"] < base["size"]
    assert few["size"] == 20
    # The embedded policy with 20 pairs stands on both axes, and was made once.
    figures = [name for name in base if name not in {"what grows", "rung", "size"}]
    assert [base[name] for name in figures] == [few[name] for name in figures]
    for row in made.rows(0):
        assert row["√KL at the end, no penalty"] >= 0
    assert all(row["off by"] is None for row in made.rows(1))


@pytest.mark.slow
def test_misaligned_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made("misaligned-base", tmp_path, capsys)
    # Tables with a reward against the fault and without, two seeds; the fault, its weight, and two arms.
    check_what_is_left(made, 4 + 2 + 2, "train-table")

    reference, arm = made.rows(0)
    assert (reference["model"], arm["β"]) == ("reference", 0.0)
    assert reference["low"] <= reference["responses with the fault"] <= reference["high"]
    assert 0 <= arm["responses with the fault"] <= 1
    assert arm["KL(π‖π_ref), nats"] >= 0
    for row in made.rows(1):
        assert row["π*(B)"] == pytest.approx(0.3, abs=1e-12)
    plain, against = made.rows(2)
    assert (plain["D"], against["D"]) == (0.0, 0.5)
    assert plain["π*(B)"] == pytest.approx(0.3)
    assert against["π*(B)"] == pytest.approx(leashed_share(0.3, 0.5, 0.5))
    # A few steps take it from the reference towards the optimum, and no further.
    assert against["π*(B)"] < against["π(B)"] < 0.3
    for row in (plain, against):
        assert row["low"] <= row["π(B)"] <= row["high"]


@pytest.mark.slow
def test_ensembles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made("ensembles", tmp_path, capsys)
    # Two members a seed; a single arm a seed and one of the ensemble; a pool.
    check_what_is_left(made, 4 + 4 + 1, "draw-pool")

    rows = made.rows(0)
    assert [row["how"] for row in rows] == ["trained"] * 2 + ["best-of-n"] * 4
    for row in rows:
        kl = row["KL at the end, nats"]
        assert kl >= 0
        if row["how"] == "best-of-n":
            assert kl == pytest.approx(math.log(8) - 7 / 8)  # of the largest n, the pool's samples
    assert [row["seed"] for row in made.rows(1)] == [0, 1]
    assert all(row["at the end"] >= 0 for row in made.rows(1))
    assert made.claims()["closed form of a mean of members"]["holds"] is True
