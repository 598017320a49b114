import socket
from pathlib import Path

import pytest

from edge_agent.notify import Pulse, sd_notify, watchdog_period_s

S = 1_000_000_000


def test_the_pulse_stops_when_no_pass_was_made_for_two_ticks() -> None:
    pulse = Pulse(0, tick_s=5.0)
    assert pulse.alive(0, 9 * S)
    assert pulse.alive(1, 12 * S)
    assert pulse.alive(1, 22 * S)
    assert not pulse.alive(1, 22 * S + 1)
    assert pulse.alive(2, 40 * S)


def test_the_beat_is_half_the_limit_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert watchdog_period_s() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_period_s() is None


def test_a_message_reaches_the_notify_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert sd_notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not sd_notify("READY=1")
