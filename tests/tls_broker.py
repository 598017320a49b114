"""A mosquitto with the configuration that is shipped, on a free port of loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.certificates import Identity

CONF = Path(__file__).parents[1] / "packaging" / "conf"
PATIENCE_S = 10.0


def find_mosquitto() -> str | None:
    """Find the broker: the one that ./dev names, or the machine's."""
    return os.environ.get("HCP_MOSQUITTO") or shutil.which(
        "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin"
    )


@contextmanager
def tls_broker(folder: Path, identity: Identity, crl: Path | None = None) -> Iterator[int]:
    """Run a broker with this identity; gives its port. Only places and the port are changed."""
    program = find_mosquitto()
    assert program is not None, "ask find_mosquitto first"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    text = (CONF / "mosquitto.conf").read_text()
    for shipped, here in (
        ("listener 8883", f"listener {port} 127.0.0.1"),
        ("/etc/mosquitto/hcp/ca.crt", identity.ca),
        ("/etc/mosquitto/hcp/broker.crt", identity.cert),
        ("/etc/mosquitto/hcp/broker.key", identity.key),
        ("/etc/mosquitto/hcp/acl", CONF / "mosquitto.acl"),
        ("persistence true", "persistence false"),
    ):
        assert text.count(f"{shipped}\n") == 1, shipped
        text = text.replace(f"{shipped}\n", f"{here}\n")
    if crl is not None:
        assert text.count("# crlfile /etc/mosquitto/hcp/ca.crl\n") == 1
        text = text.replace("# crlfile /etc/mosquitto/hcp/ca.crl", f"crlfile {crl}")
    config = folder / "mosquitto.conf"
    # Started as root it would change to a user who may not read the test's folder.
    config.write_text(f"user root\n{text}")
    with subprocess.Popen([program, "-c", config], stderr=subprocess.DEVNULL) as broker:
        try:
            _wait_for(port, broker)
            yield port
        finally:
            broker.kill()


def _wait_for(port: int, broker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
        except OSError:
            assert broker.poll() is None, "mosquitto refused its configuration"
            assert time.monotonic() < deadline, "mosquitto did not start"
            time.sleep(0.02)
