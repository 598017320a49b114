"""The real process: starts with nothing, keeps what it answered through kill -9, stops well."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from hub.cli import main

START_S = 30.0


class _Hub:
    def __init__(self, config: Path, log: Path) -> None:
        argv = [sys.executable, "-m", "hub", "serve", "--config", str(config)]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(argv, stderr=file, stdout=file)
        self.url = self._wait()

    def _wait(self) -> str:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                if "listening on " in line:
                    return line.split("listening on ", 1)[1]
            time.sleep(0.05)
        pytest.fail(self.log.read_text())

    def end(self, one: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(one)
        return self.process.wait(20)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], _Hub]]:
    config = tmp_path / "hub.toml"
    config.write_text(f'data_dir = "{tmp_path / "data"}"\n[http]\nport = 0\n[mqtt]\nport = 9\n')
    running: list[_Hub] = []

    def run() -> _Hub:
        running.append(_Hub(config, tmp_path / f"log-{len(running)}"))
        return running[-1]

    yield run
    for hub in running:
        hub.end(signal.SIGKILL)


@pytest.mark.e2e
def test_it_starts_with_no_users_serves_without_a_broker_and_ends_on_sigterm(
    start: Callable[[], _Hub], tmp_path: Path
) -> None:
    hub = start()
    assert httpx.get(f"{hub.url}/api/v1/health").json()["status"] == "ok"
    login = {"email": "a@x.test", "password": "whatever"}
    assert httpx.post(f"{hub.url}/api/v1/auth/login", json=login).status_code == 401
    assert hub.end(signal.SIGTERM) == 0
    log = hub.log.read_text()
    assert "Traceback" not in log
    assert "whatever" not in log
    assert "PRIVATE KEY" not in log
    (key,) = (tmp_path / "data" / "keys").iterdir()
    assert key.stat().st_mode & 0o077 == 0


@pytest.mark.e2e
def test_what_was_answered_survives_kill_9(
    start: Callable[[], _Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ["--config", str(tmp_path / "hub.toml")]
    assert main(["migrate", *config]) == 0
    read, write = os.pipe()
    os.write(write, b"a good password")
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        user = ["user", "add", "--email", "c@x.test", "--role", "customer", "--customer", "acme"]
        assert main([*user, "--password-stdin", *config]) == 0
    card = ["rate-card", "add", "--from", "2020-01-01T00:00:00Z", "--price=H100=2.49"]
    assert main([*card, *config]) == 0
    hub = start()
    login = {"email": "c@x.test", "password": "a good password"}
    token = httpx.post(f"{hub.url}/api/v1/auth/login", json=login).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    body = {"name": "n", "device_class": "H100"}
    answers = {}
    with httpx.Client(base_url=hub.url, headers=headers) as client:
        for n in range(20):
            answer = client.post(
                "/api/v1/workloads", json=body, headers={"Idempotency-Key": f"{n}"}
            )
            answers[f"{n}"] = answer.json()["workload_id"]
    hub.end(signal.SIGKILL)
    again = start()
    with httpx.Client(base_url=again.url, headers=headers) as client:
        # The token lives on with its key, and the keys give the same answers.
        for key, workload_id in answers.items():
            answer = client.post("/api/v1/workloads", json=body, headers={"Idempotency-Key": key})
            assert answer.json()["workload_id"] == workload_id
        listed = json.loads(client.get("/api/v1/workloads?limit=200").text)["items"]
    assert {row["workload_id"] for row in listed} == set(answers.values())
    assert len(listed) == 20
