"""The bench reads the agent's own line of a switch."""

from __future__ import annotations

from bench.switch_overhead import Row, parsed

LOG = """\
2026-11-27 07:47:45,458 level=INFO logger=edge_agent.node.link node=bench-g1 connected
2026-11-27 07:47:52,517 level=INFO logger=edge_agent.services.switch_executor switch=s-1 from=mine \
to=serve devices=1 committed=1 took_us=40581 engine_us=1200 phases=validate:10330,commit:3803
2026-11-27 07:47:53,608 level=INFO logger=edge_agent.services.switch_executor switch=s-2 from=idle \
to=mine devices=3 rolled_back=3 took_us=9 engine_us=0 phases=validate:9
2026-11-27 07:47:53,608 level=INFO logger=edge_agent.services.switch_executor switch=s-3 from=idle \
to=mine devices=3 rolled_back=1 committed=2 took_us=9 engine_us=0 phases=validate:9
"""


def test_switches_are_read_out_of_the_log_and_mixed_ends_are_none() -> None:
    assert parsed(LOG) == [
        Row(
            source="mine",
            target="serve",
            devices=1,
            outcome="committed",
            took_us=40_581,
            engine_us=1_200,
            phases={"validate": 10_330, "commit": 3_803},
        ),
        Row(
            source="idle",
            target="mine",
            devices=3,
            outcome="rolled_back",
            took_us=9,
            engine_us=0,
            phases={"validate": 9},
        ),
    ]
