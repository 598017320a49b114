"""What a node and its host say to each other, line by line; the same as ``hcp-sim gpu`` says."""

from msgspec import Struct

from edge_agent.workloads.ports import HostSample, Meter, Ready, Wish
from protocol.node import LeaseKeys
from protocol.units import Count, Ident


class Act(Struct, frozen=True, kw_only=True):
    """An act of a GPU; which fields are needed depends on ``op``."""

    id: int
    op: str
    gpu: str = ""
    instance_id: Ident | None = None
    lease_id: Ident | None = None
    attempt: Count = 0
    run_s: Count | None = None
    prompt: str = ""
    on: bool | None = None
    open: bool | None = None


class Request(Act, frozen=True, kw_only=True):
    """One line of a node; an order has acts, and may go on ``after`` another of its connection."""

    since_minute: int | None = None
    leases: tuple[LeaseKeys, ...] | None = None
    wishes: tuple[Wish, ...] | None = None
    for_s: float | None = None
    acts: tuple[Act, ...] | None = None
    after: int | None = None


class Refusal(Struct, frozen=True):
    """The act did not happen, or it is not known; ``id`` is None where none was read."""

    id: int | None
    error: str
    detail: str


class Done(Struct, frozen=True):
    """It is done."""

    id: int
    engine_ns: int = 0


class MovedBy(Struct, frozen=True):
    """An engine came onto its GPU, or left it."""

    id: int
    strategy: str
    moved_mib: int
    engine_ns: int = 0


class Hello(Struct, frozen=True):
    """Who the host is."""

    id: int
    host_id: str
    process_id: str
    boot_id: str
    gpus: object
    public_url: str | None


class Samples(Struct, frozen=True):
    """The facts of every GPU."""

    id: int
    gpus: tuple[HostSample, ...]


class Hashes(Struct, frozen=True):
    """A miner after an act."""

    id: int
    hashes: int
    saved: str = ""
    engine_ns: int = 0


class Output(Struct, frozen=True):
    """What an engine said."""

    id: int
    output: str
    expected_sha256: str | None
    engine_ns: int = 0


class Gate(Struct, frozen=True):
    """A gate after an act."""

    id: int
    at_ns: int
    served_ns: int
    energy_mj: int
    open: bool
    wall_anchor_ns: int
    strategy: str = ""
    moved_mib: int = 0
    engine_ns: int = 0


class Readiness(Struct, frozen=True):
    """What became of the wishes."""

    id: int
    ready: tuple[Ready, ...]


class Page(Struct, frozen=True):
    """Every meter at one instant."""

    id: int
    now_ns: int
    wall_anchor_ns: int
    meters: tuple[Meter, ...]


# Answers to acts tell what of the time was the engines' own.
OfActs = Done | MovedBy | Hashes | Output | Gate
