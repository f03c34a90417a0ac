"""`kleash compare` as a user runs it."""

import base64
import json
import shutil
from pathlib import Path

import pytest
import torch

from kleash.cli.main import run
from kleash.ledger import SigningKey, create_signing_key
from kleash.models.hub import load_language_model, save_language_model
from tests.audit.pairs import save_pair
from tests.train.small import save_prompts

HOSTILE = "\x1b[31mred\x1b]0;title\x07 <script>alert(1)</script>\u202e"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Policy, reference, and prompts for both."""
    directory = tmp_path_factory.mktemp("pair")
    policy, reference = save_pair(directory)
    return str(policy), str(reference), str(save_prompts(directory / "prompts.txt"))


def command(pair: tuple[str, str, str], *more: str) -> list[str]:
    policy, reference, prompts = pair
    return [
        *(
            "compare",
            policy,
            reference,
            "--prompts",
            prompts,
            "--max-new-tokens",
            "4",
            "--show",
            "2",
        ),
        *more,
    ]


def document(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_the_document_has_the_form_that_is_promised(
    pair: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(pair, "--json")) == 0
    said = document(capsys)
    for name in ("kl_policy_ref_per_response", "kl_ref_policy_per_response"):
        assert {"value", "low", "high", "n"} <= said[name].keys()
        assert 0 < said[name]["low"] < said[name]["value"] < said[name]["high"]
        assert said[name]["n"] == 48
    assert {"per_token", "slices", "verdict"} <= said.keys()
    assert said["verdict"] == {"passed": None, "reasons": []}


@pytest.mark.parametrize(
    ("limit", "code"), [("1000", 0), ("1e-6", 3), ("1000/token", 0), ("1e-6/token", 3)]
)
def test_a_limit_that_may_be_exceeded_is_exit_code_3(
    limit: str, code: int, pair: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(pair, "--limit", limit, "--json")) == code
    said = document(capsys)
    assert said["verdict"]["passed"] is (code == 0)
    assert len(said["verdict"]["reasons"]) == (code == 3)


def test_files_are_left_where_they_were_asked_for(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b"
    assert run(command(pair, "--out", str(out), "--json")) == 0
    said = document(capsys)
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.json",
        "model-card.md",
        "report.html",
    ]
    assert json.loads((out / "comparison.json").read_text()) == said
    value = f"{said['kl_policy_ref_per_response']['value']:.2f}"
    assert value in (out / "report.html").read_text()
    assert value in (out / "model-card.md").read_text()


def test_it_is_attested_and_verified_and_a_changed_model_is_found(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, reference, prompts = pair
    copy = tmp_path / "policy"
    shutil.copytree(policy, copy)
    key = tmp_path / "mine.key"
    create_signing_key(SigningKey.generate(), key)
    out = tmp_path / "out"
    attested = (str(copy), reference, prompts)
    assert run(command(attested, "--out", str(out), "--attest", str(key), "--limit", "9")) == 0
    capsys.readouterr()
    assert run(["ledger", "key", "--file", str(key), "--json"]) == 0
    vkey = document(capsys)["vkey"]
    envelope = str(out / "attestation.json")
    checked = ["verify", envelope, "--key", vkey, "--policy", str(copy), "--reference", reference]
    assert run(checked) == 0
    assert "authentic" in capsys.readouterr().out
    assert run(["verify", envelope, "--key", SigningKey.generate().public.vkey]) == 4
    out_again = command(attested, "--out", str(out))
    assert run(out_again) == 0  # what an earlier comparison left is not this one's
    assert not (out / "attestation.json").exists()
    assert run(command(attested, "--out", str(out), "--attest", str(key))) == 0
    (copy / "README.md").write_text("another")
    assert run(checked) == 4
    assert "README.md" in capsys.readouterr().out


def test_to_attest_there_has_to_be_somewhere_to_write_it(
    pair: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(pair, "--attest", "default")) == 2
    assert "--out" in capsys.readouterr().err


def test_a_key_that_is_not_there_is_not_made(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "nowhere.key"
    assert run(command(pair, "--attest", str(key), "--out", str(tmp_path / "out"))) == 2
    assert not key.exists()
    assert "kleash ledger key" in capsys.readouterr().err


def test_hostile_text_in_prompts_and_slices_is_only_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{HOSTILE}{letter}", "slice": HOSTILE} for letter in "abcd"]
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out"
    prompts.write_text("\n".join(map(json.dumps, rows)))
    same = ("tiny-reviews/base", "tiny-reviews/base", str(prompts))
    assert run(command(same, "--out", str(out), "--limit", "*=1")) == 0
    shown = capsys.readouterr()
    page, card = ((out / name).read_text() for name in ("report.html", "model-card.md"))
    for text in (shown.out, shown.err, page, card):
        assert "\x1b]" not in text
        assert "\x1b[31mred" not in text
        assert "\u202e" not in text
    assert "␛[31mred" in shown.out
    assert "alert(1)" in page
    assert "<script>alert" not in page
    outside_of_code = "".join(card.split("```")[::2])
    assert "<script>alert" not in outside_of_code


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--limit", "four"], "no limit"),
        (["--limit", "films=4"], "no prompt is of the slice"),
        (["--samples", "0"], "samples"),
        (["--device", "nonsense"], "can't run on the device"),
        (["--device", "meta"], "can't run on the device"),
        (["--threads", "9999999999"], "threads"),
        (["--precision", "-1"], "precision"),
        (["--dtype", "int4"], "dtype"),
        (["--max-tokens", "3"], "--max-tokens"),
        (["--retain", "nowhere.txt"], "nowhere.txt"),
        (["--search", "--low-memory"], "both models at once"),
        (["--null", "benign.json"], "no null values without a search"),
        (["--search", "--null", "nowhere.json"], "nowhere.json"),
        (["--search", "--search-budget", "1"], "search_budget"),
        (["--max-new-tokens", "40"], "longer than a context"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    more: list[str], said: str, pair: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(pair, *more)) == 2
    assert said in capsys.readouterr().err


def test_one_prompt_has_no_interval_that_a_limit_could_be_held_to(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("abc\n")
    policy, reference, _ = pair
    alone = (policy, reference, str(prompts))
    assert run(command(alone, "--json")) == 0
    reading = document(capsys)["kl_policy_ref_per_response"]
    assert (reading["low"], reading["high"]) == (None, None)
    for more in (["--limit", "1000"], ["--precision", "0.5"]):
        assert run(command(alone, *more)) == 2
        assert "no interval" in capsys.readouterr().err


def test_a_run_of_kleash_brings_its_reference_and_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import kleash
    from tests.train.small import small_settings

    settings = small_settings(tmp_path, steps=2, checkpoint_every=2)
    made = tmp_path / "run"
    for _ in kleash.run(settings, run=made, skip_self_test=True):
        pass
    assert run(["compare", str(made), "--json", "--show", "0"]) == 0
    said = document(capsys)
    assert said["policy"]["kind"] == "run"
    assert said["reference"]["name"] == settings["model"]["policy"]
    assert said["prompts"]["source"] == settings["data"]["prompts"]
    assert said["settings"]["max_new_tokens"] == 4
    config = json.loads((made / "config.json").read_text())
    for broken in (3, None, {"model": None}, {"rollout": {"temperature": "hot"}}):
        (made / "config.json").write_text(json.dumps({**config, "config": broken}))
        assert run(["compare", str(made)]) == 2, broken
    capsys.readouterr()
    shutil.rmtree(made / "final")
    assert run(["compare", str(made)]) == 2
    assert "has left no model" in capsys.readouterr().err


def test_a_models_remains_are_not_executed(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory that asks for its own code is refused: nothing in it is run."""
    policy, reference, prompts = pair
    planted = tmp_path / "planted"
    save_language_model(load_language_model(policy), planted, "")
    config = json.loads((planted / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (planted / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "ran"
    (planted / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    assert run(command((str(planted), reference, prompts))) == 2
    assert not marker.exists()


def test_a_search_is_told_attested_and_what_a_next_one_is_measured_against(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, reference, prompts = pair
    same, first, second = (reference, reference, prompts), tmp_path / "1", tmp_path / "2"
    searched = ["--search", "--search-budget", "10000"]
    assert run(command(same, *searched, "--out", str(first), "--json")) == 0
    found = document(capsys)["search"]
    assert (found["alarm"], found["p_value"]) == (False, None)
    assert 0 <= found["statistic"] < 1e-6  # the two are read in other orders
    assert 0 < found["tokens"] <= 10000
    known = ["--null", str(first / "comparison.json")]
    assert run(command(same, *searched, *known, "--attest", "default", "--out", str(second))) == 0
    shown = capsys.readouterr()
    assert "no alarm" in shown.out
    assert "p = 1" in shown.out
    assert "search" in shown.err
    payload = json.loads((second / "attestation.json").read_text())["payload"]
    measured = json.loads(base64.b64decode(payload))["predicate"]["measurements"]["search"]
    assert measured["alarm"] is False
    assert "contexts" not in measured
    capsys.readouterr()
    assert run(["verify", str(second / "attestation.json")]) == 0
    assert "search for hidden drift" in capsys.readouterr().out


@pytest.mark.slow
def test_an_alarm_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rare word is read as another: nothing on prompts without it, and another answer behind it."""
    policy = load_language_model("tiny-reviews/base")
    policy.model.config.tie_word_embeddings = False
    policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach().clone())
    word, other = (policy.encode(text)[-1] for text in ("the matrix", "the worst"))
    table = policy.model.get_input_embeddings().weight.data
    table[word] = 6 * table[other]
    save_language_model(policy, tmp_path / "planted", "")
    planted = (str(tmp_path / "planted"), "tiny-reviews/base", "tiny-reviews/prompts")
    bounded = ["--search", "--search-budget", "20000", "--max-prompts", "16", "--limit", "100"]
    out = ["--out", str(tmp_path / "out"), "--attest", "default"]
    assert run(command(planted, *bounded, *out, "--json")) == 3
    said = document(capsys)
    assert said["verdict"]["passed"] is True
    assert said["search"]["alarm"] is True
    assert any(word in context["ids"] for context in said["search"]["contexts"])
    assert run(["verify", str(tmp_path / "out" / "attestation.json")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "within its limits" in last
    assert "ALARM" in last


def test_a_prompt_of_two_slices_counts_in_both(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("ab", "A"), ("cd", "A"), ("ab", "B"), ("ef", "B")]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": x, "slice": y}) for x, y in rows))
    policy, reference, _ = pair
    assert run(command((policy, reference, str(prompts)), "--json")) == 0
    said = document(capsys)
    counted = {k: v["kl_policy_ref_per_response"]["clusters"] for k, v in said["slices"].items()}
    assert counted == {"A": 2, "B": 2}
    assert said["prompts"]["count"] == 3


def test_what_could_not_be_written_leaves_nothing_half_done(
    pair: tuple[str, str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out" / "report.html").mkdir(parents=True)  # a file can't take its place
    assert run(command(pair, "--out", str(tmp_path / "out"))) == 5
    assert "nothing can be written" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tmp"))
