"""Engines by the kind that a config names, with what this machine gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.clock import SystemClock
from edge_agent.workloads.engine import Engine, Strategy
from edge_agent.workloads.engines.catalogue import EngineKind, engine_here
from edge_agent.workloads.engines.evidence import UnknownMemory
from edge_agent.workloads.engines.group import GroupProgram
from edge_agent.workloads.engines.program import ForeignProgram, ProgramWork
from edge_agent.workloads.engines.unit import UnitProgram
from edge_agent.workloads.errors import DriverRefusedError
from tests.edge_agent.workloads.engines.rigs import spec_of

URL = "http://127.0.0.1:1"


def _engine(kind: EngineKind, folder: Path, **fields: object) -> Engine:
    spec = spec_of("thing", url=URL, **fields)
    return engine_here(kind, spec, folder=folder, clock=SystemClock(), memory=UnknownMemory())


@pytest.mark.parametrize("kind", EngineKind)
def test_every_kind_has_a_driver_and_restarts_only_what_is_ours(
    kind: EngineKind, tmp_path: Path
) -> None:
    ours = _engine(kind, tmp_path, argv=("sleep", "60")).capabilities()
    assert Strategy.RESTART in ours.strategies
    assert ours.survives_agent
    assert ours.keeps_state == (kind is EngineKind.REFERENCE_MINER)
    if kind is not EngineKind.PROCESS:
        foreign = _engine(kind, tmp_path).capabilities()
        assert Strategy.RESTART not in foreign.strategies


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (EngineKind.VLLM, "VLLM_API_KEY"),
        (EngineKind.REFERENCE_MINER, "HCP_REFERENCE_TOKEN"),
        (EngineKind.REFERENCE_SERVER, "HCP_REFERENCE_TOKEN"),
    ],
)
def test_a_program_of_ours_is_told_its_token_by_its_environment(
    kind: EngineKind, name: str, tmp_path: Path
) -> None:
    engine = _engine(kind, tmp_path, argv=("sleep", "60"), token="secret")
    assert dict(engine.spec.environment) == {name: "secret"}
    assert not any("secret" in word for word in engine.spec.argv)
    assert _engine(kind, tmp_path, token="secret").spec.environment == ()


def test_a_miner_takes_the_processors_that_others_leave(tmp_path: Path) -> None:
    for kind, weight in ((EngineKind.XMRIG, 10), (EngineKind.OPENAI, 100)):
        program = _engine(kind, tmp_path, argv=("sleep", "60"))._program  # type: ignore[attr-defined]
        assert isinstance(program, GroupProgram | UnitProgram)
        given = program._weight if isinstance(program, GroupProgram) else program._limits.weight
        assert given == weight


def test_processor_time_is_evidence_only_of_what_works_on_processors(tmp_path: Path) -> None:
    for vram_mib, counts in ((0, True), (8_000, False)):
        engine = _engine(EngineKind.XMRIG, tmp_path, argv=("sleep", "60"), vram_mib=vram_mib)
        assert isinstance(engine._ports.work, ProgramWork) is counts  # type: ignore[attr-defined]


def test_an_address_on_another_machine_is_refused(tmp_path: Path) -> None:
    spec = spec_of("thing", url="http://192.0.2.1:8000")
    with pytest.raises(DriverRefusedError):
        engine_here(
            EngineKind.VLLM, spec, folder=tmp_path, clock=SystemClock(), memory=UnknownMemory()
        )
    assert isinstance(_engine(EngineKind.VLLM, tmp_path)._program, ForeignProgram)  # type: ignore[attr-defined]
