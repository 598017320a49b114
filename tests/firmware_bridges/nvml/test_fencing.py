"""The overseer in every order of hangs: who is silent, who is left out, when a child is started."""

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from firmware_bridges.nvml.fencing import Overseer
from firmware_bridges.nvml.samples import (
    Beat,
    Failed,
    FaultKind,
    GpuFault,
    GpuInfo,
    GpuSample,
    Hello,
    Worker,
)
from firmware_bridges.nvml.states import Bounds, Effect, GpuState, Kill, Start

NS = 1_000_000_000
BOUNDS = Bounds()
QUICK = Bounds(start_s=5.0, retry_s_max=5.0, probe_s=5.0, probe_s_max=20.0)


def sample(name: str, at_s: float, index: int = 0) -> GpuSample:
    at_ns = round(at_s * NS)
    return GpuSample(info=GpuInfo(uuid=name, index=index), began_ns=at_ns, at_ns=at_ns)


class Host:
    """A host of cards and an overseer; time goes by in steps of 0.1 s.

    A card hangs for every child that reads it; if its call holds the lock, so do the cards of all
    children, for as long as a child lives that reads it.
    """

    def __init__(self, *names: str, bounds: Bounds = BOUNDS) -> None:
        self.names = names
        self.overseer = Overseer(bounds)
        self.now_s = 100.0
        self.hanging: dict[str, bool] = {}
        # lost for the children up to this number
        self.lost: dict[str, int] = {}
        self.mute = False
        self.dying = 0
        self.running: dict[int, Start] = {}
        self.log: list[tuple[float, Effect]] = []
        self._since_s: dict[tuple[int, str], float] = {}

    @property
    def ns(self) -> int:
        return round(self.now_s * NS)

    def hang(self, name: str, *, lock: bool = False) -> None:
        self.hanging[name] = lock

    def states(self) -> dict[str, GpuState]:
        return {view.card: view.state for view in self.overseer.view(self.ns)}

    def starts(self, *, events: bool) -> list[Start]:
        return [e for _, e in self.log if isinstance(e, Start) and e.events == events]

    def kills(self) -> list[Kill]:
        return [e for _, e in self.log if isinstance(e, Kill)]

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now_s = round(self.now_s + 0.1, 1)
            if not self.mute:
                self._note_hangs()
                for number in self.running:
                    self._speak(number)
            self.act()

    def act(self) -> None:
        for effect in self.overseer.step(self.ns, self.dying):
            self.log.append((self.now_s, effect))
            if isinstance(effect, Start):
                self.running[effect.child] = effect
            else:
                self.running.pop(effect.child, None)

    def _cards(self, number: int) -> tuple[str, ...]:
        return self.running[number].cards or self.names

    def _note_hangs(self) -> None:
        """Note since when each card of each child hangs; those that wait began a little later."""
        read = [(number, name) for number in self.running for name in self._cards(number)]
        locked = any(self.hanging.get(name, False) for _, name in read)
        since_s = self._since_s
        for number, name in read:
            if name in self.hanging:
                since_s.setdefault((number, name), self.now_s)
            elif locked:
                since_s.setdefault((number, name), self.now_s + 0.01)
            else:
                since_s.pop((number, name), None)

    def _speak(self, number: int) -> None:
        heard = self.overseer.heard
        heard(number, Hello(pid=number, driver=None, gpus=len(self.names)), self.ns)
        workers = []
        for place, name in enumerate(self._cards(number)):
            since_s = self._since_s.get((number, name))
            if number <= self.lost.get(name, 0):
                heard(number, GpuFault(index=place, uuid=name, at_ns=self.ns, kind=FaultKind.LOST),
                      self.ns)  # fmt: skip
                workers.append(Worker(place, name, None, None))
            elif since_s is None:
                heard(number, sample(name, self.now_s, self.names.index(name)), self.ns)
                workers.append(Worker(place, name, None, None))
            else:
                workers.append(Worker(place, name, "nvmlX", round(since_s * NS)))
        heard(number, Beat(seq=0, at_ns=self.ns, workers=tuple(workers)), self.ns)


def test_one_child_reads_all_cards() -> None:
    host = Host("a", "b", "c")
    host.pass_time(30)
    assert host.log[0][1] == Start(1, None, events=True)
    assert len(host.log) == 1
    assert set(host.states().values()) == {GpuState.LIVE}


def test_the_card_that_hangs_is_silent_within_a_second_and_the_others_go_on() -> None:
    host = Host("a", "b", "c")
    host.pass_time(5)
    host.hang("b")
    host.pass_time(1.1)
    assert host.states() == {"a": GpuState.LIVE, "b": GpuState.SILENT, "c": GpuState.LIVE}
    assert [view.hangs for view in host.overseer.view(host.ns)] == [False, True, False]
    host.pass_time(60)
    # the others' child was not touched
    assert host.starts(events=True) == [Start(1, None, events=True)]
    assert host.states()["a"] is GpuState.LIVE


def test_a_card_that_hangs_is_probed_alone_at_growing_intervals() -> None:
    host = Host("a", "b")
    host.pass_time(5)
    host.hang("b")
    host.pass_time(1_200)
    probes = [at for at, e in host.log if isinstance(e, Start) and not e.events]
    assert all(start.cards == ("b",) for start in host.starts(events=False))
    gaps = [round(after - before) for before, after in pairwise(probes)]
    # each takes 15 s; between two of them lie 10, 20, ... and at most 300 s
    assert gaps == [25, 35, 55, 95, 175, 315, 315]


def test_a_card_whose_call_returns_is_live_again_by_itself() -> None:
    host = Host("a", "b")
    host.pass_time(5)
    host.hang("b")
    host.pass_time(3)
    del host.hanging["b"]
    host.pass_time(1)
    assert host.states()["b"] is GpuState.LIVE
    host.pass_time(60)
    assert host.kills() == []


def test_a_probe_that_hears_the_card_has_all_cards_read_anew() -> None:
    host = Host("a", "b")
    host.pass_time(5)
    host.hang("b", lock=True)
    host.pass_time(10)
    del host.hanging["b"]
    host.pass_time(60)
    assert host.starts(events=True)[-1].cards is None
    assert set(host.states().values()) == {GpuState.LIVE}
    last = len(host.log)
    host.pass_time(120)
    assert len(host.log) == last


def test_a_card_that_holds_the_lock_is_left_out_and_the_others_come_back() -> None:
    host = Host("a", "b", "c")
    host.pass_time(5)
    host.hang("b", lock=True)
    host.pass_time(1.2)
    assert set(host.states().values()) == {GpuState.SILENT}
    host.pass_time(2)
    assert host.starts(events=True)[-1].cards == ("a", "c")
    assert host.states() == {"a": GpuState.LIVE, "b": GpuState.SILENT, "c": GpuState.LIVE}


def test_a_probe_that_takes_the_lock_again_costs_the_others_little() -> None:
    host = Host("a", "b", "c")
    host.pass_time(5)
    host.hang("b", lock=True)
    host.pass_time(5)
    mains = len(host.starts(events=True))
    silent_s = 0.0
    for _ in range(6_000):
        host.pass_time(0.1)
        silent_s += 0.1 * (host.states()["a"] is GpuState.SILENT)
    # probes at 5, 10, 20, ... 300 s: six in ten minutes, and the main child was never touched
    assert len(host.starts(events=True)) == mains
    assert {kill.reason for kill in host.kills()[1:]} == {"it makes other cards hang"}
    assert 6 <= len(host.starts(events=False)) <= 8
    assert silent_s <= 0.2 * len(host.starts(events=False))


def test_a_card_left_out_by_mistake_comes_back() -> None:
    host = Host("a", "b", "c")
    host.pass_time(5)
    host.hang("b", lock=True)
    # the call of one that waits began before
    host._since_s[1, "c"] = host.now_s
    host.pass_time(4)
    assert "c" not in (host.starts(events=True)[1].cards or ())
    host.pass_time(30)
    assert host.states() == {"a": GpuState.LIVE, "b": GpuState.SILENT, "c": GpuState.LIVE}


def test_the_only_card_that_hangs_is_probed_and_nothing_else_is_started() -> None:
    host = Host("a")
    host.pass_time(5)
    host.hang("a")
    host.pass_time(30)
    assert host.states() == {"a": GpuState.SILENT}
    assert len(host.starts(events=True)) == 1
    del host.hanging["a"]
    host.pass_time(60)
    assert host.states() == {"a": GpuState.LIVE}
    assert host.starts(events=True)[-1].cards is None


def test_a_child_without_a_word_is_killed_and_started_at_growing_intervals() -> None:
    host = Host("a")
    host.mute = True
    host.pass_time(400)
    starts = [at for at, e in host.log if isinstance(e, Start)]
    gaps = [round(after - before, 1) for before, after in pairwise(starts)]
    # each has 15 s to load the library; the first is replaced at once
    assert gaps[:4] == [15.1, 15.6, 16.1, 17.1]
    assert max(gaps) <= 15.1 + BOUNDS.retry_s_max


def test_a_child_that_stops_beating_is_replaced() -> None:
    host = Host("a")
    host.pass_time(5)
    host.mute = True
    host.pass_time(2.2)
    assert [kill.reason for kill in host.kills()] == ["no beat"]
    host.mute = False
    host.pass_time(2)
    assert host.states() == {"a": GpuState.LIVE}


def test_a_slow_driver_is_given_time_to_set_its_cards_up() -> None:
    host = Host("a", "b")
    host.hang("a")
    host.hang("b")
    host.pass_time(12)
    assert host.kills() == []
    host.hanging.clear()
    host.pass_time(1)
    assert set(host.states().values()) == {GpuState.LIVE}


def test_no_child_is_started_while_too_many_killed_ones_are_still_there() -> None:
    host = Host("a")
    host.dying = BOUNDS.dying_max
    host.pass_time(60)
    assert host.log == []
    host.dying -= 1
    host.pass_time(1)
    assert host.starts(events=True) == [Start(1, None, events=True)]


def test_messages_of_a_child_given_up_are_not_heard() -> None:
    host = Host("a")
    host.pass_time(1)
    host.overseer.ended(1, host.ns)
    host.overseer.heard(1, sample("ghost", host.now_s), host.ns)
    assert "ghost" not in host.states()


def test_a_driver_that_is_not_there_is_told_and_tried_again() -> None:
    overseer = Overseer(BOUNDS)
    overseer.step(0, 0)
    overseer.heard(1, Failed(code=12, detail="no library"), 1)
    overseer.ended(1, 2)
    assert overseer.problem == "no library"
    assert overseer.step(3, 0) == (Start(2, None, events=True),)
    overseer.ended(2, 4)
    assert overseer.step(5, 0) == ()


def test_a_lost_card_is_lost_and_not_silent() -> None:
    host = Host("a", "b")
    host.pass_time(2)
    fault = GpuFault(index=1, uuid="b", at_ns=host.ns + 1, kind=FaultKind.LOST, detail="gone")
    host.overseer.heard(1, fault, host.ns)
    assert host.states() == {"a": GpuState.LIVE, "b": GpuState.LOST}
    view = host.overseer.view(host.ns)[1]
    # its last sample stays known
    assert view.sample is not None
    assert view.detail == "gone"


def test_a_lost_card_that_only_a_later_process_sees_again_comes_back() -> None:
    host = Host("a", "b")
    host.pass_time(5)
    host.lost["b"] = 1_000
    host.pass_time(600)
    # nobody else was disturbed, and the probes are few
    assert host.starts(events=True) == [Start(1, None, events=True)]
    assert host.states() == {"a": GpuState.LIVE, "b": GpuState.LOST}
    assert 0 < len(host.starts(events=False)) < 10
    host.lost["b"] = 1
    host.pass_time(310)
    assert host.states() == {"a": GpuState.LIVE, "b": GpuState.LIVE}
    assert len(host.starts(events=True)) == 2
    last = len(host.log)
    host.pass_time(600)
    assert len(host.log) == last


def test_a_lost_card_that_comes_back_to_the_same_process_starts_nothing_anew() -> None:
    host = Host("a", "b")
    host.pass_time(5)
    host.lost["b"] = 1_000
    host.pass_time(3)
    del host.lost["b"]
    host.pass_time(600)
    assert host.log == [(100.1, Start(1, None, events=True))]


def test_a_card_without_a_name_is_known_by_its_place() -> None:
    host = Host("a", "b")
    host.pass_time(0.1)
    stuck = Worker(1, None, "nvmlDeviceGetHandleByIndex", 0)
    host.overseer.heard(1, Hello(pid=1, driver=None, gpus=2), host.ns)
    host.overseer.heard(1, Beat(seq=0, at_ns=host.ns, workers=(stuck,)), host.ns)
    assert host.states() == {"index:1": GpuState.SILENT}
    host.overseer.heard(1, sample("b", host.now_s, index=1), host.ns)
    assert host.states() == {"b": GpuState.LIVE}


def test_a_wait_for_events_that_hangs_is_replaced_without_the_cards_that_hang() -> None:
    host = Host("a", "b")
    host.pass_time(5)
    host.hang("b")
    host.pass_time(2)
    workers = (Worker(0, "a", None, None), Worker(1, "b", "nvmlX", host.ns - 2 * NS))
    beat = Beat(seq=9, at_ns=host.ns, workers=workers, events_call_ns=host.ns - 4 * NS)
    host.overseer.heard(1, beat, host.ns)
    effects = host.overseer.step(host.ns, 0)
    why = "the wait for events hangs, b is left out"
    assert effects == (Kill(1, why), Start(2, ("a",), events=True))


def test_of_cards_that_all_hang_only_the_first_is_left_out() -> None:
    host = Host("a", "b", "c")
    host.pass_time(5)
    host.hang("b", lock=True)
    host.pass_time(1.5)
    workers = tuple(
        Worker(place, name, "nvmlX", host.ns - since_s * NS)
        for place, (name, since_s) in enumerate((("a", 2), ("b", 3), ("c", 2)))
    )
    beat = Beat(seq=9, at_ns=host.ns, workers=workers, events_call_ns=host.ns - 3 * NS)
    host.overseer.heard(1, beat, host.ns)
    assert host.overseer.step(host.ns, 0)[1] == Start(2, ("a", "c"), events=True)


def test_cards_that_answer_again_together_cost_one_new_child() -> None:
    host = Host("a", "b", "c", "d")
    host.pass_time(5)
    for name in "abc":
        host.hang(name)
    host.pass_time(3)
    workers = tuple(Worker(place, name, "nvmlX", 0) for place, name in enumerate("abc"))
    beat = Beat(seq=9, at_ns=host.ns, workers=workers, events_call_ns=host.ns - 3 * NS)
    host.overseer.heard(1, beat, host.ns)
    host.act()
    assert host.starts(events=True)[-1].cards == ("d",)
    host.hanging.clear()
    mains = len(host.starts(events=True))
    host.pass_time(20)
    assert host.starts(events=True)[mains:] == [Start(6, None, events=True)]
    assert set(host.states().values()) == {GpuState.LIVE}


class Hosts(RuleBasedStateMachine):
    """Any order of hangs, locks, silence and recovery."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Host("a", "b", "c", "d", bounds=QUICK)

    @rule(name=st.sampled_from("abcd"), lock=st.booleans())
    def hang(self, name: str, lock: bool) -> None:  # noqa: FBT001 - drawn
        self.host.hang(name, lock=lock)

    @rule(name=st.sampled_from("abcd"))
    def recover(self, name: str) -> None:
        self.host.hanging.pop(name, None)

    @rule(mute=st.booleans())
    def fall_silent(self, mute: bool) -> None:  # noqa: FBT001 - drawn
        self.host.mute = mute

    @rule(seconds=st.sampled_from((0.3, 1.5, 4.0, 20.0)))
    def pass_time(self, seconds: float) -> None:
        self.host.pass_time(seconds)

    @rule()
    def lose_children(self) -> None:
        for number in list(self.host.running):
            self.host.overseer.ended(number, self.host.ns)
            del self.host.running[number]

    @invariant()
    def at_most_one_child_reads_all_and_one_probes(self) -> None:
        assert sum(start.events for start in self.host.running.values()) <= 1
        assert sum(not start.events for start in self.host.running.values()) <= 1

    @invariant()
    def a_live_card_has_a_fresh_row(self) -> None:
        for view in self.host.overseer.view(self.host.ns):
            if view.state is GpuState.LIVE:
                assert view.age_s is not None
                assert view.age_s <= QUICK.stale_s

    def teardown(self) -> None:
        # whatever happened, a host that is well again is read again
        self.host.hanging.clear()
        self.host.mute = False
        self.host.pass_time(QUICK.probe_s_max + QUICK.retry_s_max + QUICK.start_s + 10)
        states = self.host.states()
        assert states == dict.fromkeys("abcd", GpuState.LIVE)


TestHosts = Hosts.TestCase
TestHosts.settings = settings(max_examples=15, stateful_step_count=10)
