"""TLS contexts of the broker's link and the nodes': TLS 1.3, both sides by certificate."""

import ssl
from pathlib import Path

from protocol.settings import Problem, SettingsError


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when its handshake fails: paho lets go of it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - ssl's own signature
        """Shake hands, or close."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def client_context(ca: Path, cert: Path, key: Path, section: str = "mqtt") -> ssl.SSLContext:
    """Make a context that trusts ``ca`` alone and shows our certificate.

    Args:
        section: of the settings that name the files.

    Raises:
        SettingsError: a file is not what its setting says, or key and certificate differ.
    """
    context = _context(ssl.Purpose.SERVER_AUTH, ca, cert, key, section)
    context.sslsocket_class = _ClosingSocket
    return context


def server_context(ca: Path, cert: Path, key: Path, section: str) -> ssl.SSLContext:
    """Make a context that shows our certificate and takes clients that ``ca`` alone has signed.

    Raises:
        SettingsError: as above.
    """
    context = _context(ssl.Purpose.CLIENT_AUTH, ca, cert, key, section)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _context(purpose: ssl.Purpose, ca: Path, cert: Path, key: Path, section: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=str(ca))
    except (ssl.SSLError, OSError) as exc:
        raise _problem(f"{section}.tls_ca", f"{ca.name} holds no certificate: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        # Without the callback OpenSSL would ask for a passphrase at the terminal.
        context.load_cert_chain(cert, key, password=_refuse_passphrase)
    except (ssl.SSLError, OSError, ValueError) as exc:
        detail = f"{cert.name} and {key.name} are not a certificate and its key: {exc}"
        raise _problem(f"{section}.tls_cert", detail) from exc
    return context


def _refuse_passphrase() -> str:
    raise ValueError("the key has a passphrase; store it without one, readable by us alone")


def _problem(path: str, detail: str) -> SettingsError:
    return SettingsError("tls", (Problem(path=path, detail=detail),))
