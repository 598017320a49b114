"""Every MQTT topic with its QoS and retain flag; build and parse in one place.

========================================  ===  ========
topic                                     QoS  retained
========================================  ===  ========
hcp/v1/{site}/up/{lane}                   1    no (``live``: QoS 0)
hcp/v1/{site}/down/ack                    1    no
hcp/v1/{site}/down/policy                 1    yes
hcp/v1/{site}/down/orders                 1    yes
hcp/v1/{site}/down/cmd                    1    no
hcp/v1/{site}/down/lease/{lease_id}       1    yes
hcp/v1/{site}/state                       1    yes
hcp/v1/hub/state, hcp/v1/hub/canary       1    yes
hcp/v1/hub/heartbeat                      0    no
hcp/v1/market/{feed}                      1    yes
========================================  ===  ========
"""

from msgspec import Struct

from protocol.sync import Lane

ROOT = "hcp/v1"
HUB_STATE = f"{ROOT}/hub/state"
HUB_HEARTBEAT = f"{ROOT}/hub/heartbeat"
HUB_CANARY = f"{ROOT}/hub/canary"
# Site ids that would collide with the fixed branches.
RESERVED_SITES = frozenset({"hub", "market"})


class UpTopic(Struct, frozen=True):
    """Parsed ``up`` topic."""

    site_id: str
    lane: Lane


def up(site_id: str, lane: Lane) -> str:
    """Build the topic of one up lane."""
    return f"{ROOT}/{site_id}/up/{lane.value}"


def down_ack(site_id: str) -> str:
    """Build the topic of acks, welcomes and rebases."""
    return f"{ROOT}/{site_id}/down/ack"


def down_policy(site_id: str) -> str:
    """Build the topic of the site's policy."""
    return f"{ROOT}/{site_id}/down/policy"


def down_orders(site_id: str) -> str:
    """Build the topic of the site's grid orders."""
    return f"{ROOT}/{site_id}/down/orders"


def down_cmd(site_id: str) -> str:
    """Build the topic of one-off commands."""
    return f"{ROOT}/{site_id}/down/cmd"


def down_lease(site_id: str, lease_id: str) -> str:
    """Build the topic of one lease."""
    return f"{ROOT}/{site_id}/down/lease/{lease_id}"


def site_state(site_id: str) -> str:
    """Build the topic of birth and death."""
    return f"{ROOT}/{site_id}/state"


def market(feed: str) -> str:
    """Build the topic of one market feed."""
    return f"{ROOT}/market/{feed}"


def edge_subscriptions(site_id: str) -> tuple[tuple[str, int], ...]:
    """Give the filters of a site's agent; none overlaps (mosquitto delivers overlaps twice)."""
    return (
        (f"{ROOT}/{site_id}/down/#", 1),
        (HUB_STATE, 1),
        (HUB_HEARTBEAT, 0),
    )


def hub_subscriptions() -> tuple[tuple[str, int], ...]:
    """Give the filters of the hub; the canary is subscribed apart, to be read back."""
    return ((f"{ROOT}/+/up/#", 1), (f"{ROOT}/+/state", 1), (HUB_CANARY, 1))


def parse_up(topic: str) -> UpTopic | None:
    """Read ``hcp/v1/{site}/up/{lane}``; None for any other topic."""
    parts = topic.split("/")
    if len(parts) != 5 or parts[:2] != ["hcp", "v1"] or parts[3] != "up":
        return None
    if parts[4] not in Lane._value2member_map_:
        return None
    return UpTopic(parts[2], Lane(parts[4]))


def parse_state(topic: str) -> str | None:
    """Read the site id of ``hcp/v1/{site}/state``; None for any other topic."""
    parts = topic.split("/")
    if len(parts) != 4 or parts[:2] != ["hcp", "v1"] or parts[3] != "state":
        return None
    return None if parts[2] in RESERVED_SITES else parts[2]


def parse_down_lease(topic: str) -> str | None:
    """Read the lease id of ``hcp/v1/{site}/down/lease/{lease_id}``; None for any other topic."""
    parts = topic.split("/")
    if len(parts) != 6 or parts[:2] != ["hcp", "v1"] or parts[3:5] != ["down", "lease"]:
        return None
    return parts[5]
