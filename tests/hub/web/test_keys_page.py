"""The page of API keys and of models' keys, as a customer uses it in a browser."""

from hashlib import sha256

import httpx
import pytest

from hub.store import workloads
from tests.hub.api.harness import NOW, PASSWORD, Hub
from tests.hub.api.test_workloads import serving
from tests.hub.web.browser import Tab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


async def sign_in(tab: Tab, email: str) -> None:
    await tab.type("#email", email)
    await tab.type("#password", PASSWORD)
    await tab.click("#login button")
    await tab.until("document.getElementById('link').textContent === 'live'")
    await tab.until("/[0-9]/.test(document.getElementById('f-served').textContent)")
    await tab.until(
        "!document.getElementById('keys-empty').hidden || document.querySelector('#keys tr')"
    )


async def _me(hub: Hub, key: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return await hub.client.get("/api/v1/auth/me", headers=headers)


async def test_a_customer_makes_a_key_uses_it_and_revokes_it(hub: Hub, tab: Tab) -> None:
    await sign_in(tab, "c1@x.test")
    await tab.until("!document.getElementById('keys-empty').hidden")
    await tab.click("details:has(#key-form) summary")
    await tab.click("#key-form button")
    assert await tab.text("#key-name-error") == "is needed"
    await tab.type("#key-form [name=name]", "nightly <b>run</b>")
    await tab.type("#key-form [name=expires_in_days]", "400")
    await tab.click("#key-form button")
    await tab.until("document.getElementById('key-days-error').textContent.includes('365')")
    assert await tab.run("document.activeElement.name") == "expires_in_days"
    await tab.type("#key-form [name=expires_in_days]", "30")
    await tab.click("#key-form button")
    await tab.until("document.getElementById('secret').open")
    key = await tab.run("document.getElementById('secret-key').value")
    assert (await _me(hub, key)).json()["email"] == "c1@x.test"
    await tab.press("Escape")  # what is shown once is not lost by a slip
    assert await tab.run("document.getElementById('secret').open")
    await tab.click("#secret-copy")
    await tab.until("document.getElementById('secret-copied').textContent !== ''")
    await tab.click("#secret-done")
    await tab.until("document.getElementById('secret-key').value === ''")
    assert key not in await tab.run("document.documentElement.outerHTML")
    row = await tab.text("#keys tr")
    assert "nightly <b>run</b>" in row
    assert key[:11] in row
    assert "2026-03-01 06:30" in row  # 12:30 UTC in Chicago
    await _revokes(hub, tab, key)


async def _revokes(hub: Hub, tab: Tab, key: str) -> None:
    await tab.click("#keys button")
    assert "nightly" in await tab.text("#confirm-text")
    await tab.press("Escape")
    await tab.until("!document.getElementById('confirm').open")
    assert (await _me(hub, key)).status_code == 200
    await tab.click("#keys button")
    await tab.click("#confirm-yes")
    await tab.until("document.querySelector('#keys tr').innerText.includes('revoked')")
    assert (await _me(hub, key)).json()["code"] == "key_revoked"
    assert await tab.run("document.querySelector('#keys button')") is None


async def test_a_customer_makes_and_replaces_the_key_of_a_model(hub: Hub, tab: Tab) -> None:
    workload_id = await serving(hub)
    await sign_in(tab, "c1@x.test")
    await tab.until(
        "document.querySelector('#workloads tr')?.innerText.includes('nobody is let in')"
    )
    await tab.click("#workloads button")
    assert await tab.run("document.getElementById('model-grace').hidden")
    first = await _model_key(tab)
    assert _hashes(hub, workload_id) == [_digest(first)]
    await tab.until("document.querySelector('#workloads button').textContent === 'Replace'")
    await tab.click("#workloads button")
    await tab.set_value("#model-form select", "86400")
    second = await _model_key(tab)
    assert _hashes(hub, workload_id) == [_digest(second), _digest(first)]
    await tab.run("location.reload()")
    await tab.until("document.querySelector('#workloads tr')?.innerText.includes('made')")
    assert second not in await tab.run("document.documentElement.outerHTML")


async def _model_key(tab: Tab) -> str:
    await tab.click("#model-form [type=submit]")
    await tab.until("document.getElementById('secret').open")
    key = await tab.run("document.getElementById('secret-key').value")
    await tab.click("#secret-done")
    return str(key)


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _hashes(hub: Hub, workload_id: str) -> list[str]:
    row = workloads.find(hub.deps.store, workload_id)
    assert row is not None
    return [key.sha256 for key in row.keys]


async def test_a_session_that_has_ended_says_so_and_leaves_nothing(hub: Hub, tab: Tab) -> None:
    await sign_in(tab, "c1@x.test")
    await tab.click("details:has(#key-form) summary")
    await tab.type("#key-form [name=name]", "private")
    hub.clock.advance(NOW.replace(day=2))
    await tab.click("#key-form button")
    await tab.until("!document.getElementById('login').hidden")
    assert "session has ended" in await tab.text("#login-error")
    assert await tab.run("document.querySelector('#key-form [name=name]').value") == ""
    assert await tab.run("document.querySelectorAll('#keys tr, #workloads tr').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_fits_a_phone_and_names_every_control(
    hub: Hub, tab: Tab, scheme: str
) -> None:
    await serving(hub)
    body = {"name": "a name as long as people give them to keys of theirs"}
    await hub.client.post("/api/v1/api-keys", json=body, headers=hub.headers("c1"))
    await tab.ask("Emulation.setEmulatedMedia", features=[
        {"name": "prefers-color-scheme", "value": scheme},
    ])  # fmt: skip
    await tab.ask(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=1,
        mobile=True,
    )
    await sign_in(tab, "c1@x.test")
    await tab.click("details:has(#key-form) summary")
    await tab.until(
        "document.querySelector('#workloads button') && document.querySelector('#keys button')"
    )
    assert await tab.run("document.documentElement.scrollWidth") <= 360
    assert await tab.nameless() == []
    await tab.click("#workloads button")
    box = await tab.run(
        "(() => { const r = document.getElementById('model').getBoundingClientRect();"
        " return [r.left, r.right]; })()"
    )
    assert box[0] >= 0
    assert box[1] <= 360
