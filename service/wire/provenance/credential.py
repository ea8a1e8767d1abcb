"""A signing certificate and its private key, read from PEM files and checked. No key is in a message, a repr or a log."""

from __future__ import annotations  # cryptography's types, imported only where pictures are signed

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from longcat.errors import ConfigError
from longcat.problem import reason_of
from longcat.storage.regular import open_regular

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_CERTIFICATE, _KEY = "c2pa_certificate", "c2pa_key"
_LARGEST_BYTES = 2**20
"""Largest PEM file that is read; a chain is a few KiB."""
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_LEAST_RSA_BITS = 2048
"""C2PA 2.2, section 13.2 (digital signatures): RSA keys have at least 2048 bits."""


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A certificate chain with the private key of its first certificate."""

    chain: bytes
    """PEM: the signing certificate, then those between it and its root."""
    key: bytes = field(repr=False)
    """PEM, PKCS #8."""
    algorithm: str
    """The signature's name in C2PA: ``es256``, ``ps256``, ``ed25519`` ..."""
    end: datetime
    """Time at which the certificate expires."""


def read_credential(certificate: Path, key: Path) -> Credential:
    """Read a certificate and its key. Raises ``ConfigError`` unless they are a pair that can sign today."""
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise not_installed(_CERTIFICATE, str(certificate)) from error
    chain = read_certificates(certificate, field=_CERTIFICATE)
    text = _read(key, _KEY)
    try:
        private = serialization.load_pem_private_key(text, password=None)
    except Exception as error:  # it raises ValueError, TypeError and errors of its own
        raise ConfigError(
            "c2pa_key_invalid",
            "not a private key in PEM without a passphrase",
            remedy="convert it with: openssl pkcs8 -topk8 -nocrypt -in KEY -out FILE",
            field=_KEY,
            value=str(key),
        ) from error
    algorithm = _algorithm_of(private, key)
    encoding, public = serialization.Encoding, serialization.PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(encoding.DER, public) != chain[0].public_key().public_bytes(
        encoding.DER, public
    ):
        raise ConfigError(
            "c2pa_key_of_another_certificate",
            "not the key of the first certificate in {path}",
            remedy="give the key that was made with the certificate, and the signing certificate first in its file",
            field=_KEY,
            value=str(key),
            path=str(certificate),
        )
    _check_dates(chain[0], certificate)
    return Credential(
        chain=b"".join(each.public_bytes(encoding.PEM) for each in chain),
        key=private.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        algorithm=algorithm,
        end=chain[0].not_valid_after_utc,
    )


def read_certificates(path: Path, *, field: str) -> list[Certificate]:
    """Read the certificates of a PEM file that errors call ``field``. Raises ``ConfigError``."""
    try:
        from cryptography.x509 import load_pem_x509_certificates
    except ImportError as error:
        raise not_installed(field, str(path)) from error
    try:
        return load_pem_x509_certificates(_read(path, field))
    except ValueError as error:
        raise ConfigError(
            "c2pa_certificate_invalid",
            "has no certificate in PEM",
            remedy="give a file of certificates that begin with -----BEGIN CERTIFICATE-----",
            field=field,
            value=str(path),
        ) from error


def read_roots(path: Path, *, field: str) -> str:
    """Return the root certificates of a PEM file that errors call ``field``. Raises ``ConfigError``."""
    certificates = read_certificates(path, field=field)
    from cryptography.hazmat.primitives.serialization import Encoding

    return "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)


def not_installed(field: str, value: str) -> ConfigError:
    """Return the error of an environment without the library of C2PA."""
    return ConfigError(
        "c2pa_not_installed",
        "the package c2pa-python, which makes and checks signatures, is not installed",
        remedy="install it with: pip install c2pa-python",
        field=field,
        value=value,
    )


def _read(path: Path, field: str) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read(_LARGEST_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ConfigError(
            "c2pa_file_unreadable",
            "cannot be read: {reason}",
            remedy="give a PEM file that this user may read",
            field=field,
            value=str(path),
            reason=reason_of(error),
        ) from error


def _algorithm_of(key: object, path: Path) -> str:
    """Return C2PA's name of the signature that a private key makes."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    match key:
        case ec.EllipticCurvePrivateKey() if key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case rsa.RSAPrivateKey() if key.key_size >= _LEAST_RSA_BITS:
            return "ps256"
        case ec.EllipticCurvePrivateKey():
            kind = f"EC key on {key.curve.name}"
        case rsa.RSAPrivateKey():
            kind = f"RSA key of {key.key_size} bits"
        case _:
            kind = type(key).__name__.removesuffix("PrivateKey").lstrip("_") + " key"
    raise ConfigError(
        "c2pa_key_unsupported",
        "{kind}, which C2PA does not allow",
        remedy="use an EC key on P-256, P-384 or P-521, an Ed25519 key, or an RSA key of at least {bits} bits",
        field=_KEY,
        value=str(path),
        kind=kind,
        bits=_LEAST_RSA_BITS,
    )


def _check_dates(certificate: Certificate, path: Path) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= datetime.now(UTC) <= end:
        raise ConfigError(
            "c2pa_certificate_not_valid_now",
            "valid from {begin} to {end}",
            remedy="give a certificate that is valid now, or correct the clock",
            field=_CERTIFICATE,
            value=str(path),
            begin=f"{begin:%Y-%m-%d %H:%M} UTC",
            end=f"{end:%Y-%m-%d %H:%M} UTC",
        )
