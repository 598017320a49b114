"""Spans of several processes become one timeline of a switch, by the way it went."""

from __future__ import annotations

from bench.switch_trace import Span, timelines

MS = 1_000_000


def _span(name: str, at_ms: float, took_ms: float, base_ms: float = 0.0) -> Span:
    return Span(name, int((base_ms + at_ms) * MS), int((base_ms + at_ms + took_ms) * MS))


def _switch(base_ms: float, *, serves: bool, longer_ms: float = 0.0) -> list[Span]:
    asked = "canary" if serves else "mine"
    return [
        _span("agent one_pass", 0.0, 3.0, base_ms),
        _span("agent drive", 2.0, 8.0 + longer_ms, base_ms),
        _span(f"node act:{asked}", 4.0, 1.0, base_ms),
        _span("gpu ask:/status", 4.0, 0.5, base_ms),
        _span("gpu ask:/status", 5.0, 0.75, base_ms),
        _span("gpu ask:/resume", 6.0, 2.0, base_ms),
        _span("agent one_pass", 30.0, 1.0, base_ms),
    ]


def test_a_switch_counts_from_its_pass_and_is_told_by_its_way() -> None:
    told = timelines([*_switch(0.0, serves=True), *_switch(100.0, serves=False, longer_ms=5.0)])
    assert {way: (one["switches"], one["whole_ms"]) for way, one in told.items()} == {
        "to serve": (1, 10.0),
        "to mine": (1, 15.0),
    }
    one = told["to serve"]
    assert one["agent drive #1"] == "at 2.00 took 8.00 p90 8.00 ms"
    assert one["gpu ask:/status #2"] == "at 5.00 took 0.75 p90 0.75 ms"
    assert "agent one_pass #2" not in one  # the next pass is none of this switch


def test_looks_at_engines_are_told_apart_from_what_they_do() -> None:
    one = timelines(_switch(0.0, serves=True))["to serve"]
    assert one["engine_looks"] == "2 in p50 1.25 p90 1.25 ms"
    assert one["engine_orders_and_answers"] == "1 in p50 2.00 p90 2.00 ms"


def test_what_most_switches_lack_is_left_out() -> None:
    rare = [*_switch(0.0, serves=True), _span("node rare", 3.0, 1.0)]
    told = timelines([*rare, *(s for n in (1, 2) for s in _switch(n * 100.0, serves=True))])
    assert "node rare #1" not in told["to serve"]
    assert told["to serve"]["switches"] == 3
