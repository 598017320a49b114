"""The web pages of Bitmain's stock firmware: digest authentication, and the CGI pages' bodies.

Pure: bytes and values in, bytes and values out; `asic_server` owns the sockets, `asic_fleet` what
the pages change. Source: recorded answers and what public fleet tools report; the error codes of
refused pages are assumptions.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from simulators.asic_cgminer import Pool
from simulators.http_wire import HttpRequest

REALM = "antMiner Configuration"
NONCE_LIFE_S = 600
_PAIR = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]+))')


class Login(msgspec.Struct, frozen=True):
    """The user name and password that the pages ask for."""

    user: str = "root"
    password: str = "root"  # noqa: S105 - the maker's published default, kept by most sites


def nonce(secret: str, wall_s: int) -> str:
    """Return the nonce in force; it changes every ten minutes."""
    return _md5(f"{secret}:{wall_s // NONCE_LIFE_S}")


def authorized(
    request: HttpRequest, login: Login, secret: str, wall_s: int, realm: str = REALM
) -> bool:
    """Tell whether a request carries a right digest for a nonce of this or the last period."""
    scheme, _, rest = request.authorization.partition(" ")
    if scheme.lower() != "digest":
        return False
    given = {name: quoted or bare for name, quoted, bare in _PAIR.findall(rest)}
    if given.get("nonce") not in {nonce(secret, wall_s), nonce(secret, wall_s - NONCE_LIFE_S)}:
        return False
    if given.get("uri", "").partition("?")[0] != request.path:
        return False
    a1 = _md5(f"{login.user}:{realm}:{login.password}")
    a2 = _md5(f"{request.method}:{given.get('uri', '')}")
    middle = ":".join(given.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
    return given.get("username") == login.user and given.get("response") == _md5(
        f"{a1}:{middle}:{a2}"
    )


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The miner's configuration, as `get_miner_conf.cgi` shows it.

    A POST replaces it wholly: a field that is left out falls back to its default, pools included.
    """

    pools: tuple[Pool, ...] = ()
    api_listen: bool = msgspec.field(default=True, name="api-listen")
    api_network: bool = msgspec.field(default=True, name="api-network")
    api_groups: str = msgspec.field(default="A:stats:pools:devs:summary:version", name="api-groups")
    api_allow: str = msgspec.field(default="A:0/0,W:*", name="api-allow")
    fan_control: bool = msgspec.field(default=False, name="bitmain-fan-ctrl")
    fan_pwm: str = msgspec.field(default="100", name="bitmain-fan-pwm")
    work_mode: str = msgspec.field(default="0", name="bitmain-work-mode")
    hashrate_percent: str = msgspec.field(default="100", name="bitmain-hashrate-percent")
    frequency_level: str = msgspec.field(default="100", name="bitmain-freq-level")


class ConfigurationWrite(msgspec.Struct, frozen=True, kw_only=True):
    """What `set_miner_conf.cgi` reads of a POST: the mode under `miner-mode`, as an integer."""

    pools: tuple[Pool, ...] = ()
    fan_control: bool = msgspec.field(default=False, name="bitmain-fan-ctrl")
    fan_pwm: str | int = msgspec.field(default="100", name="bitmain-fan-pwm")
    frequency_level: str | int = msgspec.field(default="100", name="bitmain-freq-level")
    miner_mode: int | None = msgspec.field(default=None, name="miner-mode")


def challenge(secret: str, wall_s: int, realm: str = REALM) -> str:
    """Return the header that asks for a digest."""
    return f'WWW-Authenticate: Digest realm="{realm}", nonce="{nonce(secret, wall_s)}", qop="auth"'


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
