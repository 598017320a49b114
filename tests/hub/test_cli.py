"""The command line: exit codes, one line of error, nothing secret, beside a running hub."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hub.cli import main
from hub.config import HubConfig, credential_path, read_config
from hub.errors import ConfigError
from hub.store import sites
from hub.store.database import connect
from protocol.event import ClassReport, SiteReport
from protocol.settings import SettingsError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "hub.toml"
    path.write_text(f'data_dir = "{tmp_path / "data"}"\n')
    return path


def _run(config: Path, *args: str) -> int:
    return main([*args, "--config", str(config)])


def _type(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))


def test_a_hub_is_set_up_and_a_period_closed(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(config, "migrate") == 0
    assert _run(config, "migrate") == 0
    assert capsys.readouterr().out.endswith("nothing to do\n")
    _type(monkeypatch, "a good password")
    user = ("user", "add", "--email", "C@x.test", "--role", "customer", "--customer", "acme")
    assert _run(config, *user, "--password-stdin") == 0
    assert "a good password" not in capsys.readouterr().out
    assert _run(config, "site", "add", "--site", "lubbock") == 0
    card = ("rate-card", "add", "--from", "2020-01-01T00:00:00Z", "--price=H100=2.49")
    assert _run(config, *card) == 0
    capsys.readouterr()
    close = ("invoice", "close", "--customer", "acme", "--json")
    period = ("--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T00:07:00Z")
    assert _run(config, *close, *period) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["v"], first["number"], first["total_usd"]) == (1, 1, "0.00")
    assert _run(config, *close, *period) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_a_problem_is_one_line_and_exit_code_1(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _type(monkeypatch, "a good password")
    user = ("user", "add", "--role", "admin", "--password-stdin", "--email")
    assert _run(config, *user, "a@x.test") == 1
    assert "run hcp-hub migrate" in capsys.readouterr().err
    _run(config, "migrate")
    capsys.readouterr()
    for password, email, said in (
        ("short", "a@x.test", "8 characters"),
        ("a good password", "nobody", "--email"),
    ):
        _type(monkeypatch, password)
        assert _run(config, *user, email) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert _run(config, "site", "add", "--site", "hub", "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_site"
    for first, last, said in (
        ("2026-01-01T00:00:30Z", "2026-01-01T00:05:00Z", "whole UTC minute"),
        ("2026-01-01T00:05:00Z", "2026-01-01T00:05:00Z", "after start"),
        ("2026-01-01T00:00:00Z", "2999-01-01T00:05:00Z", "no customer"),
    ):
        args = ("invoice", "close", "--customer", "c", "--from", first, "--to", last)
        assert _run(config, *args) == 1
        assert said in capsys.readouterr().err


def test_a_site_is_retired_and_taken_back(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(config, "migrate")
    _run(config, "site", "add", "--site", "lubbock")
    capsys.readouterr()
    assert _run(config, "site", "retire", "nowhere") == 1
    assert capsys.readouterr().err == "hcp-hub: there is no site nowhere\n"
    assert _run(config, "site", "retire", "lubbock", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"v": 1, "site_id": "lubbock", "ended": []}
    assert _run(config, "site", "retire", "lubbock") == 1
    assert "was retired at" in capsys.readouterr().err
    assert _run(config, "site", "add", "--site", "lubbock") == 0
    assert _run(config, "site", "add", "--site", "lubbock") == 1
    assert "already" in capsys.readouterr().err


def test_sites_are_listed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(config, "site", "list") == 1
    assert "run hcp-hub migrate" in capsys.readouterr().err
    _run(config, "migrate")
    capsys.readouterr()
    assert _run(config, "site", "list") == 0
    assert capsys.readouterr().out == "no sites; add one with hcp-hub site add\n"
    for site in ("lubbock", "abilene"):
        _run(config, "site", "add", "--site", site)
    _run(config, "site", "retire", "abilene")
    connection = connect(read_config(config).store_path)
    report = SiteReport(
        at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), power_w=4_250_000.0, power_cap_w=5e6,
        classes=(ClassReport(device_class="H100", kind="gpu", total=8, free=3, by_activity={}),),
        leases=(),
    )  # fmt: skip
    sites.set_report(connection, "lubbock", report, 1)
    sites.set_online(connection, "lubbock", conn_no=1, boot_id="b", agent_version="9.9")
    sites.heard(connection, "lubbock", 1_767_323_045_000)
    connection.close()
    capsys.readouterr()
    assert _run(config, "site", "list") == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["site", "state", "last", "seen", "MW", "of", "MW", "leases", "free"]
    assert line.split() == [
        "lubbock", "online", "2026-01-02T03:04:05Z", "4.250", "5.000", "0", "H100:3",
    ]  # fmt: skip
    assert _run(config, "site", "list", "--all", "--json") == 0
    told = json.loads(capsys.readouterr().out)["sites"]
    assert [(one["site_id"], one["online"], one["retired_at"] is None) for one in told] == [
        ("abilene", False, False), ("lubbock", True, True),
    ]  # fmt: skip
    assert told[0]["last_seen"] is None
    assert told[0]["power_w"] is None
    assert told[1]["classes"] == [{"device_class": "H100", "total": 8, "free": 3}]
    assert told[1]["agent_version"] == "9.9"


def test_orders_are_given_listed_and_taken_back(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(config, "migrate")
    _run(config, "site", "add", "--site", "lubbock")
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    times = ("--by", start.isoformat(), "--until", (start + timedelta(hours=1)).isoformat())
    add = ("order", "add", "lubbock", "--mw", "2.5", *times)
    capsys.readouterr()
    assert _run(config, "order", "add", "nowhere", "--mw", "2.5", *times) == 1
    assert capsys.readouterr().err == "hcp-hub: there is no site nowhere\n"
    assert _run(config, *add, "--id", "ercot-7", "--reason", "EEA 2") == 0
    assert _run(config, *add, "--id", "ercot-7") == 0  # the same one
    capsys.readouterr()
    assert _run(config, "order", "list", "lubbock", "--json") == 0
    (order,) = json.loads(capsys.readouterr().out)["orders"]
    assert (order["order_id"], order["status"], order["limit_mw"]) == ("ercot-7", "sent", 2.5)
    assert _run(config, "order", "cancel", "lubbock", "ercot-8") == 1
    assert _run(config, "order", "cancel", "lubbock", "ercot-7") == 0
    back = ("--by", times[3], "--until", times[1])
    assert _run(config, "order", "add", "lubbock", "--mw", "2.5", *back) == 1
    assert "until_at: must be after the deadline" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["site", "retire"],
        ["user", "add", "--role", "king"],
        ["rate-card", "add", "--from", "2020-01-01T00:00:00", "--price=H100=1"],
        ["rate-card", "add", "--from", "2020-01-01T00:00:00Z", "--price=H100"],
    ],
)
def test_wrong_usage_is_exit_code_2(args: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2


def test_a_price_is_a_decimal_number(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(config, "migrate")
    for price in ("NaN", "x", "-1", "0.1234567891", "1_0", "٣", "1e-3", " 1"):
        card = ("rate-card", "add", "--from", "2020-01-01T00:00:00Z", f"--price=H100={price}")
        assert _run(config, *card) == 1
        assert "price" in capsys.readouterr().err


def test_a_name_that_no_request_could_say_is_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(config, "migrate")
    assert _run(config, "rate-card", "add", "--from", "2020-01-01T00:00:00Z", "--price=H 1=1") == 1
    assert "'H 1'" in capsys.readouterr().err
    _type(monkeypatch, "a good password")
    user = ("user", "add", "--email", "c@x.test", "--role", "customer", "--customer", "a b")
    assert _run(config, *user, "--password-stdin") == 1
    assert "'a b'" in capsys.readouterr().err


def test_the_version_needs_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"v", "version"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('data_dirr = "x"', "line 1: data_dirr: unknown key; did you mean data_dir?"),
        ("[http]\nprot = 1", "line 2: http.prot: unknown key; did you mean port?"),
        ("[http]\nport = 99999", "http.port"),
        ("[limits]\nrate_per_s = 0.0", "limits.rate_per_s"),
        ("= 1", "TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "hub.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    assert said in str(caught.value)


def test_an_empty_file_is_a_whole_config_and_tls_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hub.toml"
    path.write_text("")
    assert read_config(path) == HubConfig()
    path.write_text('[mqtt]\ntls_ca = "ca"\n')
    with pytest.raises(ConfigError, match="mqtt_tls"):
        read_config(path)
    with pytest.raises(ConfigError, match="config_unreadable"):
        read_config(tmp_path / "none.toml")


def test_credentials_come_from_systemd_first(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "key").write_text(folder)
    config = HubConfig(credentials_dir=str(tmp_path / "b"))
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "a")}
    assert credential_path(config, "key", environ) == tmp_path / "a" / "key"
    assert credential_path(config, "key", {}) == tmp_path / "b" / "key"
    with pytest.raises(ConfigError, match="no_credential"):
        credential_path(config, "other", environ)
