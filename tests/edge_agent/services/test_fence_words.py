"""An operator's word on a fence, as the agent takes it and says it on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec import structs

from edge_agent.local_api.api import Acted, BufferView, HubLink, LocalApi
from edge_agent.local_api.http import LocalRequest, Peer
from edge_agent.services.agent import Agent
from edge_agent.services.fence_words import SILENT_S, FenceWords, ReleaseOutcome
from protocol.event import Alarm
from protocol.node import RELEASE_LAPSES_S, GpuFence, GpuRelease, GpuSample, NodeFacts
from tests.edge_agent.services.brain_world import LoopClock, World, build_site, play

SINCE = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
FENCE = GpuFence(code="xid-48", since=SINCE, ends_by="an operator's release, after: reset")
STANDING = structs.replace(FENCE, stands="a row is remapped at the next reset")


def sample(device_id: str, fence: GpuFence | None) -> GpuSample:
    return GpuSample(device_id=device_id, healthy=fence is None, fence=fence)


class Desk:
    """A desk of fences whose clock the test turns; one node with one GPU."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.words = FenceWords(lambda: round(self.now_s * 1e9))

    def hear(self, row: GpuSample | None = None) -> None:
        self.words.take("n1", (row or sample("g0", FENCE), sample("g1", None)))

    def release(self) -> ReleaseOutcome:
        said = self.words.release("g0", "n1")
        assert said is not None
        return said.outcome

    def outcome(self) -> tuple[ReleaseOutcome, str]:
        said = self.words.released("g0")
        assert said is not None
        return said.outcome, said.detail


SAID = (GpuRelease(device_id="g0", code="xid-48", since=SINCE),)


def test_a_word_names_the_fence_and_is_said_until_it_lapses_or_the_fence_is_gone() -> None:
    desk = Desk()
    desk.hear()
    assert desk.words.release("g1", "n1") is None, "it is not fenced"
    assert desk.words.release("asic", None) is None
    assert desk.release() is ReleaseOutcome.ASKED
    assert desk.words.words("n1") == SAID
    assert desk.words.words("n2") == ()
    desk.now_s = RELEASE_LAPSES_S - 0.001
    desk.hear()
    assert (desk.words.words("n1"), desk.outcome()[0]) == (SAID, ReleaseOutcome.ASKED)
    desk.now_s = RELEASE_LAPSES_S
    assert desk.words.words("n1") == ()
    assert desk.outcome()[0] is ReleaseOutcome.REFUSED, "its node is there, and the fence too"
    assert desk.release() is ReleaseOutcome.ASKED
    desk.hear(sample("g0", None))
    assert desk.words.words("n1") == ()
    assert desk.outcome() == (ReleaseOutcome.DONE, "xid-48 is released")


def test_a_fence_that_stands_is_not_released() -> None:
    desk = Desk()
    desk.hear(sample("g0", STANDING))
    assert desk.release() is ReleaseOutcome.REFUSED
    assert desk.outcome()[1] == f"still seen: {STANDING.stands}"
    assert desk.words.words("n1") == ()


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (sample("g0", STANDING), f"seen again: {STANDING.stands}"),
        (sample("g0", structs.replace(FENCE, code="xid-48+ecc")), "fenced anew, by xid-48+ecc"),
        (structs.replace(sample("g0", FENCE), unreleased="log_failed: disk"), "log_failed: disk"),
    ],
)
def test_what_its_node_or_host_says_against_it_is_told_and_final(told: GpuSample, why: str) -> None:
    desk = Desk()
    desk.hear()
    desk.release()
    desk.hear(told)
    outcome, detail = desk.outcome()
    assert (outcome, why in detail) == (ReleaseOutcome.REFUSED, True)
    assert desk.words.words("n1") == ()
    desk.hear(sample("g0", None))
    assert desk.outcome() == (outcome, detail)


@pytest.mark.parametrize("how", ["lost", "silent", "never heard"])
def test_of_a_node_that_is_away_nothing_is_asked_then_or_later(how: str) -> None:
    desk = Desk()
    if how != "never heard":
        desk.hear()
    if how == "lost":
        desk.words.lose("n1")
    desk.now_s = SILENT_S + 0.1
    said = desk.words.release("g0", "n1")
    assert said is not None
    assert said.outcome is ReleaseOutcome.AWAY
    fenced = "not known whether it is fenced" if how == "never heard" else "still xid-48"
    assert said.detail == f"its node n1 is away: nothing was done there, {fenced}; ask again later"
    desk.hear()
    assert desk.words.words("n1") == ()


def test_of_a_node_that_goes_away_after_it_was_asked_it_is_not_known() -> None:
    desk = Desk()
    desk.hear()
    desk.release()
    desk.words.lose("n1")
    assert desk.outcome()[0] is ReleaseOutcome.ASKED, "it may be back in time"
    desk.now_s = RELEASE_LAPSES_S
    assert desk.outcome()[0] is ReleaseOutcome.UNKNOWN


def test_a_gpu_of_which_nothing_is_told_just_now_is_not_released() -> None:
    desk = Desk()
    desk.hear()
    desk.release()
    desk.hear(GpuSample(device_id="g0", healthy=False))  # its host does not answer
    assert desk.outcome()[0] is ReleaseOutcome.ASKED
    desk.now_s = RELEASE_LAPSES_S
    desk.hear(GpuSample(device_id="g0", healthy=False))
    assert desk.outcome()[0] is ReleaseOutcome.UNKNOWN


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
        said = await agent.undrain(device_id)
        assert said is not None
        assert said.outcome is ReleaseOutcome.REFUSED
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

        async def ask(
            method: str, path: str, body: bytes = b"", pattern: str = "*"
        ) -> dict[str, str]:
            answer = await api.handle(
                LocalRequest(
                    method=method,
                    path=path,
                    query={"pattern": pattern},
                    body=body,
                    peer=Peer(pid=1, uid=1_000, gid=1_000),
                    writable=True,
                )
            )
            assert isinstance(answer, Acted)
            assert answer.devices == ("g0", "g1")
            return {one.device_id: one.outcome.value for one in answer.releases}

        asked = await ask("POST", "/v1/undrain", body=b'{"pattern":"g*"}')
        assert asked == {"g0": "refused", "g1": "asked"}
        assert [one.hold for one in agent.devices()] == ["none", "none"]
        assert [one.device_id for one in agent.release("n0")] == ["g1"]
        rows = (sample("g0", STANDING), sample("g1", None))
        await agent.on_facts("n0", NodeFacts(at=SINCE, samples=rows, devices=()))
        told = await ask("GET", "/v1/releases", pattern="g*")
        assert told == {"g0": "refused", "g1": "done"}
        await agent.on_lost("n0")
        asked = await ask("POST", "/v1/undrain", body=b'{"pattern":"g*"}')
        assert asked == {"g0": "away", "g1": "away"}

    play(world, script)
