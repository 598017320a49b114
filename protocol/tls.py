"""What a failed TLS handshake means to the person who must mend it, in the words of the settings.

OpenSSL names alerts and its own findings in the text of its errors, e.g.
``[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca``. In TLS 1.3 a server judges the client's
certificate only after the client has finished: the refusal arrives with the first read.

Source: RFC 8446, 6.2 (alerts); OpenSSL 3, ``openssl errstr``.
"""

from msgspec import Struct


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
        TlsRefusal(ours=False, sentence="the broker's certificate is not good by tls_ca"),
    ),
    (
        "ALERT_UNKNOWN_CA",
        TlsRefusal(ours=True, sentence="the broker does not know who signed tls_cert"),
    ),
    (
        "ALERT_CERTIFICATE_REQUIRED",
        TlsRefusal(ours=True, sentence="the broker wants a certificate: set tls_cert and tls_key"),
    ),
    (
        "ALERT_CERTIFICATE_EXPIRED",
        TlsRefusal(ours=True, sentence="the broker finds tls_cert out of date"),
    ),
    (
        "ALERT_CERTIFICATE_REVOKED",
        TlsRefusal(ours=True, sentence="the broker finds tls_cert revoked"),
    ),
    (
        "ALERT_UNSUPPORTED_CERTIFICATE",
        TlsRefusal(ours=True, sentence="the broker does not take tls_cert for a client's"),
    ),
    (
        "ALERT_PROTOCOL_VERSION",
        TlsRefusal(ours=True, sentence="the broker does not speak the TLS version asked for"),
    ),
    (
        "WRONG_VERSION_NUMBER",
        TlsRefusal(ours=False, sentence="the broker does not speak TLS on this port"),
    ),
)


def explain_refusal(text: str) -> TlsRefusal | None:
    """Explain the text of an error of OpenSSL; None when it tells of no refusal known here."""
    return next((refusal for mark, refusal in _TOLD if mark in text), None)
