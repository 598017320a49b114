"""Addresses in the words of a person: one, several, a range, a network. Pure."""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Final

TARGETS_MAX: Final = 65_536


class TargetError(ValueError):
    """The text names no addresses; the message says which part."""


def addresses_of(words: Sequence[str]) -> tuple[str, ...]:
    """Give the IPv4 addresses that some words name, each once, in their order.

    Args:
        words: `10.1.0.5`, `10.1.0.0/20` (its hosts), `10.1.0.5-10.1.0.40` or `10.1.0.5-40`.

    Raises:
        TargetError: A word names none, or there are more than 65,536.
    """
    found: dict[str, None] = {}
    for word in words:
        for address in _of(word.strip()):
            found[str(address)] = None
            if len(found) > TARGETS_MAX:
                raise TargetError(f"{word}: more than {TARGETS_MAX} addresses")
    return tuple(found)


def _of(word: str) -> Iterator[ipaddress.IPv4Address]:
    try:
        if "/" in word:
            network = ipaddress.IPv4Network(word, strict=False)
            if network.num_addresses > 2 * TARGETS_MAX:
                raise TargetError(f"{word}: more than {TARGETS_MAX} addresses")
            yield from network.hosts()
            return
        first, dash, last = word.partition("-")
        begin = ipaddress.IPv4Address(first)
        end = ipaddress.IPv4Address(_whole(first, last)) if dash else begin
    except ipaddress.AddressValueError as exc:
        raise TargetError(f"{word}: {exc}") from exc
    except ipaddress.NetmaskValueError as exc:
        raise TargetError(f"{word}: {exc}") from exc
    if not begin <= end:
        raise TargetError(f"{word}: ends before it begins")
    if int(end) - int(begin) >= TARGETS_MAX:
        raise TargetError(f"{word}: more than {TARGETS_MAX} addresses")
    for number in range(int(begin), int(end) + 1):
        yield ipaddress.IPv4Address(number)


def _whole(first: str, last: str) -> str:
    """Give the end of a range in full: `10.1.0.5-40` ends at 10.1.0.40."""
    return last if "." in last else f"{first.rpartition('.')[0]}.{last}"
