"""A plan that was overridden: by a second key, with a reason, for what follows; and nothing else passes."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash import control, guard
from kleash.control import ControlConfig
from kleash.errors import ConfigError, InputError, TamperError
from kleash.guard import Evidence, GuardConfig
from kleash.ledger import (
    ML_DSA_44,
    OVERRIDE,
    Change,
    Ledger,
    OverrideEntry,
    SigningKey,
    UpdateEntry,
    encode,
    read,
    sign_override,
    verify_chain,
)
from kleash.replay import Verification, override, verify_run
from tests.ledger.test_second_verifier import SECOND
from tests.ledger.written import KEY, OTHER, entry, forge
from tests.test_replay import DIGESTS, FACTS, KL, OPTIMISATION, RL, SIGNALS, VERSIONS

RL_CONFIG = ControlConfig.model_validate(RL)
PLANNED = GuardConfig(max_kl=20.0)
THIRD = SigningKey.generate()
PROPOSED = replace(KL, value=1.0)


class Writer:
    """Writes a run as the loop does, from the values that KL had before each update."""

    def __init__(self, directory: Path, planned: GuardConfig = PLANNED, steps: int = 9) -> None:
        self.directory, self.steps = directory, steps
        self.limits, self.step, self.applied = planned, 0, True
        self.control, self.guard = control.init(RL_CONFIG), guard.start(planned, steps)
        config = OPTIMISATION | {
            "model": {},
            "train": {"steps": steps},
            "rl": RL_CONFIG.model_dump(mode="json"),
            "guard": planned.model_dump(mode="json"),
        }
        started = {"config": config, "versions": VERSIONS, "digests": DIGESTS}
        plan = {"guard": config["guard"], "rl": config["rl"], "canary": None}
        with Ledger.create(directory, [KEY]) as ledger:
            ledger.append("run.started", {**started, "kleash": "0"})
            ledger.append("plan.committed", plan)

    def add(self, type: str, **body: Any) -> None:
        ledger, _ = Ledger.open(self.directory, [KEY])
        with ledger:
            ledger.append(type, body)

    def under(self, limits: GuardConfig) -> None:
        self.guard = guard.carry(self.guard, self.limits, limits, self.steps)
        self.limits = limits

    def make(self, value: float) -> str:
        """One step; what became of it."""
        self.step += 1
        facts = replace(
            FACTS,
            kl_new_old=replace(KL, unit="token", direction="new_old", value=0.01),
            tails=guard_tails(),
            entropy=1.0,
            kl_proposed=PROPOSED,
        )
        kl, signals = replace(KL, value=value), replace(SIGNALS, applied=self.applied)
        self.control = control.update(self.control, kl, signals)
        evidence = Evidence(kl=kl, facts=facts)
        seen = guard.observed(evidence, signals, None)
        done = guard.decide(self.limits, self.guard, self.step, evidence, seen, None)
        update = UpdateEntry(
            step=self.step,
            kl=kl,
            signals=signals,
            kl_coef=self.control.kl_coef,
            facts=facts,
            verdict=done.verdict,
            guard=done.state.to_json(),
            control=self.control.to_json(),
            rollout_sha256="a" * 64,
            metrics_sha256="b" * 64,
        ).to_json()
        self.add("update.intent", **{n: update[n] for n in ("step", "rollout_sha256", "kl_coef")})
        self.add("update", **update)
        self.guard, self.applied = done.state, done.verdict.keeps
        self.control = control.raised(self.control, done.raise_by)
        return done.verdict.action

    def override(self, until: int | None = None, second: SigningKey = OTHER, **values: Any) -> None:
        def amended(limits: GuardConfig) -> GuardConfig:
            return limits.model_copy(update=values)

        override(self.directory, [KEY], second, amended, reason="a reason", until=until)


def guard_tails() -> Any:
    from kleash.records import StepTails

    return StepTails(kl_p99=0.02, kl_max=0.1, log_ratio_max=0.2)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    """A run with two steps, then limits that are wider, and a step that needs them."""
    writer = Writer(tmp_path / "ledger")
    assert [writer.make(3.0), writer.make(4.0)] == ["accept", "accept"]
    writer.override(max_kl=30.0)
    writer.under(GuardConfig(max_kl=30.0))
    assert writer.make(25.0) == "accept"
    return writer


def said_of(found: Verification) -> str:
    return "\n".join(str(problem) for problem in found.problems)


def second_verifier(ledger: Path) -> str:
    """What the verifier that shares no code says."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            SECOND.main(str(ledger))
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            return f"not verified: {error}"
    return out.getvalue()


def test_a_run_goes_on_under_other_limits_and_the_record_says_whose(writer: Writer) -> None:
    found = verify_run(writer.directory)
    assert found.problems == ()
    assert "overrides" in found.checks
    text = "overridden after step 2: guard.max_kl 20.0 to 30.0; a reason; by " + OTHER.public.vkey
    assert text in found.notes
    assert f"by {OTHER.public.vkey}: 'a reason'" in second_verifier(writer.directory)
    assert verify_run(writer.directory, override_keys=[THIRD.public, OTHER.public]).ok
    other = verify_run(writer.directory, override_keys=[THIRD.public])
    assert "not trusted" in said_of(other)


def test_it_is_for_what_follows_and_up_to_its_last_step(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "ledger")
    writer.make(3.0)
    writer.override(until=2, max_kl=30.0)
    writer.override(min_entropy=0.5)
    writer.under(GuardConfig(max_kl=30.0, min_entropy=0.5))
    assert writer.make(25.0) == "accept"
    writer.under(GuardConfig(max_kl=20.0, min_entropy=0.5))
    assert writer.make(25.0) == "halt"
    found = verify_run(writer.directory)
    assert found.problems == ()
    assert [note.partition(":")[0] for note in found.notes if "overridden" in note] == [
        "overridden after step 1 up to step 2",
        "overridden after step 1",
    ]


def test_without_the_override_the_same_steps_are_not_what_the_guard_gives(writer: Writer) -> None:
    forge(writer.directory, lambda entries: entries.pop(6))
    found = said_of(verify_run(writer.directory))
    assert "the verdict is accept; the guard gives halt" in found


def test_what_halted_a_run_may_be_overridden_and_then_it_goes_on(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "ledger")
    assert [writer.make(3.0), writer.make(25.0)] == ["accept", "halt"]
    writer.add("run.failed", steps=2, files={})
    writer.override(max_kl=30.0)
    between = verify_run(writer.directory)
    assert (between.problems, between.status) == ((), "failed")
    writer.add("run.resumed", step=0)
    writer.under(GuardConfig(max_kl=30.0))
    assert writer.make(25.0) == "accept"
    writer.add("run.finished", steps=3)
    found = verify_run(writer.directory)
    assert (found.problems, found.status) == ((), "finished")
    forge(writer.directory, lambda entries: entries.append(entries[7] | {}))
    assert "an entry after the run's ending" in said_of(verify_run(writer.directory))


def resigned(
    writer: Writer, second: SigningKey = OTHER, **changes: Any
) -> Callable[[list[dict[str, Any]]], None]:
    """The override changed, and signed again."""

    def edit(entries: list[dict[str, Any]]) -> None:
        made = OverrideEntry.from_json(entries[6]["body"])
        made = replace(made, key=second.public.vkey, **changes)
        import base64

        made = replace(made, signature=base64.b64encode(second.sign(made.message)).decode())
        entries[6]["body"] = made.to_json()

    return edit


def field(name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda entries: entries[6]["body"].update({name: value})


BAD: dict[str, tuple[Callable[[Writer], Callable[[list[dict[str, Any]]], None]], str, bool]] = {
    "by the ledger's own key": (lambda w: resigned(w, KEY), "the ledger's own", True),
    "no reason": (lambda w: resigned(w, reason=" "), "takes a reason", True),
    "another reason": (lambda w: field("reason", "x"), "does not hold", True),
    "another limit": (
        lambda w: field("changes", {"guard.max_kl": {"old": 20.0, "new": 40.0}}),
        "does not hold",
        True,
    ),
    "no signature": (lambda w: field("signature", ""), "does not hold", True),
    "no base64": (lambda w: field("signature", "!"), "not an override", True),
    "no key": (lambda w: field("key", "me"), "not an override", True),
    "no override": (lambda w: field("what", 1), "not the body of an override", True),
    "another place": (lambda w: resigned(w, seq=7), "another place", True),
    "another ledger": (lambda w: resigned(w, origin="kleash/" + "0" * 16), "another place", True),
    "another step": (lambda w: resigned(w, step=1), "does not count the 2 updates", False),
    "over at once": (lambda w: resigned(w, until=2), "ends before it begins", False),
    "nothing": (lambda w: resigned(w, changes={}), "changes nothing", False),
    "to what it was": (
        lambda w: resigned(w, changes={"guard.max_kl": Change(old=20.0, new=20.0)}),
        "changes nothing",
        False,
    ),
    "what steers": (
        lambda w: resigned(w, changes={"rl.kl_target": Change(old=4.0, new=5.0)}),
        "rl.kl_target can't be overridden",
        False,
    ),
    "from what it was not": (
        lambda w: resigned(w, changes={"guard.max_kl": Change(old=19.0, new=30.0)}),
        "is not what it was",
        False,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_override_is_found_though_the_ledger_was_signed_again(
    writer: Writer, name: str
) -> None:
    edit, said, by_both = BAD[name]
    forge(writer.directory, edit(writer))
    found = verify_run(writer.directory)
    assert said in said_of(found)
    assert second_verifier(writer.directory).startswith("not verified") is by_both
    with pytest.raises((TamperError, ConfigError)):
        writer.override(max_kl=50.0)


def test_an_override_is_taken_from_no_other_place_of_the_ledger(writer: Writer) -> None:
    forge(writer.directory, lambda entries: entries.append(entries[6] | {}))
    assert "another place" in said_of(verify_run(writer.directory))
    assert second_verifier(writer.directory).startswith("not verified")


def test_what_can_not_be_entered_leaves_the_ledger_as_it_was(writer: Writer) -> None:
    before = read(writer.directory)
    with pytest.raises(InputError, match="its key is the ledger's own"):
        writer.override(second=KEY, max_kl=40.0)
    with pytest.raises(InputError, match="changes nothing"):
        writer.override(max_kl=30.0)
    with pytest.raises(ConfigError, match="can't be overridden"):
        writer.override(canary_prompts=3)
    with pytest.raises(InputError, match="ends before it begins"):
        writer.override(until=3, max_kl=40.0)
    same_bytes_other_name = SigningKey.of(KEY.private, "another")
    with pytest.raises(InputError, match="its key is the ledger's own"):
        writer.override(second=same_bytes_other_name, max_kl=40.0)
    for reason in ("", " \n", "x" * 2001):
        with pytest.raises(InputError, match="takes a reason"):
            override(
                writer.directory,
                [KEY],
                OTHER,
                lambda limits: limits.model_copy(update={"max_kl": 40.0}),
                reason=reason,
            )
    assert read(writer.directory) == before
    writer.add("run.finished", steps=3)
    with pytest.raises(InputError, match="there is no plan here that a run goes on with"):
        writer.override(max_kl=40.0)


def test_a_key_of_another_kind_is_no_second_key() -> None:
    try:
        second = SigningKey.generate(ML_DSA_44)
    except InputError as error:
        pytest.skip(error.what)
    made = OverrideEntry(
        origin="",
        seq=0,
        prev="",
        step=0,
        until=None,
        changes={"guard.max_kl": Change(old=None, new=1.0)},
        reason="x",
        key="",
    )
    assert "none to 1.0" in str(made)
    with pytest.raises(InputError, match="not Ed25519"):
        sign_override(made, second, [KEY.public])


def test_an_override_that_another_running_out_would_break_is_refused(tmp_path: Path) -> None:
    """Each is fine as it begins; once the first ends nothing is measured at the canary any more."""
    writer = Writer(tmp_path / "ledger", GuardConfig(max_kl_canary=5.0))
    writer.override(until=3, max_kl_slice=5.0)
    with pytest.raises(ConfigError, match="the canary set can't be switched"):
        writer.override(max_kl_canary=None)


def test_a_ledger_without_a_plan_is_not_overridden(tmp_path: Path) -> None:
    for types in ([], ["run.started"]):
        directory = tmp_path / str(len(types))
        with Ledger.create(directory, [KEY]) as ledger:
            for type in types:
                ledger.append(type, {"config": {"guard": {}}})
        with pytest.raises(InputError, match="there is no plan here"):
            override(directory, [KEY], OTHER, lambda limits: limits, reason="x")


def test_measurements_have_no_plan_to_override(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, [KEY]) as ledger:
        ledger.append("run.started", {"config": {"guard": {}}})
        ledger.append(OVERRIDE, {})
    found = said_of(verify_run(tmp_path))
    assert f"no entry of type {OVERRIDE} belongs here" in found


def test_a_plan_that_is_none_is_said_once(writer: Writer) -> None:
    forge(writer.directory, lambda entries: entries[0]["body"]["config"].update(guard=3))
    assert "no usable configuration" in said_of(verify_run(writer.directory))


def test_its_bytes_are_those_of_the_page(writer: Writer) -> None:
    """Golden: what a second key signs is in docs/ledger-format.md, and in nobody's head alone."""
    made = OverrideEntry(
        origin="kleash/0123456789abcdef",
        seq=6,
        prev="0" * 64,
        step=2,
        until=None,
        changes={"guard.max_kl": Change(old=20.0, new=30.0)},
        reason="why",
        key=OTHER.public.vkey,
    )
    body = (
        '{"changes":{"guard.max_kl":{"new":30.0,"old":20.0}},"key":"%s","origin":"kleash/0123456789abcdef",'
        '"prev":"%s","reason":"why","seq":6,"step":2,"until":null}'
    )
    assert (
        made.message
        == b"kleash/plan.override/v1\n" + (body % (OTHER.public.vkey, "0" * 64)).encode()
    )
    in_ledger = read(writer.directory)[6]
    signed = OverrideEntry.from_json(in_ledger.body)
    assert json.loads(encode(signed.to_json())) == in_ledger.body
    assert signed.origin == verify_chain(writer.directory).origin


def kinds(entries: Iterable[Any]) -> list[str]:
    return [each.type for each in entries]


def test_it_may_stand_between_an_intent_and_its_update(tmp_path: Path) -> None:
    """A run that was killed there makes the same update, under the new limits."""
    writer = Writer(tmp_path / "ledger")
    writer.make(3.0)
    writer.override(max_kl=30.0)
    writer.under(GuardConfig(max_kl=30.0))
    writer.make(25.0)
    entries = read(writer.directory)
    assert kinds(entries)[4:] == [OVERRIDE, "update.intent", "update"]
    with Ledger.create(tmp_path / "killed", [KEY]) as ledger:
        for each in (*entries[:4], entries[5]):
            ledger.append(each.type, each.body)
    killed = Writer.__new__(Writer)
    killed.directory = tmp_path / "killed"
    killed.override(max_kl=30.0)
    killed.add("run.resumed", step=1)
    killed.add("update", **entries[6].body)
    assert said_of(verify_run(killed.directory)) == ""
    forge(killed.directory, lambda lines: lines.insert(4, dict(entry("nonsense"))))
    assert "no entry of type nonsense" in said_of(verify_run(killed.directory))
