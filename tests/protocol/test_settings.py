import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from protocol.settings import SettingsError, parse_settings


class Mqtt(Struct, frozen=True, kw_only=True):
    host: str
    port: int = 1883


class Device(Struct, frozen=True, kw_only=True):
    name: str


class Config(Struct, frozen=True, kw_only=True):
    site_id: str
    mqtt: Mqtt | None = None
    devices: tuple[Device, ...] = ()


GOOD = """
site_id = "fargo"
[mqtt]
host = "127.0.0.1"
[[devices]]
name = "a"
"""


def test_a_good_text_becomes_structs() -> None:
    config = parse_settings(GOOD, Config, "agent.toml")
    assert config == Config(
        site_id="fargo", mqtt=Mqtt(host="127.0.0.1"), devices=(Device(name="a"),)
    )


def test_every_unknown_key_is_named_with_line_and_suggestion() -> None:
    text = GOOD + 'nmae = "b"\n[mqtt2]\n'
    text = text.replace("host =", "prot = 1\nhost =")
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, Config, "agent.toml")
    told = str(caught.value)
    assert "line 4: mqtt.prot: unknown key; did you mean port?" in told
    assert "line 8: devices[0].nmae: unknown key; did you mean name?" in told
    assert "line 9: mqtt2: unknown key; did you mean mqtt?" in told


def test_a_wrong_value_is_named_with_its_line() -> None:
    with pytest.raises(SettingsError, match=r"line 5: mqtt\.port: Expected `int`, got `str`"):
        parse_settings(GOOD.replace('"127.0.0.1"', '"x"\nport = "y"'), Config, "agent.toml")


@given(st.text(max_size=200))
def test_any_text_ends_in_a_config_or_in_problems(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, Config, "agent.toml")
    assert caught.value.problems
