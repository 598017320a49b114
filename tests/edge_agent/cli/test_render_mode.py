"""The power mode in words: what a person reads of it."""

from edge_agent.cli.render import devices, plan, status, switches
from edge_agent.cli.render_mode import why_mode

MODE = {
    "mode": "normal",
    "to_mode": "high",
    "counts_w": 4_485.0,
    "options": [
        {"mode": "low", "power_w": 1_950.0, "rate_ths": 130.0, "adds_usd_per_h": 0.2, "note": ""},
        {"mode": "normal", "power_w": 3_500.0, "rate_ths": 200.0, "adds_usd_per_h": None,
         "note": ""},
        {
            "mode": "high", "power_w": 4_485.0, "rate_ths": 230.0, "adds_usd_per_h": -0.01,
            "note": "refused: mode.refused",
        },
    ],
    "reason": "step_gain",
    "detail": "the change earns more than it costs over the expected stay",
    "would_change": ["a price above 90.70 USD/MWh makes low earn more"],
}  # fmt: skip


def test_a_why_shows_each_mode_and_what_would_change_it() -> None:
    text = "\n".join(why_mode(MODE))
    assert "normal, changing to high, counts 4,485 W" in text
    assert " * normal" in text
    assert "adds ? USD/h" in text
    assert "adds -0.0100 USD/h  refused: mode.refused" in text
    assert "changes if  a price above 90.70" in text
    assert why_mode(None) == []


def test_a_device_line_shows_the_mode_beside_the_activity() -> None:
    row = {
        "device_id": "a1", "device_class": "S21", "activity": "mine", "mode": "normal>high",
        "reachable": True, "since_s": 5.0, "power_w": 3_500.0, "temp_c": 60.0,
        "hashrate_ths": 200.0, "lease_id": None, "reason": "keep_best",
    }  # fmt: skip
    assert "mine normal>high" in devices([{"device": row}])
    assert "mine  " in devices([{"device": {**row, "mode": None}}])


def test_a_plan_and_a_switch_name_the_mode() -> None:
    power = {"counted_w": 1e3, "cap_w": 2e3, "headroom_w": 1e3}
    intent = {
        "devices": 4, "device_class": "S21", "from_activity": "mine", "to_activity": "mine",
        "mode": "low", "reason": "step_gain", "gain_usd": 1.0, "cost_usd": 0.5,
    }  # fmt: skip
    value = {
        "power": power, "intents": [intent], "lease_acts": [], "reasons": [],
        "mode_reasons": [["step_keep", 3]],
    }  # fmt: skip
    text = plan(value)
    assert "4 x S21: mine -> low  step_gain" in text
    assert "3 modes:   step_keep" in text
    switch = {
        "at": "2026-01-01T00:00:00Z", "switch_id": "s1", "devices": 4, "device_class": "S21",
        "from_activity": "mine", "to_activity": "mine", "mode": "low", "took_us": 1_000,
        "committed": 4, "rolled_back": 0, "quarantined": 0, "reason": "step_gain", "phases": [],
    }  # fmt: skip
    assert "mode low" in switches([switch])


def test_the_status_counts_the_modes_of_a_class() -> None:
    site = {
        "site_id": "s1", "problems": [], "power_w": 1.0, "power_counted_w": 1.0, "power_cap_w": 1.0,
        "earning_usd_per_h": None,
        "market": [
            {"name": name, "value": None, "age_s": None}
            for name in ("price_usd_per_mwh", "btc_price_usd")
        ],
        "switches": {"count": 0, "open": 0, "p50_ms": None, "p99_ms": None, "rolled_back": 0},
        "classes": [
            {
                "device_class": "S21", "total": 4, "by_activity": {"mine": 4},
                "by_mode": {"low": 3, "high": 1},
            }
        ],
    }  # fmt: skip
    hub = {"online": True, "heard_age_s": 1.0, "backlog": 0}
    text = status({"site": site, "hub": hub, "up_s": 1.0, "version": "1"})
    assert "modes of S21: 3 low, 1 high" in text
