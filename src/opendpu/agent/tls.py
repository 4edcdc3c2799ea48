"""Who may call: mutual TLS, and a role in the caller's certificate.

The role is a URI subject alternative name "urn:opendpu:role:<role>". gRPC has checked the certificate against the CA
before any of this runs, and hands over its names (https://grpc.io/docs/guides/auth/).
"""

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc

from opendpu.agent.config import TlsConfig
from opendpu.errors import AccessDeniedError, InvalidArgumentError

ROLE_URI = "urn:opendpu:role:"

_READ = frozenset({"Get", "List", "Watch"})
_WRITE = frozenset({"Create", "Delete"})
_ALL = _READ | _WRITE
# Every role may look at the server: its chassis and limits are needed to ask for anything.
_GRANTS: dict[str, dict[str, frozenset[str]]] = {
    "conductor": {"Interfaces": _ALL, "Disks": _ALL, "Volumes": _ALL, "Servers": _ALL},
    "compute": {"Interfaces": _ALL, "Disks": _ALL, "Volumes": _ALL, "Servers": _READ},
    "mesh": {"Interfaces": _ALL, "Servers": _READ},
    "observer": {"Interfaces": _READ, "Disks": _READ, "Volumes": _READ, "Servers": _READ},
}


def roles_of(auth_context: Mapping[str, Sequence[bytes]]) -> set[str]:
    """The roles in a peer's certificate; only URI names count, a DNS name of that spelling does not."""
    uris = (uri.decode(errors="replace") for uri in auth_context.get("peer_uri", ()))
    return {uri.removeprefix(ROLE_URI) for uri in uris if uri.startswith(ROLE_URI)}


def authorize(method: str, roles: set[str]) -> None:
    """Raises AccessDeniedError unless one of `roles` may call `method` (/package.Service/Verb...)."""
    _, service, call = method.split("/")
    service = service.rpartition(".")[2]
    for role in roles:
        verbs = _GRANTS.get(role, {}).get(service, frozenset())
        if any(call.startswith(verb) for verb in verbs):
            return
    if not roles:
        raise AccessDeniedError(
            f"your certificate has no role; issue one with a URI name {ROLE_URI}<{'|'.join(_GRANTS)}>"
        )
    raise AccessDeniedError(f"role {', '.join(sorted(roles))} may not call {service}.{call}")


def server_credentials(files: TlsConfig) -> grpc.ServerCredentials:
    """Credentials that follow the files: a renewed certificate is taken at the next handshake, without a restart.

    Raises InvalidArgumentError when a file can't be read or the key can be read by others.
    """
    seen = _stamp(files)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        try:
            now = _stamp(files)
            if now == seen:
                return None
            configuration = _configuration(files)
        except InvalidArgumentError:
            return None  # half way through a renewal: the old one holds until the next handshake
        seen = now
        return configuration

    return grpc.dynamic_ssl_server_credentials(_configuration(files), changed, require_client_authentication=True)


def _configuration(files: TlsConfig) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(_read(files.key, secret=True), _read(files.certificate))], root_certificates=_read(files.ca)
    )


def _stamp(files: TlsConfig) -> list[int]:
    try:
        return [path.stat().st_mtime_ns for path in (files.ca, files.certificate, files.key)]
    except OSError as error:
        raise InvalidArgumentError(f"TLS file: {error}") from None


def _read(path: Path, *, secret: bool = False) -> bytes:
    try:
        if secret and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InvalidArgumentError(f"{path} can be read by others; run: chmod 600 {path}")
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"TLS file: {error}") from None
