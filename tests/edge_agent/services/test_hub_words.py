"""One-off commands from the hub: at most once, never after they expired."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import cast

from edge_agent.ports import Clock, CommitBatch, CoreStore
from edge_agent.services.agent import Agent
from edge_agent.services.hub_words import HubWords
from protocol.event import CommandResult
from protocol.lease import Command

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class StillClock:
    def wall(self) -> datetime:
        return NOW


class Place:
    """A store and an executor that note the order of what happens."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.results: list[CommandResult] = []
        self.answered = asyncio.Event()

    async def commit(self, batch: CommitBatch) -> None:
        self.log += [f"begun {command_id}" for command_id in batch.one_offs]
        self.results += [item for item in batch.events if isinstance(item, CommandResult)]
        if batch.events:
            self.answered.set()

    async def act(self, verb: str, device_id: str) -> tuple[str, str]:
        self.log.append(f"{verb} {device_id}")
        return "done", "effect seen"

    def words(self, *begun: str) -> HubWords:
        return HubWords(
            cast("Agent", None),
            cast("CoreStore", self),
            cast("Clock", StillClock()),
            act=self.act,
            begun=begun,
        )


def command(command_id: str, *, left_s: float = 60.0) -> Command:
    return Command(
        hub_epoch=1,
        command_id=command_id,
        verb="locate",
        device_id="asic-0",
        expires_at=NOW + timedelta(seconds=left_s),
    )


async def carried_out(place: Place, words: HubWords, *commands: Command) -> None:
    for each in commands:
        await words.on_command(each)
    running = asyncio.create_task(words.run())
    async with asyncio.timeout(5):
        await place.answered.wait()
    running.cancel()


async def test_a_command_is_begun_durably_before_it_is_done_and_done_once() -> None:
    place = Place()
    await carried_out(place, place.words(), command("c1"), command("c1"))
    assert place.log == ["begun c1", "locate asic-0"]
    assert [(row.command_id, row.outcome) for row in place.results] == [("c1", "done")]


async def test_an_expired_command_is_not_done() -> None:
    place = Place()
    await carried_out(place, place.words(), command("c1", left_s=0.0))
    assert place.log == []
    assert place.results[0].outcome == "expired"


async def test_a_command_that_a_former_run_began_is_not_done_again() -> None:
    place = Place()
    await carried_out(place, place.words("c1"), command("c1"), command("c2"))
    assert place.log == ["begun c2", "locate asic-0"]
