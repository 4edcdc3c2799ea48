"""A small real data centre network: OVN central and two chassis, on the lab's own wires."""

import asyncio
import contextlib
import datetime
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyroute2.netns
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from opendpu.errors import OpenDPUError
from opendpu.lab import wires
from opendpu.lab.chassis import Chassis
from opendpu.lab.ovn_central import OvnCentral
from opendpu.lab.ovsdb import TlsFiles
from opendpu.lab.program import Program
from opendpu.lab.supervisor import Supervisor, in_netns
from opendpu.network.binder import PortBinder

MTU = 9000
CENTRAL = "10.98.0.254"


def wait_for(what: str, check: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"no {what} within {timeout} s"
        time.sleep(0.02)


class DataCentre:
    """Two chassis `soc1` and `soc2`; tunnels on one switch, OVN's control on another."""

    def __init__(self) -> None:
        self.prefix = f"ot-{os.getpid()}-"
        self.root = Path(tempfile.mkdtemp(prefix="ot-", dir="/tmp"))
        tls = Certificates(self.root / "pki").issue
        self.fabric = self.prefix + "ul"
        self.central = OvnCentral(self.fabric, self.root / "c", self.root / "cs", CENTRAL, tls("central"))
        self.chassis = {
            name: Chassis(
                name,
                self.prefix + name,
                self.root / name,
                self.root / f"{name}s",
                f"10.99.0.{index}/24",
                self.central.sb_remote,
                tls(name),
                underlay_mtu=MTU,
                keep_underlay=True,
            )
            for index, name in enumerate(("soc1", "soc2"), start=1)
        }

        self.supervisors = {
            name: Supervisor(name, run=self.root, state=self.root / f"{name}s") for name in ("central", *self.chassis)
        }

    def up(self) -> None:
        wires.add_namespace(self.fabric)
        for switch, mtu in ((wires.UNDERLAY, MTU), (wires.OUT_OF_BAND, 1500)):
            wires.add_switch(self.fabric, switch, mtu=mtu)
        wires.ip("address", "replace", f"{CENTRAL}/24", "dev", wires.OUT_OF_BAND, netns=self.fabric)
        self.central.prepare()
        self._supervise("central", self.central.programs())
        for index, chassis in enumerate(self.chassis.values(), start=1):
            wires.add_namespace(chassis.netns)
            wires.add_cable(self.fabric, wires.UNDERLAY, f"ul{index}", chassis.netns, "up0", mtu=MTU)
            wires.add_cable(
                self.fabric, wires.OUT_OF_BAND, f"ob{index}", chassis.netns, "oob0", mtu=1500,
                address=f"10.98.0.{index}/24",
            )  # fmt: skip
            chassis.prepare()
            self._supervise(chassis.name, chassis.programs())
        wait_for("OVN northbound database", self.nb_ready)
        wait_for(
            "both chassis in the southbound database",
            lambda: self.sbctl("--columns=name", "list", "chassis").count("soc") == 2,
        )
        self.warm()

    def _supervise(self, name: str, programs: Sequence[Program]) -> None:
        supervisor = self.supervisors[name]
        supervisor.configure(programs)
        supervisor.start()

    def pid(self, soc: str, role: str) -> int:
        return self.supervisors[soc].programs()[f"{soc}-{role}"][1]

    def kill(self, soc: str, role: str) -> None:
        """SIGKILL; the supervisor starts it again."""
        os.kill(self.pid(soc, role), signal.SIGKILL)

    def both_chassis(self) -> bool:
        return self.sbctl("--bare", "--columns=name", "list", "chassis").split() in (["soc1", "soc2"], ["soc2", "soc1"])

    def nb_ready(self) -> bool:
        return bool(self.nbctl("--columns=_uuid", "list", "NB_Global", check=False).strip())

    def warm(self) -> None:
        """A userspace tunnel loses the packet that made it look for its peer's MAC."""
        for chassis in self.chassis.values():
            for peer in self.chassis.values():
                address = peer.tunnel_address.partition("/")[0]
                wait_for(
                    f"answer of {address}",
                    lambda chassis=chassis, address=address: self.run(
                        chassis.netns, "ping", "-c1", "-W1", address, check=False
                    ).returncode == 0,
                )  # fmt: skip

    def down(self) -> None:
        for supervisor in self.supervisors.values():
            with contextlib.suppress(OpenDPUError):
                supervisor.stop()
        for name in wires.namespaces(self.prefix):
            for pid in wires.pids_in(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for name in wires.namespaces(self.prefix):
            wires.delete_namespace(name)
        shutil.rmtree(self.root, ignore_errors=True)

    def wire(self, host: "Host") -> None:
        """The function itself: a veth pair stands for it here; its representor end is in the SoC."""
        soc = self.chassis[host.soc].netns
        wires.ip("link", "add", host.representor, "mtu", "8900", "netns", soc, "type", "veth",
                 "peer", "name", "eth0", "address", host.mac, "mtu", "8900", "netns", host.netns)  # fmt: skip
        wires.no_offload(host.netns, "eth0")
        wires.ip("link", "set", host.representor, "up", netns=soc)
        wires.ip("link", "set", "eth0", "up", netns=host.netns)
        wires.ip("address", "add", f"{host.address}/24", "dev", "eth0", netns=host.netns)

    def run(self, netns: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(in_netns(netns, command), capture_output=True, text=True, check=check, timeout=60)

    def nbctl(self, *arguments: str, check: bool = True) -> str:
        return self._ctl("ovn-nbctl", self.central.nb, arguments, check)

    def sbctl(self, *arguments: str, check: bool = True) -> str:
        return self._ctl("ovn-sbctl", self.central.sb, arguments, check)

    def vsctl(self, soc: str, *arguments: str, check: bool = True) -> str:
        return self._ctl("ovs-vsctl", self.chassis[soc].ovsdb, arguments, check)

    def _ctl(self, program: str, db: str, arguments: tuple[str, ...], check: bool) -> str:
        done = subprocess.run(
            [program, "--timeout=15", f"--db={db}", *arguments], capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{program} {arguments}: {done.stderr}"
        return done.stdout.strip()


_RECEIVE = """
import hashlib, socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
listener.settimeout(30)
stream, peer = listener.accept()
stream.settimeout(30)
digest, size = hashlib.sha256(), 0
while chunk := stream.recv(1 << 16):
    digest.update(chunk)
    size += len(chunk)
print(digest.hexdigest(), size)
"""

_SEND = """
import hashlib, os, socket, sys, time
stream = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[5]))
stream.settimeout(30)
digest, size = hashlib.sha256(), 0
until = time.monotonic() + float(sys.argv[4])
while size < int(sys.argv[3]) or time.monotonic() < until:
    chunk = os.urandom(1 << 16)
    stream.sendall(chunk)
    digest.update(chunk)
    size += len(chunk)
stream.close()
print(digest.hexdigest(), size)
"""


@dataclass(frozen=True)
class Host:
    """A namespace that has the far end of a function."""

    netns: str
    soc: str
    representor: str
    mac: str
    address: str
    port_id: str

    def ping(self, address: str) -> bool:
        """Whether one of three is answered: a tunnel may lose the first, while it looks for its peer's MAC."""
        command = in_netns(self.netns, ["ping", "-q", "-c3", "-i0.2", "-W1", address])
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def stream(
    source: Host, to: Host, *, port: int = 5001, size: int = 8 << 20, seconds: float = 0, connect_s: float = 5
) -> Iterator[subprocess.Popen[str]]:
    """A TCP stream of random bytes, running while the block does; at its end both sides' checksums must be equal."""
    receiver = subprocess.Popen(
        in_netns(to.netns, [sys.executable, "-c", _RECEIVE, to.address, str(port)]), stdout=subprocess.PIPE, text=True
    )
    sender = None
    try:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "listening\n"
        arguments = [to.address, str(port), str(size), str(seconds), str(connect_s)]
        sender = subprocess.Popen(
            in_netns(source.netns, [sys.executable, "-c", _SEND, *arguments]),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        yield sender
        sent, error = sender.communicate(timeout=60)
        if sender.returncode:
            raise ConnectionError(error.strip().splitlines()[-1])
        got, _ = receiver.communicate(timeout=60)
        assert got == sent
        assert int(got.split()[1]) >= size
    finally:
        for process in (receiver, sender):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def transfer(source: Host, to: Host, **options: Any) -> float:
    """Seconds that a checked TCP transfer took; ConnectionError if it could not be."""
    start = time.monotonic()
    with stream(source, to, **options):
        pass
    return time.monotonic() - start


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """This thread, and the threads it starts, in a network namespace, as the agent is in its SoC's."""
    with open("/proc/self/ns/net") as home:
        pyroute2.netns.setns(netns)
        try:
            yield
        finally:
            pyroute2.netns.setns(home.fileno())


async def online(binder: PortBinder) -> bool:
    return not any("ovsdb-server" in problem for problem in await binder.health())


async def eventually(what: str, check: Callable[[], Awaitable[object]], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not await check():
        assert time.monotonic() < deadline, f"no {what} within {timeout} s"
        await asyncio.sleep(0.005)


class Certificates:
    """A throw-away authority for mutual TLS between chassis and the southbound database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        self._sign("ca", self.name, self.key, is_ca=True)

    def issue(self, name: str) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        self._sign(name, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), key, is_ca=False)
        return TlsFiles(self.folder / "ca.pem", self.folder / f"{name}.pem", self.folder / f"{name}.key")

    def _sign(self, file: str, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> None:
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        (self.folder / f"{file}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / f"{file}.key").touch(mode=0o600)
        (self.folder / f"{file}.key").write_bytes(private)
