"""An operator's word on a fence, as the agent takes it and says it on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec import structs

from edge_agent.core.errors import ActError
from edge_agent.local_api.api import BufferView, HubLink, LocalApi
from edge_agent.local_api.http import LocalError, LocalRequest, Peer
from edge_agent.services.agent import Agent
from edge_agent.services.fence_words import FenceWords
from protocol.event import Alarm
from protocol.node import RELEASE_LAPSES_S, GpuFence, GpuRelease, GpuSample, NodeFacts
from tests.edge_agent.services.brain_world import LoopClock, World, build_site, play

SINCE = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
FENCE = GpuFence(code="xid-48", since=SINCE, ends_by="an operator's release, after: reset")
STANDING = structs.replace(FENCE, stands="a row is remapped at the next reset")


def sample(device_id: str, fence: GpuFence | None) -> GpuSample:
    return GpuSample(device_id=device_id, healthy=fence is None, fence=fence)


def test_a_word_names_the_fence_and_is_said_until_it_lapses_or_the_fence_is_gone() -> None:
    now = [0]
    words = FenceWords(lambda: now[0])
    words.release("g0")
    assert words.words("n1") == (), "nothing is fenced"
    words.take("n1", (sample("g0", FENCE), sample("g1", None)))
    words.release("g0")
    words.release("g1")
    said = (GpuRelease(device_id="g0", code="xid-48", since=SINCE),)
    assert words.words("n1") == said
    assert words.words("n2") == ()
    now[0] = int(RELEASE_LAPSES_S * 1e9) - 1
    assert words.words("n1") == said
    now[0] += 1
    assert words.words("n1") == ()
    words.release("g0")
    words.take("n1", (sample("g0", None),))
    assert words.words("n1") == ()


def test_a_fence_that_stands_is_not_released() -> None:
    words = FenceWords(lambda: 0)
    words.take("n1", (sample("g0", STANDING),))
    with pytest.raises(ActError, match="a row is remapped at the next reset") as refused:
        words.release("g0")
    assert refused.value.code == "fence_stands"
    assert words.words("n1") == ()


def test_a_fence_is_told_with_its_code_since_when_and_what_ends_it() -> None:
    words = FenceWords(lambda: 0)
    assert words.text("g0") is None
    words.take("n1", (sample("g0", FENCE),))
    ends = "ends by an operator's release, after: reset (`undrain`)"
    assert words.text("g0") == f"xid-48 since 2026-03-01T12:30:00Z; {ends}"
    words.take("n1", (sample("g0", STANDING),))
    assert words.text("g0") == (
        f"xid-48 since 2026-03-01T12:30:00Z; {ends}; still seen: {STANDING.stands}"
    )


def test_undrain_releases_the_fence_of_a_gpu_and_why_tells_of_it() -> None:
    world = World()

    async def script(agent: Agent) -> None:
        node_id, device_id = next(
            (row.node_id, row.device_id) for row in agent.site.devices if row.node_id
        )
        facts = NodeFacts(at=SINCE, samples=(sample(device_id, STANDING),), devices=())
        await agent.on_facts(node_id, facts)
        with pytest.raises(ActError) as refused:
            await agent.undrain(device_id)
        assert refused.value.code == "fence_stands"
        assert agent.release(node_id) == ()
        facts = NodeFacts(at=SINCE, samples=(sample(device_id, FENCE),), devices=())
        await agent.on_facts(node_id, facts)
        assert (agent.why(device_id).fence or "").startswith("xid-48 since")
        await agent.undrain(device_id)
        assert [one.device_id for one in agent.release(node_id)] == [device_id]

    play(world, script)


def test_a_host_that_cannot_read_its_record_is_alarmed_of_once_for_each_card() -> None:
    world = World(build_site(asics=0, gpus=2))
    unreadable = structs.replace(FENCE, code="xid-48+record-unreadable")

    def alarms() -> list[tuple[str, str | None]]:
        rows = [row for row in world.store.of(Alarm) if isinstance(row, Alarm)]
        return [(row.code, row.device_id) for row in rows if "fence" in row.code]

    async def script(agent: Agent) -> None:
        for _ in range(3):
            rows = (sample("g0", unreadable), sample("g1", FENCE))
            await agent.on_facts("n0", NodeFacts(at=SINCE, samples=rows, devices=()))
        assert alarms() == [("fence_record_unreadable", "g0")]
        detail = next(row.detail for row in world.store.of(Alarm) if isinstance(row, Alarm))
        assert "n0: fence record unreadable" in detail
        rows = (sample("g0", unreadable), sample("g1", unreadable))
        await agent.on_facts("n0", NodeFacts(at=SINCE, samples=rows, devices=()))
        assert alarms()[1:] == [("fence_record_unreadable", "g1")]

    play(world, script)


def test_one_gpu_that_stays_fenced_is_in_no_others_way() -> None:
    world = World(build_site(asics=0, gpus=2))

    async def script(agent: Agent) -> None:
        for device_id in ("g0", "g1"):
            await agent.drain(device_id, None, "dust")
        rows = (sample("g0", STANDING), sample("g1", FENCE))
        await agent.on_facts("n0", NodeFacts(at=SINCE, samples=rows, devices=()))
        api = LocalApi(
            agent,
            LoopClock(),
            hub=lambda: HubLink(online=False, heard_age_s=None, backlog=0, last_error=""),
            buffer=lambda: BufferView(
                v=1, streams=(), segment_bytes=0, level=0, dropped_segments=0
            ),
            switches=lambda _limit: (),
        )
        with pytest.raises(LocalError, match="g0: no longer held, but fenced") as refused:
            await api.handle(
                LocalRequest(
                    method="POST",
                    path="/v1/undrain",
                    query={},
                    body=b'{"pattern":"g*"}',
                    peer=Peer(pid=1, uid=1_000, gid=1_000),
                    writable=True,
                )
            )
        assert (refused.value.status, refused.value.code) == (409, "fence_stands")
        assert [one.hold for one in agent.devices()] == ["none", "none"]
        assert [one.device_id for one in agent.release("n0")] == ["g1"]

    play(world, script)
