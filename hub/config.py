"""The hub's configuration: one TOML file into one frozen Struct.

Every setting has a default that works on one machine. Secrets are named, never written: a
credential is a file in ``$CREDENTIALS_DIRECTORY`` (systemd) or in ``credentials_dir``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from hub.errors import ConfigError
from protocol.settings import parse_settings

CONFIG_BYTES_MAX = 1 << 20
_Port = Annotated[int, Meta(ge=0, le=65_535)]
_Rate = Annotated[float, Meta(gt=0, le=1e6)]
_Size = Annotated[int, Meta(ge=1, le=10_000_000)]


class Http(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the API listens; port 0 takes a free one. TLS ends at a proxy in front.

    Args:
        trusted_proxies: addresses whose X-Forwarded-For is believed, comma separated; empty: none.
    """

    host: str = "127.0.0.1"
    port: _Port = 8080
    trusted_proxies: str = ""


class Mqtt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker.

    Args:
        username, password_credential: for a broker that wants them.
        tls_ca, tls_cert, tls_key: names of credentials; all three or none.
        client_id: names this hub's session at the broker.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535)] = 1883
    username: str = ""
    password_credential: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    client_id: str = "hcp-hub"


class ApiLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much the API takes; rates are per caller (signed in) or per address (anonymous)."""

    body_bytes_max: _Size = 65_536
    rate_per_s: _Rate = 500.0
    burst: _Size = 1_000
    anonymous_rate_per_s: _Rate = 50.0
    anonymous_burst: _Size = 200
    logins_per_min: _Size = 10
    live_clients_max: _Size = 10_000
    writes_waiting_max: _Size = 8_192


class HubConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Args:
        data_dir: operational store, metrics and signing keys. issuer: ``iss`` of the tokens.
        jwt_credential: a PEM key to sign with; empty: keys of the hub's own in ``data_dir/keys``.
        metrics_memory: what DuckDB may use, e.g. ``512MB``.
    """

    data_dir: str = "/var/lib/hcp-hub"
    issuer: Annotated[str, Meta(min_length=1, max_length=200)] = "https://hub.hcp.invalid"
    credentials_dir: str = ""
    jwt_credential: str = ""
    metrics_memory: Annotated[str, Meta(pattern=r"^[0-9]+(MB|GB)$(?!\n)")] = "512MB"
    http: Http = Http()
    mqtt: Mqtt = Mqtt()
    limits: ApiLimits = ApiLimits()

    @property
    def store_path(self) -> Path:
        """Give the path of the operational store."""
        return Path(self.data_dir) / "hub.sqlite"

    @property
    def metrics_path(self) -> Path:
        """Give the path of the telemetry store."""
        return Path(self.data_dir) / "metrics.duckdb"

    @property
    def keys_path(self) -> Path:
        """Give the folder of the hub's own signing keys."""
        return Path(self.data_dir) / "keys"


def read_config(path: Path) -> HubConfig:
    """Read a config file.

    Raises:
        SettingsError: naming path, line and what is wrong.
        ConfigError: the file cannot be read, or settings contradict each other.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ConfigError("config_unreadable", f"{path}: {exc.strerror}") from exc
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError("config_too_large", f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise ConfigError("config_unreadable", f"{path} is not UTF-8") from exc
    config = parse_settings(text, HubConfig, str(path))
    tls = [config.mqtt.tls_ca, config.mqtt.tls_cert, config.mqtt.tls_key]
    if any(tls) and not all(tls):
        raise ConfigError("mqtt_tls", f"{path}: mqtt.tls_ca, tls_cert and tls_key go together")
    return config


def credential_path(config: HubConfig, name: str, environ: Mapping[str, str]) -> Path:
    """Find the file of a credential.

    Raises:
        ConfigError: it is nowhere.
    """
    folders = [environ.get("CREDENTIALS_DIRECTORY", ""), config.credentials_dir]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ConfigError("no_credential", f"credential {name} is not there")
