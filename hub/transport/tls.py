"""The TLS context of the hub's link to the broker: TLS 1.3, both sides by certificate."""

import ssl
from pathlib import Path

from hub.errors import ConfigError


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when its handshake fails: paho lets go of it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - ssl's own signature
        """Shake hands, or close."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def client_context(ca: Path, cert: Path, key: Path) -> ssl.SSLContext:
    """Make a context that trusts ``ca`` alone and shows our certificate.

    Raises:
        ConfigError: a file is not what its setting says, or key and certificate differ.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (ssl.SSLError, OSError) as exc:
        detail = f"mqtt.tls_ca: {ca.name} holds no certificate: {exc}"
        raise ConfigError("mqtt_tls", detail) from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslsocket_class = _ClosingSocket
    try:
        # Without the callback OpenSSL would ask for a passphrase at the terminal.
        context.load_cert_chain(cert, key, password=_refuse_passphrase)
    except (ssl.SSLError, OSError, ValueError) as exc:
        names = f"{cert.name} and {key.name} are not a certificate and its key"
        raise ConfigError("mqtt_tls", f"mqtt.tls_cert: {names}: {exc}") from exc
    return context


def _refuse_passphrase() -> str:
    raise ValueError("the key has a passphrase; store it without one, readable by us alone")
