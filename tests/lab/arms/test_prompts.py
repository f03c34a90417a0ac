"""Which prompts everything is measured on."""

from pathlib import Path

import pytest

from kleash.errors import InputError
from kleash.lab.arms.prompts import asked
from kleash.lab.arms.setting import PoolSize, Setting
from kleash.lab.arms.settings import EvaluationSettings
from kleash.train.data import load_prompts


def file_of(directory: Path, count: int) -> str:
    path = directory / "prompts.txt"
    path.write_text("".join(f"the film {i} is\n" for i in range(count)), encoding="utf-8")
    return str(path)


def test_a_file_that_is_no_longer_is_asked_whole_and_in_its_order(tmp_path: Path) -> None:
    source = file_of(tmp_path, 10)
    assert asked(source, 10) == asked(source, 99) == load_prompts(source)


def test_a_longer_one_is_drawn_from_and_not_cut(tmp_path: Path) -> None:
    """The first lines of a file are often of one kind: of 1,000, 100 that are drawn lie all over it."""
    source = file_of(tmp_path, 1000)
    found = asked(source, 100)
    places = [int(text.split()[2]) for text in found]
    assert len(set(places)) == 100
    assert sum(place < 500 for place in places) == pytest.approx(50, abs=20)
    assert asked(source, 30) == found[:30]


def test_pools_and_arms_are_asked_the_same() -> None:
    setting = Setting(evaluation=EvaluationSettings(num_prompts=7))
    assert setting.pool(PoolSize(), ()).num_prompts == setting.arm({}).evaluation.num_prompts == 7


def test_no_prompt_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompts"):
        asked(file_of(tmp_path, 0), 3)
