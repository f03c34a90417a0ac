"""What a scrape gets is what was measured, in the format's own words, and no client is in the way of a run."""

import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from kleash.cli import main as cli
from kleash.errors import InputError, RewardError
from kleash.guard import GuardConfig
from kleash.integrations.prometheus import Endpoint
from kleash.integrations.prometheus.figures import IN_NATS, LIMITS, Figures
from kleash.integrations.prometheus.server import CLIENTS, MAX_REQUEST, PageServer
from kleash.integrations.prometheus.text import Family, Sample, label, page
from kleash.ledger import SigningKey, open_signing_key
from kleash.records import Action, KLReading, StepRecord, Verdict
from kleash.replay import override
from kleash.rewards.config import ServerConfig
from kleash.rewards.server import Server
from kleash.rewards.tally import REQUESTS
from kleash.train.config import RunConfig
from kleash.train.run import train
from tests.train.small import small_settings

DOCS = Path(__file__).parents[2] / "docs"
Key = tuple[str, frozenset[tuple[str, str]]]


def parsed(text: bytes) -> dict[Key, float]:
    """A page as Prometheus' own parser reads it; no sample is there twice."""
    samples = [
        ((each.name, frozenset(each.labels.items())), each.value)
        for family in text_string_to_metric_families(text.decode())
        for each in family.samples
    ]
    assert len(dict(samples)) == len(samples)
    return dict(samples)


def one(found: dict[Key, float], name: str, **labels: str) -> float | None:
    """The value with these labels, whatever others it has; None where there is none."""
    values = [v for (n, have), v in found.items() if n == name and labels.items() <= have]
    assert len(values) <= 1
    return values[0] if values else None


def record(step: int = 1, action: Action = "accept", **changes: Any) -> StepRecord:
    kl = KLReading(
        value=6.0,
        low=5.5,
        high=6.5,
        n=8,
        clusters=4,
        unit="response",
        direction="policy_ref",
        estimator="exact",
        reference="base",
    )
    return StepRecord(step=step, kl=kl, kl_coef=0.1, verdict=Verdict(action=action), **changes)


@given(
    st.dictionaries(st.from_regex(r"\A[a-z]{1,8}\Z"), st.text(max_size=300), max_size=3),
    st.floats(),
)
def test_any_label_and_any_number_come_through(labels: dict[str, str], value: float) -> None:
    family = Family(
        name="kl_nats", kind="gauge", help="Nats.", samples=(Sample(value=value, labels=labels),)
    )
    ((name, read), found) = next(iter(parsed(page([family])).items()))
    assert name == "kl_nats"
    assert found == value or (math.isnan(found) and math.isnan(value))
    for key, text in dict(read).items():
        if labels[key].isprintable() and len(labels[key]) <= 200:
            assert text == labels[key]
        assert text.isprintable()


def test_labels_that_begin_alike_stay_two() -> None:
    assert label("a" * 300) != label("a" * 301)
    assert label("\ud800") == "\\\\ud800"


def test_each_step_of_a_run_is_on_the_page_as_it_was_measured(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, steps=4)
    alarm = {"mean": 1e-5, "bound": 1.0, "mean_time": 100.0}
    settings["guard"] = {"max_kl": 50.0, "max_path_log_ratio": 1e4, "alarms": {"kl_new_old": alarm}}
    settings["reward"]["monitor"] = ["tests.train.small:count_a"]
    config = RunConfig.model_validate(settings)
    records = train(config, tmp_path / "run", skip_self_test=True)
    rings, accepted = 0, 0
    with Endpoint(config, tmp_path / "run", port=0) as endpoint:
        before = scrape(endpoint.url)
        assert one(before, "kleash_step") is None
        assert one(before, "kleash_kl_nats") is None
        assert one(before, "kleash_updates_total", verdict="accept") == 0
        for each in endpoint.watch(records):
            found = scrape(endpoint.url)
            metrics, rang = each.metrics, bool(each.verdict.alarms)
            rings, accepted = rings + rang, accepted + (each.verdict.action == "accept")
            ours = {"direction": "policy_ref", "unit": "response", "reference": each.kl.reference}
            expected: dict[str, tuple[dict[str, str], float | int | None]] = {
                "kleash_step": ({}, each.step),
                "kleash_steps": ({}, 4),
                "kleash_kl_nats": (ours, each.kl.value),
                "kleash_kl_nats_low": (ours, each.kl.low),
                "kleash_kl_nats_high": (ours, each.kl.high),
                "kleash_kl_target_nats": ({"unit": "response"}, metrics["kl_target"]),
                "kleash_kl_coef": ({}, each.kl_coef),
                "kleash_limit_nats": ({"limit": "max_kl"}, 50.0),
                "kleash_limit_used_ratio": ({"limit": "max_kl"}, each.kl.value / 50.0),
                "kleash_budget_spent": (
                    {"budget": "max_path_log_ratio"},
                    metrics["budget_log_ratio_spent"],
                ),
                "kleash_updates_total": ({"verdict": "accept"}, accepted),
                "kleash_alarm": ({"alarm": "kl_new_old"}, int(rang)),
                "kleash_alarms_total": ({"alarm": "kl_new_old"}, rings),
                "kleash_alarm_evidence": ({"alarm": "kl_new_old"}, metrics["alarm/kl_new_old"]),
                "kleash_alarm_threshold": ({"alarm": "kl_new_old"}, 100.0),
                "kleash_reward_mean": ({}, metrics["reward_mean"]),
                "kleash_step_seconds": ({"phase": "update"}, each.seconds["update"]),
            }
            for name, (labels, value) in expected.items():
                assert one(found, name, **labels) == value, name
            age = one(found, "kleash_ledger_head_age_seconds")
            assert age is not None
            assert 0 <= age < 60
    assert rings > 0
    with pytest.raises(OSError, match="refused"):
        urlopen(endpoint.url, timeout=1)


def scrape(url: str) -> dict[Key, float]:
    with urlopen(url, timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return parsed(response.read())


def test_what_was_not_measured_is_not_there_and_what_is_no_number_is_nan() -> None:
    figures = Figures(RunConfig())
    figures.observe(
        record(metrics={"reward_mean": None, "entropy_per_token": math.nan}), RunConfig().guard
    )
    found = parsed(figures.page())
    assert one(found, "kleash_reward_mean") is None
    assert one(found, "kleash_grad_norm") is None
    entropy = one(found, "kleash_entropy_nats")
    assert entropy is not None
    assert math.isnan(entropy)


def test_updates_are_counted_by_verdict_and_steps_over_the_target_in_a_row() -> None:
    figures, guard = Figures(RunConfig()), RunConfig().guard
    over = {"kl_target": 5.0, "kl_policy_ref_per_response_low": 5.5}
    under = {"kl_target": 5.6, "kl_policy_ref_per_response_low": 5.5}
    actions: list[Action] = ["accept", "reject", "reject", "shrink", "rollback"]
    rows = [over, under, over, over, over | {"kl_target": None}]
    in_a_row: list[float | None] = []
    for step, (action, metrics) in enumerate(zip(actions, rows, strict=True), 1):
        figures.observe(record(step, action, metrics=metrics), guard)
        in_a_row.append(one(parsed(figures.page()), "kleash_kl_over_target_steps"))
    assert in_a_row == [1, 0, 1, 2, 0]
    found = parsed(figures.page())
    counts = {
        verdict: one(found, "kleash_updates_total", verdict=verdict)
        for verdict in ("accept", "shrink", "reject", "rollback", "halt")
    }
    assert counts == {"accept": 1, "shrink": 1, "reject": 2, "rollback": 1, "halt": 0}


def test_limits_are_those_of_the_step_and_the_age_is_since_it() -> None:
    now = [100.0]
    figures = Figures(RunConfig(guard=GuardConfig(max_kl=10.0)), clock=lambda: now[0])
    now[0] = 130.0
    assert one(parsed(figures.page()), "kleash_ledger_head_age_seconds") == 30.0
    figures.observe(record(metrics={"kl_policy_ref_per_response": 6.0}), GuardConfig(max_kl=30.0))
    now[0] = 132.5
    found = parsed(figures.page())
    assert one(found, "kleash_ledger_head_age_seconds") == 2.5
    assert one(found, "kleash_limit_nats", limit="max_kl") == 30.0
    assert one(found, "kleash_limit_used_ratio", limit="max_kl") == pytest.approx(0.2)


def test_the_limits_of_a_run_that_goes_on_are_those_it_was_given_by_an_override(
    tmp_path: Path,
) -> None:
    settings = small_settings(tmp_path, steps=4)
    settings["guard"] = {"max_kl": 50.0}
    config, path = RunConfig.model_validate(settings), tmp_path / "run"
    steps = train(config, path, skip_self_test=True)
    assert [next(steps).step, next(steps).step] == [1, 2]
    steps.close()
    override(
        path / "ledger",
        [open_signing_key()],
        SigningKey.generate(),
        lambda limits: limits.model_copy(update={"max_kl": 60.0}),
        reason="measured again",
        until=3,
    )
    rest = train(config, path, skip_self_test=True, resume=True)
    with Endpoint(config, path, port=0) as endpoint:
        shown = {
            each.step: one(scrape(endpoint.url), "kleash_limit_nats", limit="max_kl")
            for each in endpoint.watch(rest)
        }
    assert shown == {3: 60.0, 4: 50.0}


def test_every_limit_of_the_guard_is_shown() -> None:
    known = {n for n in GuardConfig.model_fields if n.startswith(("max_", "min_", "stop_"))}
    assert known - {"max_rollbacks"} == set(IN_NATS)
    assert set(LIMITS) <= known


@pytest.fixture
def served() -> Iterator[Callable[..., PageServer]]:
    """Servers of a page that says "figures", closed at the end."""
    opened: list[PageServer] = []

    def serve(seconds: float = 5.0) -> PageServer:
        opened.append(PageServer(lambda: b"figures\n", "127.0.0.1", 0, seconds=seconds))
        return opened[-1]

    yield serve
    for server in opened:
        server.close()


def asked(port: int, request: bytes) -> bytes:
    """All that comes back; nothing where the connection is cut."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request)
        reply = b""
        try:
            while more := client.recv(4096):
                reply += more
        except ConnectionResetError:
            pass
        return reply


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics HTTP/1.1", b"200"),
        (b"GET /metrics?debug=1 HTTP/1.0", b"200"),
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /../etc/passwd HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"HEAD /metrics HTTP/1.1", b"405"),
        (b"\x16\x03\x01 a b c", b"400"),
        (b"", b"400"),
    ],
)
def test_one_page_is_there_to_be_got(
    served: Callable[..., PageServer], request_line: bytes, status: bytes
) -> None:
    reply = asked(served().port, request_line + b"\r\nHost: x\r\n\r\n")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert f"Content-Length: {len(body)}".encode() in head
    assert (body == b"figures\n") == (status == b"200")


def test_a_request_without_end_is_cut(served: Callable[..., PageServer]) -> None:
    reply = asked(served().port, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * MAX_REQUEST)
    assert reply == b"" or reply.split()[1] == b"431"


def test_slow_clients_are_cut_and_too_many_turned_away(served: Callable[..., PageServer]) -> None:
    server, threads = served(seconds=2.0), threading.active_count()
    started = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(12)]
    for client in slow:
        client.sendall(b"GET /metrics")
    time.sleep(0.6)
    assert threading.active_count() - threads <= CLIENTS
    with pytest.raises(OSError):  # noqa: PT011 - reset or closed, as the system has it
        fetch(server.port)
    for client in slow:
        with client, suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert time.monotonic() - started < 8
    assert fetch(server.port) == b"figures\n"


def test_a_client_that_drips_is_cut_however_often_it_drips(
    served: Callable[..., PageServer],
) -> None:
    server = served(seconds=0.5)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        started = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - started < 8:
                client.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - started < 6


def test_a_client_that_does_not_read_is_cut() -> None:
    most, got = 2**24, 0
    with (
        PageServer(lambda: b"x" * most, "127.0.0.1", 0, seconds=0.5) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as client,
    ):
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        time.sleep(1.0)
        with suppress(ConnectionResetError):
            while more := client.recv(2**20):
                got += len(more)
    assert got < most


def fetch(port: int) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "\x00", "a" * 300])
def test_an_address_that_is_not_ours_is_bad_input(host: str) -> None:
    with pytest.raises(InputError, match="cannot serve metrics"):
        PageServer(lambda: b"", host, 0)


def test_a_port_in_use_ends_the_command_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    served: Callable[..., PageServer],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text("[train]\nsteps = 1\n")
    port = str(served().port)
    assert cli.run(["train", "tiny.toml", "--metrics-port", port, "--json"]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert port in said["what"]
    assert "--metrics-port" in said["do"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.e2e
def test_the_command_serves_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scraped from outside of the run, by a thread that asks until the run is over."""
    monkeypatch.chdir(tmp_path)
    settings = small_settings(tmp_path, steps=30)
    tables = [
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())])
        for name, table in settings.items()
    ]
    (tmp_path / "tiny.toml").write_text("\n".join(tables))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    over, steps = threading.Event(), set[float | None]()

    def watch() -> None:
        while not over.wait(0.02):
            try:
                steps.add(one(scrape(f"http://127.0.0.1:{port}/metrics"), "kleash_step"))
            except OSError:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code = cli.run(["train", "tiny.toml", "--metrics-port", str(port), "--skip-self-test"])
    finally:
        over.set()
        watcher.join()
    assert code == 0
    assert f"metrics at http://127.0.0.1:{port}/metrics" in capsys.readouterr().err
    assert len(steps - {None}) > 3


def test_requests_to_reward_servers_are_counted_as_they_end() -> None:
    with socket.socket() as nobody:  # bound, and not listening: it refuses
        nobody.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{nobody.getsockname()[1]}"
        server = Server(f"http://{host}/score", ServerConfig(retries=2, backoff_s=0.001))
        with pytest.raises(RewardError):
            server.score(["p"], ["r"])
    found = parsed(Figures(RunConfig()).page())
    assert one(found, "kleash_reward_requests_total", server=host, outcome="answered") == 0
    assert one(found, "kleash_reward_requests_total", server=host, outcome="failed") == 3


def names_shown() -> dict[str, set[str]]:
    """Every name that can be on a page, with its labels."""
    alarm = {"mean": 1.0}
    limits = dict.fromkeys(IN_NATS, 1.0)
    guard = GuardConfig.model_validate({**limits, "alarms": {"kl": alarm}})
    figures = Figures(RunConfig(guard=guard))
    REQUESTS.add("rewards.test:80", "answered")
    others = ["objective", "entropy_per_token", "response_length", "learning_rate", "kl_target"]
    others += ["reward_mean", "alarm/kl", "monitor/m", "reward_part/p"]
    metrics = dict.fromkeys([*LIMITS.values(), *others], 1.0)
    figures.observe(record(metrics=metrics, seconds={"collect": 1.0, "update": 1.0}), guard)
    shown: dict[str, set[str]] = {}
    for name, labels in parsed(figures.page()):
        shown.setdefault(name, set()).update(key for key, _ in labels)
    return shown


def test_alerts_ask_for_what_is_shown() -> None:
    shown = names_shown()
    groups = yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 6
    for rule in rules:
        asked_for = set(re.findall(r"kleash_\w+", rule["expr"]))
        assert asked_for
        assert asked_for <= shown.keys(), rule["alert"]
        for name, inside in re.findall(r"(kleash_\w+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)\s*[=!]~?", inside)) <= shown[name], rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_the_page_of_the_documentation_names_every_metric_and_no_other() -> None:
    told = set(re.findall(r"`(kleash_\w+)", (DOCS / "monitoring.md").read_text()))
    assert told == names_shown().keys()
    config = re.search(r"```yaml\n(.*?)```", (DOCS / "monitoring.md").read_text(), re.DOTALL)
    assert config is not None
    scraped = yaml.safe_load(config[1])["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["127.0.0.1:9400"]
