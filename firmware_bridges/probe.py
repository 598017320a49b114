"""`bridge test` and `bridge record`: look at machines on the network without any configuration."""

import argparse
import asyncio
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from firmware_bridges.base import MinerAddress
from firmware_bridges.detect import Detected, Prober
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.http.digest import Credentials
from firmware_bridges.recording import recording_of
from firmware_bridges.report import VERSION, MinerReport, lines_of, report_of
from firmware_bridges.targets import TargetError, addresses_of

EXIT_FINE: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2
AT_ONCE: Final = 64
IN_FLIGHT: Final = 256


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands `test` and `record`."""
    test = commands.add_parser("test", help="probe machines and print what they are and do")
    test.add_argument("target", nargs="+", help="10.1.0.5, 10.1.0.5-40, 10.1.0.0/20")
    test.add_argument("--kind", default="auto", choices=["auto", *FAMILY_OF], metavar="KIND",
                      help="firmware family, or auto (default)")  # fmt: skip
    test.add_argument("--json", action="store_true", help="machine-readable, with version v")
    _add_access(test)
    test.set_defaults(run=_test)
    record = commands.add_parser("record", help="write a machine's answers, secrets taken out")
    record.add_argument("target", help="IP address")
    record.add_argument("file", type=argparse.FileType("xb"), help="new file (asic-fixture/1)")
    _add_access(record)
    record.set_defaults(run=_record)


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, help="instead of 4028")
    parser.add_argument("--web-port", type=int, help="instead of the web server's")
    parser.add_argument("--v3-port", type=int, help="instead of 4433")
    parser.add_argument("--user", help="login of the web pages (default: the factory's)")
    parser.add_argument(
        "--password-file", type=argparse.FileType("r"), help="file with its password"
    )


def _prober(options: argparse.Namespace) -> Prober:
    credentials = None
    if options.password_file is not None:
        with options.password_file as file:
            credentials = Credentials(options.user or "root", file.read(4_096).strip())
    return Prober(
        in_flight=asyncio.Semaphore(IN_FLIGHT),
        client_nonce=lambda: secrets.token_hex(8),
        credentials=credentials,
    )


def _addresses(options: argparse.Namespace, words: Sequence[str]) -> list[MinerAddress]:
    return [
        MinerAddress(
            host=host,
            cgminer_port=options.port,
            web_port=options.web_port,
            v3_port=options.v3_port,
        )
        for host in addresses_of(words)
    ]


def _test(options: argparse.Namespace) -> int:
    try:
        addresses = _addresses(options, options.target)
    except (TargetError, ValueError) as exc:
        sys.stderr.write(f"{exc}\n")
        return EXIT_USAGE
    found = asyncio.run(_probe_all(_prober(options), addresses, options.kind))
    if options.json:
        rows = [
            {"address": address.host, "miner": None if one is None else report_of(one.decoded)}
            for address, one in zip(addresses, found, strict=True)
        ]
        sys.stdout.write(msgspec.json.encode({"v": VERSION, "miners": rows}).decode() + "\n")
    else:
        _print(addresses, found)
    return EXIT_FINE if any(one is not None for one in found) else EXIT_PROBLEM


def _print(addresses: list[MinerAddress], found: list[Detected | None]) -> None:
    """Print one machine in full, several as a line each; silent addresses are counted."""
    met = [(a.host, one) for a, one in zip(addresses, found, strict=True) if one is not None]
    if len(addresses) == 1 and met:
        lines = lines_of(report_of(met[0][1].decoded))
    else:
        lines = [_line(host, report_of(one.decoded)) for host, one in met]
    silent = len(addresses) - len(met)
    if silent:
        lines.append(f"{silent} of {len(addresses)} addresses do not answer as a miner")
    sys.stdout.write("\n".join(lines) + "\n")


def _line(host: str, report: MinerReport) -> str:
    rate = "-" if report.hashrate_ths is None else f"{report.hashrate_ths:.1f} TH/s"
    power = "-" if report.power_w is None else f"{report.power_w:.0f} W"
    return (
        f"{host:<16} {report.family:<16} {report.model or 'unknown model':<24} "
        f"{report.state or 'unknown':<12} {rate:>12} {power:>8}  {report.fw_version or ''}"
    )


async def _probe_all(
    prober: Prober, addresses: list[MinerAddress], kind: str
) -> list[Detected | None]:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(address: MinerAddress) -> Detected | None:
        async with at_once:
            family = FAMILY_OF.get(kind)
            if family is None:
                seen = await prober.detect(address)
                family = None if seen is None else seen.decoded.family
            return None if family is None else await prober.read(address, family)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(address), name=f"probe-{address.host}")
                 for address in addresses]  # fmt: skip
    return [task.result() for task in tasks]


def _record(options: argparse.Namespace) -> int:
    try:
        address = _addresses(options, [options.target])[0]
    except (TargetError, ValueError) as exc:
        sys.stderr.write(f"{exc}\n")
        return EXIT_USAGE
    found = asyncio.run(_probe_all(_prober(options), [address], "auto"))[0]
    with options.file as file:
        if found is None:
            sys.stderr.write(f"{address.host}: nothing answers as a miner\n")
            return EXIT_PROBLEM
        now = datetime.now(UTC).isoformat(timespec="seconds")
        model = (found.reading.model or found.decoded.family.name).lower().replace(" ", "-")
        file.write(recording_of(found.exchanges, name=model, made_at=now))
    sys.stdout.write(f"{len(found.exchanges)} answers of {model} written\n")
    return EXIT_FINE
