# ruff: noqa: N802 (gRPC and http.server name the methods)
"""A real all-in-one Ironic with this project's hardware type, between twins of what it talks to: the agent (its gRPC
API with mutual TLS), a BMC (sushy-tools' Redfish emulator) and Neutron's ports. The twins hold state and speak the real
protocols; OVN, storage and a host that boots are the end-to-end tests' part."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import werkzeug.serving
from sushy_tools.emulator import main as sushy_emulator
from sushy_tools.emulator.resources.systems.fakedriver import FakeDriver

from opendpu import pki
from opendpu.agent.v1 import agent_pb2 as pb
from opendpu.agent.v1 import agent_pb2_grpc as rpc

CHASSIS = "dpu-chassis-1"
SYSTEM = "5f5a6d0e-6a0f-4b5d-8d5e-1f1d6c3e0a01"
NETWORK = "7c1b8a52-3b0c-4c6e-9e0d-3f0b6f3d7a10"


class AgentTwin(rpc.InterfacesServicer, rpc.DisksServicer, rpc.VolumesServicer, rpc.ServersServicer):
    """Everything becomes ready at once. `boots` is what its host does when powered on: "network", "disk", "nothing"."""

    def __init__(self, credentials: pki.Credentials, port: int = 0) -> None:
        self.credentials = credentials
        self.port = port
        self.reset()

    def reset(self) -> None:
        self.interfaces: dict[str, pb.Interface] = {}
        self.disks: dict[str, pb.Disk] = {}
        self.volumes: dict[str, pb.Volume] = {}
        self.config_drives: list[bytes] = []
        self.images = {"debian": 2 << 30}
        self.functions = 8
        self.boots = "network"
        self.calls: list[str] = []
        self.server = pb.Server(
            chassis=CHASSIS, card_driver="emulated", card_model="twin", card_serial="T-1", power=pb.POWER_OFF,
            healthy=True, limits=pb.Limits(pfs=2, vfs_per_pf=8, sfs_per_pf=8, slots=16, mtu_max=9000),
        )  # fmt: skip
        self.changed = threading.Condition()

    def start(self) -> None:
        self.grpc = grpc.server(ThreadPoolExecutor(32))
        rpc.add_InterfacesServicer_to_server(self, self.grpc)
        rpc.add_DisksServicer_to_server(self, self.grpc)
        rpc.add_VolumesServicer_to_server(self, self.grpc)
        rpc.add_ServersServicer_to_server(self, self.grpc)
        key_and_chain = (self.credentials.key.read_bytes(), self.credentials.certificate.read_bytes())
        tls = grpc.ssl_server_credentials([key_and_chain], self.credentials.ca.read_bytes(), require_client_auth=True)
        self.port = self.grpc.add_secure_port(f"127.0.0.1:{self.port}", tls)
        self.grpc.start()

    def stop(self) -> None:
        self.grpc.stop(0).wait()

    def power(self, on: bool) -> None:
        """What the card sees of its host, called by the BMC."""
        with self.changed:
            self.calls.append("power-on" if on else "power-off")
            self.server.power = pb.POWER_ON if on else pb.POWER_OFF
            for field in ("powered_on", "first_disk_read", "first_packet"):
                self.server.ClearField(field)
            self.server.boot_disk_bytes_read = 0
            self.server.first_packet_seen = False
            if on:
                self.server.powered_on.GetCurrentTime()
                if self.boots != "nothing" and any(disk.spec.boot for disk in self.disks.values()):
                    self.server.boot_disk_bytes_read = 4 << 20
                    self.server.first_disk_read.GetCurrentTime()
                    if self.boots == "network" and self.interfaces:
                        self.server.first_packet_seen = True
                        self.server.first_packet.GetCurrentTime()
            self.changed.notify_all()

    @staticmethod
    def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, text: str) -> None:
        context.set_trailing_metadata((("opendpu-reason", reason),))
        context.abort(code, text)

    @staticmethod
    def _ready() -> pb.Status:
        status = pb.Status(state=pb.STATE_READY, observed_generation=1, stages=[pb.Stage(name="ready")])
        status.stages[0].ended.GetCurrentTime()
        return status

    def _put(self, kind: str, store: dict[str, Any], resource: Any, context: grpc.ServicerContext) -> Any:
        with self.changed:
            self.calls.append(f"create-{kind}")
            old = store.get(resource.id)
            if old is not None and old.spec != resource.spec:
                self._refuse(context, grpc.StatusCode.ALREADY_EXISTS, "AlreadyExists", f"{kind} {resource.id} differs")
            store.setdefault(resource.id, resource)
            self.changed.notify_all()
            return store[resource.id]

    def _drop(self, kind: str, store: dict[str, Any], id: str) -> Any:
        with self.changed:
            self.calls.append(f"delete-{kind}")
            gone = store.pop(id, None)
            self.changed.notify_all()
            return gone

    def _watch(self, store: dict[str, Any], ids: list[str], event: Callable[..., Any], context: Any) -> Iterator[Any]:
        told: dict[str, Any] = {}
        first = True
        while context.is_active():
            with self.changed:
                if not first and store == told:
                    self.changed.wait(0.5)
                now = dict(store)
            for name in ids or sorted(set(now) | set(told)):
                if name in now and (first or told.get(name) != now[name]):
                    yield event(False, now[name])
                elif name not in now and (first or name in told):
                    yield event(True, name)
            told, first = now, False

    def CreateInterface(self, request: Any, context: Any) -> pb.Interface:
        if len(self.interfaces) >= self.functions and request.id not in self.interfaces:
            text = "the card has no free VF: delete an interface first"
            self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "NoFreeFunction", text)
        new = pb.Interface(id=request.id, generation=1, spec=request.spec, status=self._ready(), representor="pf0vf0")
        return self._put("interface", self.interfaces, new, context)

    def GetInterface(self, request: Any, context: Any) -> pb.Interface:
        return self.interfaces[request.id]

    def DeleteInterface(self, request: Any, context: Any) -> pb.Interface:
        return self._drop("interface", self.interfaces, request.id) or pb.Interface(id=request.id)

    def ListInterfaces(self, request: Any, context: Any) -> pb.ListInterfacesResponse:
        return pb.ListInterfacesResponse(interfaces=list(self.interfaces.values()))

    def WatchInterfaces(self, request: Any, context: Any) -> Iterator[pb.InterfaceEvent]:
        def event(deleted: bool, item: Any) -> pb.InterfaceEvent:
            return pb.InterfaceEvent(deleted=deleted, interface=pb.Interface(id=item) if deleted else item)

        return self._watch(self.interfaces, list(request.ids), event, context)

    def CreateDisk(self, request: Any, context: Any) -> pb.Disk:
        spec = pb.DiskSpec()
        spec.CopyFrom(request.spec)
        if spec.WhichOneof("source") == "config_drive":
            self.config_drives.append(spec.config_drive)
            spec.ClearField("config_drive")
        elif spec.volume_id not in self.volumes:
            text = f"the pool has no volume {spec.volume_id!r}: create it first"
            self._refuse(context, grpc.StatusCode.NOT_FOUND, "VolumeNotFound", text)
        new = pb.Disk(id=request.id, generation=1, spec=spec, status=self._ready())
        return self._put("disk", self.disks, new, context)

    def GetDisk(self, request: Any, context: Any) -> pb.Disk:
        return self.disks[request.id]

    def DeleteDisk(self, request: Any, context: Any) -> pb.Disk:
        return self._drop("disk", self.disks, request.id) or pb.Disk(id=request.id)

    def ListDisks(self, request: Any, context: Any) -> pb.ListDisksResponse:
        return pb.ListDisksResponse(disks=list(self.disks.values()))

    def WatchDisks(self, request: Any, context: Any) -> Iterator[pb.DiskEvent]:
        def event(deleted: bool, item: Any) -> pb.DiskEvent:
            return pb.DiskEvent(deleted=deleted, disk=pb.Disk(id=item) if deleted else item)

        return self._watch(self.disks, list(request.ids), event, context)

    def CreateVolume(self, request: Any, context: Any) -> pb.Volume:
        if request.spec.image and request.spec.image not in self.images:
            text = f"the pool has no image {request.spec.image!r}: add it with `opendpu image add`"
            self._refuse(context, grpc.StatusCode.NOT_FOUND, "ImageNotFound", text)
        return self._put("volume", self.volumes, pb.Volume(id=request.id, spec=request.spec), context)

    def DeleteVolume(self, request: Any, context: Any) -> pb.DeleteVolumeResponse:
        if any(disk.spec.volume_id == request.id for disk in self.disks.values()):
            self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "InUse", "a disk uses the volume")
        self._drop("volume", self.volumes, request.id)
        return pb.DeleteVolumeResponse()

    def GetServer(self, request: Any, context: Any) -> pb.Server:
        return self.server

    def WatchServer(self, request: Any, context: Any) -> Iterator[pb.Server]:
        told = None
        while context.is_active():
            with self.changed:
                if told == self.server:
                    self.changed.wait(0.5)
                now = pb.Server()
                now.CopyFrom(self.server)
            if now != told:
                yield now
                told = now


class BmcSystems(FakeDriver):
    """sushy-tools' own system without its random delays, joined to the card as a real host's power is."""

    def __init__(self, twin: AgentTwin) -> None:
        super().__init__()
        self.twin = twin
        self.bios_resets = 0

    def set_power_state(self, identity: str, state: str) -> None:
        on = "Off" not in state and "Shutdown" not in state
        self._update(identity, power_state="On" if on else "Off", pending_power=None)
        self.twin.power(on)

    def get_total_memory(self, identity: str) -> int:
        return 4

    def get_total_cpus(self, identity: str) -> int:
        return 2

    def get_bios(self, identity: str) -> dict[str, str]:
        return {"BootMode": "Uefi"}

    def reset_bios(self, identity: str) -> None:
        self.bios_resets += 1


class NeutronTwin:
    """Ports and one network. A port binds to CHASSIS alone, as ML2/OVN does with one live chassis."""

    def __init__(self) -> None:
        self.ports: dict[str, dict[str, Any]] = {}
        twin = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, code: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _port(self) -> dict[str, Any] | None:
                return twin.ports.get(self.path.rstrip("/").rpartition("/")[2])

            def do_GET(self) -> None:
                if self.path.rstrip("/") in ("", "/v2.0"):
                    host = f"http://{self.headers['Host']}"
                    version = {"id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": f"{host}/v2.0/"}]}
                    self._answer(200, {"versions": [version], "resources": []})
                elif "/networks/" in self.path:
                    self._answer(200, {"network": {"id": NETWORK, "name": "net", "mtu": 1442}})
                elif (port := self._port()) is not None:
                    self._answer(200, {"port": port})
                else:
                    self._answer(404, {"NeutronError": {"type": "PortNotFound", "message": self.path, "detail": ""}})

            def do_PUT(self) -> None:
                port = self._port()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["port"]
                if port is None:
                    self._answer(404, {"NeutronError": {"type": "PortNotFound", "message": self.path, "detail": ""}})
                    return
                port.update(body)
                host, kind = port["binding:host_id"], port["binding:vnic_type"]
                bound = "ovs" if host == CHASSIS and kind == "normal" else "binding_failed"
                port["binding:vif_type"] = bound if host else "unbound"
                self._answer(200, {"port": port})

            def log_message(self, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def port(self, mac: str) -> str:
        port_id = str(uuid.uuid4())
        self.ports[port_id] = {
            "id": port_id, "network_id": NETWORK, "mac_address": mac, "fixed_ips": [], "binding:host_id": "",
            "binding:vnic_type": "normal", "binding:vif_type": "unbound", "binding:profile": {},
        }  # fmt: skip
        return port_id


IRONIC_CONF = """
[DEFAULT]
auth_strategy = noauth
rpc_transport = none
host = ot-conductor
state_path = {folder}
log_file = {folder}/ironic.log
debug = true
enabled_hardware_types = dpu
enabled_boot_interfaces = dpu
enabled_deploy_interfaces = dpu
enabled_inspect_interfaces = dpu
enabled_network_interfaces = dpu,noop
enabled_storage_interfaces = dpu,noop
enabled_power_interfaces = redfish
enabled_management_interfaces = redfish
enabled_bios_interfaces = no-bios
enabled_console_interfaces = no-console
enabled_raid_interfaces = no-raid
enabled_rescue_interfaces = no-rescue
enabled_firmware_interfaces = no-firmware
enabled_vendor_interfaces = dpu
default_storage_interface = dpu
default_network_interface = dpu
[api]
host_ip = 127.0.0.1
port = {port}
[database]
connection = sqlite:///{folder}/ironic.sqlite
[conductor]
automated_clean = true
[dhcp]
dhcp_provider = none
[service_catalog]
auth_type = none
endpoint_override = http://127.0.0.1:{port}
[neutron]
auth_type = none
endpoint_override = {neutron}
[oslo_concurrency]
lock_path = {folder}/lock
"""


@dataclass
class Ironic:
    """The API's few calls that the tests make. A client program costs seconds to start."""

    url: str
    log: Path

    def __call__(self, method: str, path: str, body: Any = None, *, ok: bool = True) -> Any:
        headers = {"X-OpenStack-Ironic-API-Version": "1.90"}
        answer = requests.request(method, f"{self.url}/v1/{path}", json=body, headers=headers, timeout=90)
        if not ok:
            return answer
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}\n{self.log.read_text()[-3000:]}"
        return answer.json() if answer.content else None

    def provision(self, node: str, target: str, *until: str, timeout: float = 60, **body: Any) -> dict[str, Any]:
        self("PUT", f"nodes/{node}/states/provision", {"target": target, **body})
        return self.wait(node, *until, timeout=timeout)

    def wait(self, node: str, *states: str, timeout: float = 60) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            shown: dict[str, Any] = self("GET", f"nodes/{node}")
            if shown["provision_state"] in states and not shown["reservation"]:
                return shown
            stopped = "fail" in shown["provision_state"] or not shown["target_provision_state"]
            if shown["last_error"] and stopped and not shown["reservation"]:
                break
            time.sleep(0.05)
        raise AssertionError(f"{shown['provision_state']} not {states}: {shown['last_error']}\n{_tail(self.log)}")


def _tail(log: Path) -> str:
    return log.read_text()[-6000:] if log.exists() else "no log"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"ot-{os.getpid()}-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def credentials(folder: Path) -> tuple[pki.Credentials, pki.Credentials]:
    """The agent's and the conductor's."""
    authority = pki.Authority(folder / "pki")
    agent = authority.issue("agent", dns=["localhost"], ips=["127.0.0.1"])
    return agent, authority.issue("conductor", role="conductor")


@pytest.fixture(scope="session")
def _agent(credentials: tuple[pki.Credentials, pki.Credentials]) -> Iterator[AgentTwin]:
    twin = AgentTwin(credentials[0])
    twin.start()
    yield twin
    twin.stop()


@pytest.fixture(scope="session")
def neutron() -> Iterator[NeutronTwin]:
    twin = NeutronTwin()
    yield twin
    twin.http.shutdown()
    twin.http.server_close()


@pytest.fixture(scope="session")
def bmc(_agent: AgentTwin, folder: Path) -> Iterator[BmcSystems]:
    app = sushy_emulator.app
    system = {"uuid": SYSTEM, "name": "host", "power_state": "Off", "nics": []}
    (folder / "bmc").mkdir()
    config = {"SUSHY_EMULATOR_FAKE_SYSTEMS": [system], "SUSHY_EMULATOR_STATE_DIR": str(folder / "bmc")}
    app.configure(extra_config=config)
    BmcSystems.initialize(app.config, app.logger)
    systems = BmcSystems(_agent)
    type(app).systems = systems  # type: ignore[assignment]
    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
    systems.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield systems
    server.shutdown()


@pytest.fixture(scope="session")
def ironic(folder: Path, neutron: NeutronTwin) -> Iterator[Ironic]:
    config = folder / "ironic.conf"
    port = free_port()
    config.write_text(IRONIC_CONF.format(folder=folder, port=port, neutron=neutron.url))
    programs = Path(sys.executable).parent
    command = [programs / "ironic-dbsync", "--config-file", config, "create_schema"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    out = (folder / "ironic.out").open("wb")
    process = subprocess.Popen([programs / "ironic", "--config-file", config], stdout=out, stderr=out)
    try:
        api = Ironic(f"http://127.0.0.1:{port}", folder / "ironic.log")
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, f"Ironic ended: {(folder / 'ironic.out').read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"Ironic does not answer: {_tail(api.log)}"
            try:
                if any(driver["name"] == "dpu" for driver in api("GET", "drivers")["drivers"]):
                    break
            except (requests.ConnectionError, AssertionError):
                time.sleep(0.2)
        yield api
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        out.close()


@pytest.fixture
def agent(_agent: AgentTwin) -> AgentTwin:
    """The twin, empty."""
    _agent.reset()
    return _agent


class Nodes:
    """Enrols a node, which with Ironic's 600000 rounds over the BMC's password at each call takes seconds, and gives it
    out again as long as tests leave it available."""

    def __init__(self, ironic: Ironic, bmc: BmcSystems, client: pki.Credentials, agent: AgentTwin) -> None:
        self._ironic = ironic
        self._node = ""
        self._info = {
            "redfish_address": bmc.url,  # type: ignore[attr-defined]
            "redfish_system_id": f"/redfish/v1/Systems/{SYSTEM}",
            "redfish_verify_ca": False,
            "redfish_auth_type": "basic",
            "redfish_username": "admin",
            "redfish_password": "not-asked-for",
            "dpu_agent_address": f"127.0.0.1:{agent.port}",
            "dpu_agent_ca": str(client.ca),
            "dpu_agent_certificate": str(client.certificate),
            "dpu_agent_key": str(client.key),
            "dpu_boot_timeout": "3",
        }

    def lend(self) -> str:
        """An available node with no trace of an earlier test."""
        if self._node and not self._as_new():
            self._ironic("PUT", f"nodes/{self._node}/maintenance", {"reason": "a test left it in disorder"})
            self._ironic("DELETE", f"nodes/{self._node}")
            self._node = ""
        if not self._node:
            self._node = self._enrol()
        return self._node

    def _enrol(self) -> str:
        node = {"driver": "dpu", "driver_info": self._info, "resource_class": "dpu"}
        uuid: str = self._ironic("POST", "nodes", node)["uuid"]
        self._ironic.provision(uuid, "manage", "manageable")
        self._ironic.provision(uuid, "inspect", "manageable")
        self._ironic.provision(uuid, "provide", "available")
        return uuid

    def _as_new(self) -> bool:
        shown = self._ironic("GET", f"nodes/{self._node}")
        if shown["provision_state"] != "available" or shown["maintenance"] or shown["reservation"]:
            return False
        # First of all: without these Ironic answers nothing about the node's VIFs.
        patch = {"op": "replace", "path": "/driver_info", "value": self._info}
        self._ironic("PATCH", f"nodes/{self._node}", [patch])
        if self._ironic("GET", f"nodes/{self._node}/vifs")["vifs"]:
            return False
        for target in self._ironic("GET", f"volume/targets?node={self._node}")["targets"]:
            self._ironic("DELETE", f"volume/targets/{target['uuid']}")
        return True


@pytest.fixture(scope="session")
def nodes(
    ironic: Ironic, bmc: BmcSystems, _agent: AgentTwin, credentials: tuple[pki.Credentials, pki.Credentials]
) -> Nodes:
    return Nodes(ironic, bmc, credentials[1], _agent)


@pytest.fixture
def node(ironic: Ironic, agent: AgentTwin, bmc: BmcSystems, neutron: NeutronTwin, nodes: Nodes) -> str:
    """An available node with a system disk to be cloned from image `debian`."""
    bmc._update(SYSTEM, power_state="Off")
    neutron.ports.clear()
    uuid = nodes.lend()
    agent.calls.clear()
    target = {"node_uuid": uuid, "volume_type": "dpu", "volume_id": "system-1", "boot_index": 0}
    ironic("POST", "volume/targets", {**target, "properties": {"image": "debian", "size_gib": 4}})
    return uuid
