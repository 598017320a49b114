"""One firmware family as a value: how it is recognised, asked, decoded and told.

A family is data and pure functions. `families.py` lists them; nothing registers itself by import.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

import msgspec

from firmware_bridges.base import Partial
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.commands import MinerControl
from firmware_bridges.document import Document
from firmware_bridges.http.digest import Credentials
from firmware_bridges.query import Asker, Query, Wire
from firmware_bridges.sheet import Sheet

AnswerDecoder = Callable[[Answer], Partial]
DocumentDecoder = Callable[[Document], Partial]

WEIGHT_SURE: Final = 100
"""Nobody else says this."""
WEIGHT_LIKELY: Final = 10
"""Others may, by imitation."""
WEIGHT_HINT: Final = 1
"""What the base of several families says."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of a family in an answer.

    Args:
        text: Part of the answer's bytes, in lower case; empty = that the key was answered at all.
        weight: How sure it is; the weights of all answers add up.
        key: Only in answers to this key; `None` = in any.
    """

    text: bytes = b""
    weight: int = WEIGHT_SURE
    key: str | None = None


class AuthKind(StrEnum):
    """How a miner's web pages know their client."""

    NONE = "none"
    DIGEST = "digest"
    TOKEN = "token"  # noqa: S105 - a kind, no secret


class WebAuth(msgspec.Struct, frozen=True, kw_only=True):
    """How to log on to the web pages.

    Args:
        kind: `digest`: RFC 2617, the nonce reused; `token`: one login, then a header.
        login: Makes the login request of `token`.
        token_of: Reads the token out of the login's answer; `None` = there is none.
        header: Header of the token, lower case. prefix: before the token.
        factory: What the maker ships; public, and changed by careful owners.
    """

    kind: AuthKind = AuthKind.NONE
    login: Callable[[Credentials], Query] | None = None
    token_of: Callable[[Document], str | None] | None = None
    header: str = "authorization"
    prefix: str = ""
    factory: Credentials | None = None


class Reads(msgspec.Struct, frozen=True, kw_only=True):
    """What a reading asks, in order: `fast` every tick, `slow` every minute beside it."""

    fast: tuple[Query, ...]
    slow: tuple[Query, ...] = ()


class ControlContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a control is made of.

    Args:
        asker: To the miner.
        credentials: Of its write API; `None` = the factory's.
        address: For errors, `host:port`.
        wall_s: Unix seconds, for the commands that carry a time.
        random_text: Fresh random text, for salts and sessions.
    """

    asker: Asker
    credentials: Credentials | None
    address: str
    wall_s: Callable[[], float]
    random_text: Callable[[], str]


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One firmware family.

    Args:
        name: Stable name in configuration and API, such as `antminer-stock`.
        firmware: Who wrote it, as readings say: `stock`, `luxos` ...
        make: Where all machines with it have one maker.
        marks: How it is recognised.
        answers: Decoders of cgminer answers, by command.
        documents: Decoders of everything else, by (wire, key).
        order: Keys, the most trusted first: for each field the first that knows it wins.
        base: Family whose decoders serve where this one has none.
        reads: What a reading asks; `None` = it is decoded from recordings only.
        ports: Default port of each wire.
        auth: Of its web pages.
        control: Makes its control; `None` = read-only.
        sheet: Its quality sheet.
    """

    name: str
    firmware: str
    sheet: Sheet
    make: str | None = None
    marks: tuple[Mark, ...]
    answers: Mapping[str, AnswerDecoder] = msgspec.field(default_factory=dict)
    documents: Mapping[tuple[Wire, str], DocumentDecoder] = msgspec.field(default_factory=dict)
    order: tuple[str, ...] = ()
    base: str | None = None
    reads: Reads | None = None
    ports: Mapping[Wire, int] = msgspec.field(default_factory=dict)
    auth: WebAuth = WebAuth()
    control: Callable[[ControlContext], MinerControl] | None = None
