"""Claims that their intervals decide."""

import pytest

from kleash.lab.study.cost import told
from kleash.lab.study.files import csv, parquet
from kleash.lab.study.findings import decide, within
from kleash.lab.study.statistics import Estimate

SAYS = ("It is so.", "It is not so.", "That is open.")


@pytest.mark.parametrize(
    ("low", "high", "holds", "says"),
    [(0.2, 0.9, True, 0), (-0.9, -0.2, False, 1), (-0.1, 0.9, None, 2), (None, None, None, 2)],
)
def test_the_sentence_follows_from_the_interval(
    low: float | None, high: float | None, holds: bool | None, says: int
) -> None:
    claim = decide("a gain", Estimate(value=0.5, low=low, high=high, n=5), SAYS)
    assert (claim.holds, claim.says) == (holds, SAYS[says])


def test_what_could_not_be_had_is_open() -> None:
    assert decide("a gain", None, SAYS).says == "That is open."


def test_a_closed_form_holds_within_its_tolerance_and_not_on_nan() -> None:
    assert within("J*", 1e-11, 1e-10, "J* is β log Z").holds is True
    for error in (2e-10, float("nan")):
        claim = within("J*", error, 1e-10, "J* is β log Z")
        assert claim.holds is False
        assert "which it is not" in claim.says


def test_tables_as_files(tmp_path: object) -> None:
    import io

    import pyarrow.parquet as format_

    table = {"columns": ["arm", "KL"], "rows": [["=1+1, β", 1.5], ["b", None], ["c", 2]]}
    assert csv(table).decode().splitlines() == ["arm,KL", '"=1+1, β",1.5', "b,", "c,2"]
    read = format_.read_table(io.BytesIO(parquet(table))).to_pydict()
    assert read == {"arm": ["=1+1, β", "b", "c"], "KL": [1.5, None, 2.0]}


@pytest.mark.parametrize(
    ("seconds", "jobs", "says"),
    [
        (20, 1, "about 20 seconds on 1 core"),
        (600, 2, "about 5 minutes on 2 cores"),
        (8e5, 4, "about 2.3 days on 4 cores"),
    ],
)
def test_costs_as_a_person_says_them(seconds: float, jobs: int, says: str) -> None:
    assert told(seconds, jobs) == says
