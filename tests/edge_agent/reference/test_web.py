"""The HTTP side of both reference workloads, asked by those who mean no good."""

import socket

import pytest

from tests.edge_agent.reference.programs import Programs

HOSTILE = [
    b"\x00\x01\x02\x03\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /status HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
    b"POST /pause HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /pause HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n" + b"y" * 400_000,
    b"POST /pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


def answer_to(raw: bytes, host: str, port: int) -> int | None:
    """Give the status of the answer; None when the connection was ended instead."""
    with socket.create_connection((host, port), timeout=10) as link:
        try:
            link.sendall(raw)
            words = link.recv(4_096).split(b" ")
        except ConnectionError:
            return None
    return int(words[1]) if len(words) > 1 else None


@pytest.mark.parametrize("kind", ["miner", "inference"])
def test_hostile_requests_change_nothing(programs: Programs, kind: str) -> None:
    # Nobody listens at port 9: the miner has no pool, and needs none to answer.
    server = programs.miner(9, "--paused") if kind == "miner" else programs.inference("--paused")
    server.wait(lambda status: status["state"] == "paused")
    host, port = server.listen.removeprefix("http://").split(":")
    for raw in HOSTILE:
        assert answer_to(raw, host, int(port)) in {None, 400, 404, 413}, raw[:60]
    for path in ("/nothing", "/status?" + "&".join(f"a{n}=1" for n in range(99))):
        assert server.client.get(path).status_code in {400, 404}
    assert server.client.get("/pause").status_code == 405
    for timeout in ("x", "-1", "nan", "inf", "1e9"):
        assert server.client.post(f"/resume?timeout_s={timeout}").status_code == 400
    assert server.status()["state"] == "paused"


def test_many_idle_connections_leave_room_for_a_request(programs: Programs) -> None:
    server = programs.inference("--paused")
    host, port = server.listen.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
    try:
        assert server.status()["pid"] == server.process.pid
    finally:
        for link in idle:
            link.close()
