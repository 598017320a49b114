"""Braiins OS as a dialect: the cgminer API on 4028 and REST with a token, on one miner.

Pausing takes the boards off and lets the mining program run on: its uptime counts, its API answers.
After a new power target the tuner works for minutes. Source: the vendor's OpenAPI documents and
recorded answers of 25.07; the status codes of `pause` and `resume`, the refusal of a target out of
range and the times are assumptions.
"""

from __future__ import annotations

from simulators import asic_braiins_api, asic_braiins_graphql, asic_braiins_rest
from simulators.asic_braiins_state import Memory, memory_of
from simulators.asic_dialect import OneWire, Outcome, Unit, answer
from simulators.asic_pools import Pool, Pools
from simulators.asic_web import Login
from simulators.http_wire import HttpRequest


class BraiinsDialect(OneWire):
    """Braiins OS of 25.07 and later.

    Args:
        login: Of REST.
        secret: Seed of its tokens.
    """

    name = "braiins"

    def __init__(self, login: Login, secret: int) -> None:
        self._login = login
        self._secret = secret

    def begin(self, unit: Unit) -> object:
        """Start with one pool and the nameplate's power as target."""
        pool = Pool("stratum+tcp://pool.example.com:3333", f"site.{unit.who.index:05d}", "x")
        return Memory(Pools((pool,)), unit)

    def restart(self, unit: Unit) -> None:
        """Boot: a pause does not outlive it."""
        memory_of(unit).boot(unit)

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one cgminer request, away during a boot."""
        if unit.is_api_away:
            return asic_braiins_api.AWAY
        return answer(asic_braiins_api.converse(unit, data))

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Answer one REST request."""
        return asic_braiins_rest.serve(unit, request, self._login, self._secret)


class OldBraiinsDialect(BraiinsDialect):
    """Braiins OS of 23.03 to 25.05 as far as it is steered: its cgminer API alone."""

    name = "braiins-old"

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Reset: its web pages are not simulated."""
        return OneWire.web(self, unit, request)


class GraphqlBraiinsDialect(BraiinsDialect):
    """Braiins OS of 21.09 to 25.05: its cgminer API, and GraphQL to read."""

    name = "braiins-graphql"

    def web(self, unit: Unit, request: HttpRequest) -> Outcome:
        """Answer one GraphQL request."""
        return asic_braiins_graphql.serve(unit, request)
