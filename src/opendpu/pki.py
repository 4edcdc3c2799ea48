"""A certificate authority in a folder, for the lab, tests and small sites.

ECDSA P-256 with SHA-256: both OpenSSL (OVS, OVN, Redfish) and BoringSSL (gRPC) take it. A certificate's names are
subject alternative names; a role of the agent's API is a URI name "urn:opendpu:role:<role>".
"""

import datetime
import fcntl
import ipaddress
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from opendpu.errors import FailedPreconditionError, InvalidArgumentError

ROLE_URI = "urn:opendpu:role:"

_CA_DAYS = 3650
_LEAF_DAYS = 365
_RENEW_BEFORE = datetime.timedelta(days=30)
# The machines' clocks differ a little; a certificate must hold on the one that is behind.
_CLOCK_SKEW = datetime.timedelta(hours=1)
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM files of one party. `key` is readable by its owner only."""

    ca: Path
    certificate: Path
    key: Path


class Authority:
    """A CA whose key and certificates live in `folder` (made 0700 when missing)."""

    def __init__(self, folder: Path, *, name: str = "opendpu-ca") -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            if not (self.ca.exists() and (folder / "ca.key").exists()):
                self._create(name)
        self._key = _load_key(folder / "ca.key")
        self._certificate = _load_certificate(self.ca)

    def issue(
        self,
        name: str,
        *,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        role: str | None = None,
        server: bool = True,
        client: bool = True,
    ) -> Credentials:
        """Give `name` a key and certificate; what is there is kept if it says the same and lasts 30 more days.

        Its common name is the first of `dns`, else `name`: OVSDB takes it for the client's id (ovsdb-server(7), RBAC).

        Raises InvalidArgumentError for a name that is no file name or an address that is none.
        """
        if not _NAME.fullmatch(name) or name == "ca":
            raise InvalidArgumentError(f"{name!r} can't name a certificate; use a-z, 0-9, '.' and '-'")
        names = _names(name, dns, ips, role)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns[0] if dns else name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        files = self.files(name)
        with self._locked():
            if not self._still_good(files, subject, names, usages):
                self._issue(files, subject, names, usages)
        return files

    def files(self, name: str) -> Credentials:
        """Where the certificate of `name` is kept, issued or not."""
        return Credentials(self.ca, self.folder / f"{name}.pem", self.folder / f"{name}.key")

    def _create(self, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), _CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(self.folder / "ca.key", _pem(key), 0o600)
        _write(self.ca, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def _issue(
        self,
        files: Credentials,
        subject: x509.Name,
        names: x509.SubjectAlternativeName,
        usages: list[x509.ObjectIdentifier],
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), _LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _write(files.key, _pem(key), 0o600)
        _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def _still_good(
        self,
        files: Credentials,
        subject: x509.Name,
        names: x509.SubjectAlternativeName,
        usages: list[x509.ObjectIdentifier],
    ) -> bool:
        try:
            certificate = _load_certificate(files.certificate)
            certificate.verify_directly_issued_by(self._certificate)
            same_key = certificate.public_key() == _load_key(files.key).public_key()
            extensions = certificate.extensions
            return (
                same_key
                and certificate.subject == subject
                and extensions.get_extension_for_class(x509.SubjectAlternativeName).value == names
                and list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
                and certificate.not_valid_after_utc - _now() > _RENEW_BEFORE
            )
        except (FailedPreconditionError, InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
            return False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _names(name: str, dns: Sequence[str], ips: Sequence[str], role: str | None) -> x509.SubjectAlternativeName:
    try:
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in dict.fromkeys([name, *dns])]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        if role is not None:
            names.append(x509.UniformResourceIdentifier(ROLE_URI + role))
    except ValueError as error:
        raise InvalidArgumentError(f"certificate {name}: {error}") from None
    return x509.SubjectAlternativeName(names)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(f"{path} holds no PEM certificate ({error}); remove it to have it made") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise FailedPreconditionError(f"{path} holds no PEM private key ({error}); remove it to have it made") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FailedPreconditionError(f"{path} is not an elliptic curve key; remove it to have one made")
    return key


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step, so that nobody reads half of it and a key is never readable by others."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
