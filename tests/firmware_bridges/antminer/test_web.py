"""The web client and the bridge against a scripted miner with digest authentication."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from firmware_bridges.antminer.control import AntminerControl, judge_write
from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.base import ReadDetail, WorkMode, WriteState
from firmware_bridges.bridge import MinerBridge
from firmware_bridges.commands import Locate, Reboot, Sleep
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeGarbledError,
    BridgeTimeoutError,
    BridgeUnsupportedError,
)
from firmware_bridges.family import ControlContext
from firmware_bridges.http.digest import Credentials
from firmware_bridges.link import MinerLink
from firmware_bridges.query import Query, Wire, page
from firmware_bridges.transport import Deadlines
from tests.firmware_bridges.wire import Handler, serving

CONF = {"pools": [{"url": "a", "user": "u", "pass": "p"}], "bitmain-work-mode": "0"}
OK = {"stats": "success", "code": "M000", "msg": "OK!"}
QUICK = Deadlines(connect_s=0.5, answer_s=0.3)


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


class Miner:
    """Serves pages behind digest authentication; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.posted: list[object] = []
        self.nonce = "n1"
        self.counts: list[int] = []
        self.pages: dict[str, Callable[[bytes], bytes]] = {
            "get_miner_conf.cgi": lambda _: json.dumps(CONF).encode(),
            "set_miner_conf.cgi": lambda _: json.dumps(OK).encode(),
            "blink.cgi": lambda _: b'{"code":"B000"}',
        }
        self.status = 200
        self.silent = frozenset[str]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        name = path.removeprefix("/cgi-bin/")
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length.group(1))) if length else b""
        status = self.status if self.authorized(head, method, path) else 401
        self.asked.append((method, name, status))
        if status == 200 and method == "POST":
            self.posted.append(json.loads(body or b"null"))
        if status == 200 and name in self.silent:
            await asyncio.sleep(10)
        page = self.pages.get(name)
        if page is None and status == 200:
            status = 404
        text = page(body) if page is not None and status == 200 else b"{}"
        challenge = f'WWW-Authenticate: Digest realm="r", nonce="{self.nonce}", qop="auth"\r\n'
        head = f"HTTP/1.1 {status} x\r\n{challenge}Content-Length: {len(text)}\r\n\r\n"
        writer.write(head.encode() + text)
        await writer.drain()

    def authorized(self, head: str, method: str, path: str) -> bool:
        found = re.search(r"authorization: digest (.*)\r\n", head, re.IGNORECASE)
        if found is None:
            return False
        pairs = re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', found.group(1))
        given = {key: quoted or bare for key, quoted, bare in pairs}
        self.counts.append(int(given["nc"], 16))
        middle = f"{self.nonce}:{given['nc']}:{given['cnonce']}:auth"
        expected = md5(f"{md5('root:r:root')}:{middle}:{md5(f'{method}:{path}')}")
        return bool(given["response"] == expected)


class Quick:
    """A link whose every exchange has a short deadline."""

    def __init__(self, ports: dict[Wire, int], password: str = "root") -> None:
        self.link = MinerLink(
            "127.0.0.1",
            ports,
            in_flight=asyncio.Semaphore(4),
            client_nonce=lambda: "c0ffee",
            auth=ANTMINER_STOCK.auth,
            credentials=Credentials("root", password),
        )

    async def ask(self, query: Query, deadlines: Deadlines | None = None) -> bytes:
        return await self.link.ask(query, QUICK)


def control_over(link: Quick) -> AntminerControl:
    return AntminerControl(
        ControlContext(
            asker=link,
            credentials=None,
            address="127.0.0.1",
            wall_s=lambda: 0.0,
            random_text=lambda: "c0ffee",
        )
    )


@asynccontextmanager
async def control_of(miner: Miner, password: str = "root") -> AsyncIterator[AntminerControl]:
    async with serving(miner.serve) as port:
        yield control_over(Quick({Wire.HTTP: port}, password))


async def test_the_nonce_is_reused_and_counted() -> None:
    miner = Miner()
    async with control_of(miner) as control:
        for _ in range(3):
            assert await control.mode() is WorkMode.NORMAL
    assert [status for _, _, status in miner.asked] == [401, 200, 200, 200]
    assert miner.counts == [1, 2, 3]


async def test_an_expired_nonce_costs_one_more_request() -> None:
    miner = Miner()
    async with control_of(miner) as control:
        await control.mode()
        miner.nonce = "n2"
        await control.mode()
    assert [status for _, _, status in miner.asked] == [401, 200, 401, 200]


async def test_a_wrong_password_is_asked_twice_and_named() -> None:
    miner = Miner()
    async with control_of(miner, password="wrong") as control:
        with pytest.raises(BridgeAuthError):
            await control.mode()
    assert len(miner.asked) == 2


async def test_sleep_writes_the_whole_configuration_with_both_keys() -> None:
    miner = Miner()
    async with control_of(miner) as control:
        result = await control.write(Sleep())
    assert result.state is WriteState.ACKNOWLEDGED
    assert result.code == "M000"
    assert miner.posted == [{"pools": CONF["pools"], "miner-mode": 1, "bitmain-work-mode": 1}]


async def test_a_write_without_an_answer_is_unknown() -> None:
    miner = Miner()
    miner.silent = frozenset({"set_miner_conf.cgi"})
    async with control_of(miner) as control:
        result = await control.write(Sleep())
    assert (result.state, result.code) == (WriteState.UNKNOWN, "bridge.timeout")
    assert len(miner.posted) == 1, "and it is not sent again"


async def test_a_write_that_never_left_is_refused() -> None:
    miner = Miner()
    async with serving(miner.serve) as port:
        control = control_over(Quick({Wire.HTTP: port}))
        await control.mode()
    with pytest.raises(BridgeError) as caught:
        await control.write(Sleep())
    assert caught.value.sent is False, "the configuration could not be read: nothing was written"


async def test_a_cut_configuration_is_not_written_back() -> None:
    miner = Miner()
    miner.pages["get_miner_conf.cgi"] = lambda _: b'{"pools":[{"url":"a"'
    async with control_of(miner) as control:
        with pytest.raises(BridgeGarbledError, match="get_miner_conf"):
            await control.write(Sleep())
    assert miner.posted == []


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, BridgeUnsupportedError), (403, BridgeAuthError), (500, BridgeGarbledError)],
)
async def test_the_body_of_an_error_page_is_not_read(status: int, error: type[BridgeError]) -> None:
    miner = Miner()
    miner.status = status
    async with serving(miner.serve) as port:
        with pytest.raises(error):
            await Quick({Wire.HTTP: port}).ask(page("/cgi-bin/stats.cgi"))


async def test_blink_and_reboot() -> None:
    miner = Miner()
    async with control_of(miner) as control:
        assert (await control.write(Locate(on=True))).state is WriteState.ACKNOWLEDGED
        assert (await control.write(Reboot())).state is WriteState.REFUSED
    assert miner.posted[0] == {"blink": "true"}


@pytest.mark.parametrize(
    ("body", "state"),
    [
        (b'{"stats":"success","code":"M000","msg":"OK!"}', WriteState.ACKNOWLEDGED),
        (b'{"stats":"error","code":"M001","msg":"bad"}', WriteState.REFUSED),
        (b'{"code":"B100"}', WriteState.ACKNOWLEDGED),
        (b"{}", WriteState.UNKNOWN),
        (b'{"stats":1}', WriteState.UNKNOWN),
        (b"", WriteState.UNKNOWN),
        (b"\xff\xfe", WriteState.UNKNOWN),
        (b"[" * 3_000, WriteState.UNKNOWN),
    ],
)
def test_what_a_page_says_to_a_write(body: bytes, state: WriteState) -> None:
    assert judge_write(body).state is state


# --- the bridge over both wires ------------------------------------------------------------------

S21 = {"Elapsed": 60, "GHS 5s": 200_000.0, "chain_power": "3500 W"}
STATS = {"STATUS": [{"STATUS": "S"}], "STATS": [{"Type": "Antminer S21"}, S21]}


def rpc_miner(answers: dict[str, bytes]) -> Handler:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = json.loads(await reader.read(4_095))["command"]
        answer = answers.get(command)
        if answer is None:
            await asyncio.sleep(10)
        writer.write((answer or b"") + b"\0")
        await writer.drain()

    return serve


def bridge_at(rpc_port: int, web_port: int) -> MinerBridge:
    link = Quick({Wire.CGMINER: rpc_port, Wire.HTTP: web_port})
    return MinerBridge(ANTMINER_STOCK, link, "127.0.0.1", control=control_over(link))


async def test_what_fails_costs_its_own_fields_only() -> None:
    answers = {
        "stats": json.dumps(STATS).encode(),
        "version": b'{"STATUS":[{"STATUS":"E","Code":14,"Msg":"Invalid command"}]}',
        "pools": b"garbage",
    }
    miner = Miner()
    miner.pages["get_system_info.cgi"] = lambda _: b'{"macaddr":"02:50:53:09:da:d9"}'
    async with serving(rpc_miner(answers)) as rpc_port, serving(miner.serve) as web_port:
        reading = await bridge_at(rpc_port, web_port).read(ReadDetail.FULL)
    assert reading.hashrate_ths == 200.0
    assert reading.power_w == 3500.0
    assert reading.mac == "02:50:53:09:DA:D9"
    assert reading.is_mining is True
    assert reading.answered == ("stats", "/cgi-bin/get_system_info.cgi")
    assert {(failure.source, failure.code) for failure in reading.failed} == {
        ("pools", "bridge.garbled"),
        ("version", "bridge.unsupported"),
        ("/cgi-bin/summary.cgi", "bridge.unsupported"),
        ("/cgi-bin/get_blink_status.cgi", "bridge.unsupported"),
    }


async def test_a_hung_api_costs_one_deadline_and_the_web_still_answers() -> None:
    miner = Miner()
    miner.pages["get_system_info.cgi"] = lambda _: b'{"macaddr":"02:50:53:09:da:d9"}'
    async with serving(rpc_miner({})) as rpc_port, serving(miner.serve) as web_port:
        bridge = bridge_at(rpc_port, web_port)
        async with asyncio.timeout(2):
            reading = await bridge.read(ReadDetail.FULL)
    assert reading.mac is not None
    assert reading.is_mining is None
    assert len([failure for failure in reading.failed if failure.code == "bridge.timeout"]) == 3


async def test_nothing_at_all_is_an_error() -> None:
    async with serving(rpc_miner({})) as port:
        bridge = bridge_at(port, port)
        with pytest.raises(BridgeTimeoutError):
            await bridge.read(ReadDetail.FAST)
