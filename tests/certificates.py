"""Certificates of a test: authorities that sign servers on loopback, and clients by name."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

LIFE = timedelta(days=1)


class Identity(Struct, frozen=True):
    """Files of one certificate, its key, and the authority that signed it."""

    ca: Path
    cert: Path
    key: Path


class Authority:
    """Signs certificates, and writes them into a folder.

    Args:
        folder: for the files. name: of the authority, unique in the folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name_of(name)
        self.file = folder / f"{name}.crt"
        basic = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key).add_extension(basic, critical=True)
        self.file.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def server(self, name: str, *, expired: bool = False) -> Identity:
        """Sign a server that answers at 127.0.0.1."""
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return self._issue(name, [address], ExtendedKeyUsageOID.SERVER_AUTH, expired=expired)

    def client(self, name: str, *, expired: bool = False) -> Identity:
        """Sign a client; its common name is who it is."""
        return self._issue(name, [], ExtendedKeyUsageOID.CLIENT_AUTH, expired=expired)

    def revoke(self, identity: Identity) -> Path:
        """Take a certificate back; gives the file of the list that says so."""
        now = datetime.now(UTC)
        serial = x509.load_pem_x509_certificate(identity.cert.read_bytes()).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now - LIFE).next_update(now + LIFE)
        crl = builder.add_revoked_certificate(entry.build()).sign(self._key, hashes.SHA256())
        path = self._folder / f"{self.file.stem}.crl"
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return path

    def _issue(
        self,
        name: str,
        addresses: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        *,
        expired: bool,
    ) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name_of(name), key, expired=expired)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if addresses:
            builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        stem = f"{self.file.stem}-{name}"
        cert, secret = self._folder / f"{stem}.crt", self._folder / f"{stem}.key"
        cert.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Identity(self.file, cert, secret)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, expired: bool = False
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        began = now - 2 * LIFE
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(began)
            .not_valid_after(now - LIFE if expired else now + LIFE)
        )


def _name_of(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
