"""Addresses of the node link."""

import pytest

from edge_agent.addresses import check_address, is_local, split_tcp


@pytest.mark.parametrize("address", ["", "unix:", "tcp:x", "tcp::1", "tcp:h:70000", "udp:h:1"])
def test_bad_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="want"):
        check_address(address)


def test_tcp_addresses_split() -> None:
    assert split_tcp("tcp:[::1]:7601") == ("::1", 7601)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:/run/x", True),
        ("tcp:127.0.0.1:1", True),
        ("tcp:127.9.9.9:1", True),
        ("tcp:[::1]:1", True),
        ("tcp:localhost:1", True),
        ("tcp:0.0.0.0:1", False),
        ("tcp:[::]:1", False),
        ("tcp:10.2.0.1:1", False),
        ("tcp:gpu-1:1", False),
    ],
)
def test_only_loopback_and_unix_sockets_are_local(address: str, local: bool) -> None:  # noqa: FBT001 - a case
    assert is_local(address) is local
