"""A sink whose target is named later: links and brain need each other to be built."""

from edge_agent.services.agent import Agent
from protocol.node import GpuRelease, Inventory, LeaseKeys, NodeEvent, NodeFacts, Prepare, Readings


class LateSink:
    """Implements ``NodeSink`` by handing on; ``target`` is set before any link runs."""

    target: Agent

    def hub_heard_age_ms(self) -> int | None:
        """Ask the target how long ago the hub was heard."""
        return self.target.hub_heard_age_ms()

    def lease_keys(self, node_id: str) -> tuple[LeaseKeys, ...]:
        """Ask the target who may use what the node serves."""
        return self.target.lease_keys(node_id)

    def prepare(self, node_id: str) -> tuple[Prepare, ...]:
        """Ask the target what is to be held ready on the node."""
        return self.target.prepare(node_id)

    def release(self, node_id: str) -> tuple[GpuRelease, ...]:
        """Ask the target which fences of the node an operator ends now."""
        return self.target.release(node_id)

    def reading_mark(self, node_id: str) -> int:
        """Ask the target."""
        return self.target.reading_mark(node_id)

    async def on_inventory(self, inventory: Inventory) -> None:
        """Hand on."""
        await self.target.on_inventory(inventory)

    async def on_readings(self, node_id: str, readings: Readings) -> None:
        """Hand on."""
        await self.target.on_readings(node_id, readings)

    async def on_facts(self, node_id: str, facts: NodeFacts) -> None:
        """Hand on."""
        await self.target.on_facts(node_id, facts)

    async def on_event(self, node_id: str, event: NodeEvent) -> None:
        """Hand on."""
        await self.target.on_event(node_id, event)

    async def on_lost(self, node_id: str) -> None:
        """Hand on."""
        await self.target.on_lost(node_id)
