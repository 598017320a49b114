"""Addresses that settings name: ``unix:/path`` or ``tcp:host:port``."""

import ipaddress


def split_tcp(address: str) -> tuple[str, int]:
    """Split ``tcp:host:port``.

    Raises:
        ValueError: it is no such address.
    """
    kind, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not host or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        raise ValueError(f"{address!r}: want tcp:host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_address(address: str) -> None:
    """Refuse what is no address of a node.

    Raises:
        ValueError: it is none.
    """
    if address.startswith("unix:/") and len(address) > len("unix:/"):
        return
    try:
        split_tcp(address)
    except ValueError as exc:
        raise ValueError(f"{address!r}: want unix:/path or tcp:host:port") from exc


def is_local(address: str) -> bool:
    """Tell whether an address can be reached from its own machine alone.

    Raises:
        ValueError: it is no address.
    """
    if address.startswith("unix:"):
        return True
    host, _ = split_tcp(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name; where it leads is not known here
