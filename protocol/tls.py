"""Who is behind a certificate, and what a failed handshake means in the words of the settings.

OpenSSL names alerts and its own findings in the text of its errors, e.g.
``[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca``. In TLS 1.3 a server judges the client's
certificate only after the client has finished: the refusal arrives with the first read.

Source: RFC 8446, 6.2 (alerts); OpenSSL 3, ``openssl errstr``.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace


class TlsRefusal(Struct, frozen=True):
    """Why a handshake failed.

    Args:
        ours: True when the other side refused us, False when we refused it.
        sentence: what is wrong, naming the setting.
    """

    ours: bool
    sentence: str


_TOLD: tuple[tuple[str, TlsRefusal], ...] = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        TlsRefusal(ours=False, sentence="{peer}'s certificate is not good by tls_ca"),
    ),
    (
        "ALERT_UNKNOWN_CA",
        TlsRefusal(ours=True, sentence="{peer} does not know who signed tls_cert"),
    ),
    (
        "ALERT_CERTIFICATE_REQUIRED",
        TlsRefusal(ours=True, sentence="{peer} wants a certificate: set tls_cert and tls_key"),
    ),
    (
        "ALERT_CERTIFICATE_EXPIRED",
        TlsRefusal(ours=True, sentence="{peer} finds tls_cert out of date"),
    ),
    (
        "ALERT_CERTIFICATE_REVOKED",
        TlsRefusal(ours=True, sentence="{peer} finds tls_cert revoked"),
    ),
    (
        "ALERT_UNSUPPORTED_CERTIFICATE",
        TlsRefusal(ours=True, sentence="{peer} does not take tls_cert for a client's"),
    ),
    (
        "ALERT_PROTOCOL_VERSION",
        TlsRefusal(ours=True, sentence="{peer} does not speak the TLS version asked for"),
    ),
    (
        "WRONG_VERSION_NUMBER",
        TlsRefusal(ours=False, sentence="{peer} does not speak TLS on this port"),
    ),
)


def explain_refusal(text: str, peer: str = "the broker") -> TlsRefusal | None:
    """Explain the text of an error of OpenSSL; None when it tells of no refusal known here.

    Args:
        text: of the error. peer: the other side, in the words of a sentence.
    """
    found = next((refusal for mark, refusal in _TOLD if mark in text), None)
    return None if found is None else replace(found, sentence=found.sentence.format(peer=peer))


def common_name(certificate: Mapping[str, Any] | None) -> str | None:
    """Give the one common name of a certificate's subject; None when it has none, or several.

    Args:
        certificate: as ``SSLSocket.getpeercert()`` gives it.
    """
    subject = () if certificate is None else certificate.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    return str(names[0]) if len(names) == 1 else None
