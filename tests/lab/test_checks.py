"""What a study can't be made from is refused before any work: by what was expected, what was there, an exit code."""

from pathlib import Path

import pytest

from kleash.cli import main as cli
from kleash.cli.lab_study import _plan
from kleash.errors import ConfigError
from kleash.lab.catalogue import STUDIES

WITH_A_SETTING = [name for name in STUDIES if name != "goodhart"]

REFUSED = [
    ("goodhart", "kls=[0.1, 2.0]", "kls with 1.0 among them"),
    ("goodhart", "kls=[]", "kls with 1.0 among them"),
    ("goodhart", "kls=[1.0, 0.1]", "from small to large"),
    ("goodhart", "kls=[1.0, 9.0]", "kls of less than 8.31 nats"),
    ("goodhart", "kls=[0.0, 1.0]", "greater than 0"),
    ("goodhart", "counts=[4, 64]", "counts with 16 among them"),
    ("goodhart", "counts=[16]", "a smaller and a larger one"),
    ("goodhart", "counts=[4, 16, 1048576]", "counts of at most 131072"),
    ("goodhart", "sizes=[12]", "at least 2"),
    ("goodhart", "sizes=[12, 40]", "less than or equal to 26"),
    ("goodhart", "chi_squared_size=13", "chi_squared_size among sizes: 12, 15, 18"),
    ("goodhart", "scales=[]", "at least one value"),
    ("goodhart", "clip=0", "greater than 0"),
    ("goodhart", "watched=[4]", "greater than or equal to 16"),
    ("goodhart", "beta=-1", "greater than 0"),
    ("goodhart", "steps=0", "greater than 0"),
    ("overopt", "pairs=[5]", "greater than 9"),
    ("overopt", "pairs=[300, 300]", "300 is there twice"),
    ("overopt", "proxies=[]", "at least one value"),
    ("overopt", "betas=[-0.1]", "greater than 0"),
    ("overopt", "betas=[0.1, 0.10000000001]", "0.1 is there twice"),
    ("beta-sweep", "golden.betas=[0]", "greater than 0"),
    ("beta-sweep", "golden.betas=[]", "at least one value"),
    ("beta-sweep", "betas=[-1.0, 1.0]", "greater than or equal to 0"),
    ("beta-sweep", "kl_targets=[0]", "greater than 0"),
    ("collapse", "golden_betas=[0.1, 0]", "greater than 0"),
    ("collapse", "golden_betas=[0.1]", "at least 2"),
    ("collapse", "betas=[0.1, 0.1]", "0.1 is there twice"),
    ("ensembles", "sources=[]", "at least one value"),
    ("ensembles", "combine=[]", "at least one value"),
    ("ensembles", 'combine=["mean", "mean"]', "mean is there twice"),
    ("ensembles", "members=1", "greater than 1"),
    ("hacking", "rewards=[]", "at least one value"),
    ("hacking", 'rewards=["proxy", "proxy"]', "proxy is there twice"),
    ("hacking", 'rewards=["a:length", "b:length"]', "two are called length"),
    ("hacking", "setting.steps=1", "setting.steps of at least 5"),
    ("hacking", "benign_steps=4", "greater than or equal to 5"),
    ("hacking", "benign=2", "greater than 2"),
    ("misaligned-base", "table_betas=[]", "at least one value"),
    ("misaligned-base", "betas=[]", "at least one value"),
    ("misaligned-base", "setting.policy={width = 64}", "a model by its name"),
    ("retention", "betas=[1.0, 0.01]", "from small to large"),
    ("retention", "coefs=[0]", "greater than 0"),
    ("retention", "setting.num_prompts=49", "setting.num_prompts of at most 48"),
    ("overopt", "setting.learning_rate=inf", "a finite number"),
    ("overopt", "setting.noise=inf", "a finite number"),
    ("overopt", "setting.noise=nan", "a finite number"),
    ("ensembles", "uncertainty_weight=inf", "a finite number"),
    ("misaligned-base", "penalty=inf", "a finite number"),
    ("scaling", "kl_target=inf", "a finite number"),
    ("scaling", "gain=inf", "a finite number"),
    ("beta-sweep", "golden.learning_rate=inf", "a finite number"),
    ("scaling", "pairs=[5]", "greater than 9"),
    ("scaling", 'policies=["a", "a"]', "a is there twice"),
]


def refused(name: str, *settings: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        _plan(STUDIES[name], None, settings, quick=False)
    return caught.value


@pytest.mark.parametrize(("name", "setting", "expected"), REFUSED)
def test_it_is_refused_by_what_was_expected(name: str, setting: str, expected: str) -> None:
    error = refused(name, setting)
    assert expected in error.expected
    assert setting.partition("=")[0] in error.what
    assert error.got


@pytest.mark.parametrize("name", STUDIES)
def test_one_seed_is_too_few(name: str) -> None:
    assert "greater than 1" in refused(name, "seeds=1").expected


@pytest.mark.parametrize("name", WITH_A_SETTING)
def test_a_step_asks_no_more_prompts_than_there_are(name: str, tmp_path: Path) -> None:
    """What is examined is asked what there is, and needs no setting of its own for a short file."""
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    source = f"setting.prompts={path}"
    assert _plan(STUDIES[name], None, [source, "setting.num_prompts=2"], quick=True).seconds > 0
    error = refused(name, source, "setting.num_prompts=5")
    assert "setting.num_prompts" in error.what
    assert f"of at most 4, the prompts that {path} has, and not 5" in error.expected


@pytest.mark.parametrize("name", WITH_A_SETTING)
def test_an_algorithm_that_there_is_not_and_one_that_compares_are_refused(name: str) -> None:
    assert "did you mean rloo" in refused(name, "setting.algorithm=rlo").expected
    alone = refused(name, "setting.algorithm=rloo", "setting.group_size=1")
    assert "setting.group_size of at least 2" in alone.expected


def test_of_one_prompt_there_is_no_other_half(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("the film is\n", encoding="utf-8")
    error = refused("retention", f"setting.prompts={path}", "setting.num_prompts=1")
    assert "at least 2 prompts" in error.expected


def test_scaling_has_something_to_grow() -> None:
    assert (
        "at least one of them"
        in refused("scaling", "policies=[]", "proxies=[]", "pairs=[]").expected
    )
    data = _plan(STUDIES["scaling"], None, ["policies=[]", "proxies=[]"], quick=False)
    assert 0 < data.seconds < _plan(STUDIES["scaling"], None, [], quick=False).seconds


def test_a_prompts_file_that_is_not_there_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", f"setting.prompts={tmp_path / 'none.txt'}", "--out", str(tmp_path / "out")]
    assert cli.run(["lab", "overopt", *words]) == 2
    said = capsys.readouterr().err.replace("│", "")
    assert "none.txt" in "".join(said.split())  # a long path goes over several lines
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "sub", "goodhart"])
def test_out_is_no_file_nor_below_one(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is the study's own directory in it: that is known before there is anything to leave there."""
    file = tmp_path / "out" / "goodhart" if below == "goodhart" else tmp_path / "file"
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine", encoding="utf-8")
    out = file.parent if below == "goodhart" else file / below
    assert cli.run(["lab", "goodhart", "--quick", "--out", str(out)]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "expected a directory for the study's files" in said
    assert "name another with --out" in said
    assert file.read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.rglob("pieces"))


def test_the_studies_own_settings_pass() -> None:
    for study in STUDIES.values():
        for quick in (True, False):
            assert _plan(study, None, [], quick=quick).seconds > 0


@pytest.mark.parametrize("device", ["nowhere", "meta", "cuda:97", "auto"])
@pytest.mark.parametrize("name", WITH_A_SETTING)
def test_a_device_that_models_cannot_run_on_is_refused(name: str, device: str) -> None:
    """`meta` is one that torch has, and computes nothing; a study's pieces are of a device and not of any."""
    error = refused(name, f'setting.device="{device}"')
    assert "setting.device that models can run on here, such as cpu" in error.expected
    assert error.got == f'"{device}" (a string)'


def test_what_is_wrong_is_said_to_be_where_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[setting]\nstepz = 7\n", encoding="utf-8")
    study = STUDIES["overopt"]
    told: list[str] = []
    for file, settings in ((None, ["setting.stepz=7"]), (path, []), (path, ["seeds=3"])):
        for quick in (False, True):
            with pytest.raises(ConfigError) as caught:
                _plan(study, file, settings, quick=quick)
            told.append(caught.value.what.partition(": setting.stepz")[0])
    assert told == ["--set"] * 2 + [str(path)] * 2 + [f"{path} with --set"] * 2
