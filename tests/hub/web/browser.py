"""A real Chromium, without a window, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")
WAIT_S = 25.0
START_S = 60.0
# Root has no user namespace to hide in; the pages are ours alone.
_OPTIONS = (
    "--headless", "--no-sandbox", "--remote-debugging-port=0", "--no-first-run",
    "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--lang=en-GB",
)  # fmt: skip

# Gives the middle of an element, or null while it is missing, moves or is covered.
_STANDS = """(async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const found = document.querySelector(%s);
  found?.scrollIntoView({ block: 'center' });
  const before = found?.getBoundingClientRect();
  await frame();
  await frame();
  const now = found?.getBoundingClientRect();
  if (!now?.width || now.x !== before.x || now.y !== before.y) return null;
  const [x, y] = [now.x + now.width / 2, now.y + now.height / 2];
  return found.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
})()"""


def chromium() -> str | None:
    """Find the browser; None where the machine has none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page: commands of the protocol, and what the page complained of."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._session: str | None = None
        self._sent = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []

    async def listen(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                self._waiting.pop(message["id"]).set_result(message)
            elif message["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message["method"] == "Log.entryAdded":
                self._note(message["params"]["entry"])

    async def attach(self) -> None:
        target = await self.ask("Target.createTarget", url="about:blank")
        found = await self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            await self.ask(f"{domain}.enable")

    async def ask(self, method: str, /, **params: object) -> dict[str, Any]:
        self._sent += 1
        answer = self._waiting[self._sent] = asyncio.get_running_loop().create_future()
        head = {} if self._session is None else {"sessionId": self._session}
        body = {"id": self._sent, "method": method, "params": params, **head}
        await self._socket.send(json.dumps(body))
        async with asyncio.timeout(WAIT_S):
            message = await answer
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    async def run(self, expression: str) -> Any:  # noqa: ANN401 - a value of the page
        answer = await self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true, looked at in each frame of the page."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not await self.run(f"Boolean({expression})"):
                    await self.run("new Promise((done) => setTimeout(done, 20))")
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{text}\n{self.complaints}") from None

    async def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, once it stands still with nothing on it."""
        async with asyncio.timeout(WAIT_S):
            while (at := await self.run(_STANDS % json.dumps(selector))) is None:
                continue
        for kind in ("mousePressed", "mouseReleased"):
            await self.ask(
                "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1
            )

    async def type(self, selector: str, text: str) -> None:
        """Replace what a field holds by typing."""
        await self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus();"
            " e.select(); })()"
        )
        await self.ask("Input.insertText", text=text)

    async def set_value(self, selector: str, value: str) -> None:
        """Give a field a value that is picked and not typed: a time, an option."""
        await self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f" e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            code = {"Escape": 27, "Tab": 9}[key]
            await self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    async def text(self, selector: str) -> str:
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def nameless(self) -> list[str]:
        """List the controls to which assistive technology gives no name."""
        tree = await self.ask("Accessibility.getFullAXTree")
        roles = {
            "button",
            "textbox",
            "combobox",
            "spinbutton",
            "Date",
            "DateTime",
            "region",
            "dialog",
        }
        return [
            str(node["role"]["value"])
            for node in tree["nodes"]
            if not node.get("ignored") and node.get("role", {}).get("value") in roles
            and not node.get("name", {}).get("value")
        ]  # fmt: skip

    def _note(self, entry: dict[str, Any]) -> None:
        # An answer of 4xx that a test provokes is noted by the browser as an error, too.
        if entry["level"] == "error" and entry["source"] != "network":
            self.complaints.append(entry["text"])


@asynccontextmanager
async def opened(program: str, folder: Path) -> AsyncIterator[Tab]:
    """Start a browser with a fresh profile and give its one tab."""
    process = await asyncio.create_subprocess_exec(
        program, *_OPTIONS, f"--user-data-dir={folder}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_S):
            address = await _address(folder / "DevToolsActivePort")
        async with connect(address, max_size=1 << 26, close_timeout=1) as socket:
            tab = Tab(socket)
            listening = asyncio.create_task(tab.listen())
            try:
                await tab.attach()
                yield tab
            finally:
                listening.cancel()
    finally:
        # Its helpers are processes of the same group.
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _address(said: Path) -> str:
    while True:
        lines = said.read_text().split() if said.exists() else []  # noqa: ASYNC240 - a small file
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        await asyncio.sleep(0.05)
