"""`opendpu-agent` over real mutual TLS: who gets in, what garbage does, what a restart keeps."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from opendpu.agent.store import Record, Store
from opendpu.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    OpenDPUError,
    ResourceExhaustedError,
    UnavailableError,
)
from opendpu.pki import Authority

PORT_ID = "11111111-1111-4111-8111-111111111111"
MAC = "52:54:00:00:00:01"


def credentials(soc, files=None):
    pair = (files.key.read_bytes(), files.certificate.read_bytes()) if files else (None, None)
    return grpc.ssl_channel_credentials(soc.files.ca.read_bytes(), *pair)


def test_conductor_is_served_and_knows_the_chassis(soc):
    with soc.client() as client:
        server = client.get_server()
        assert (server.chassis, server.chassis_id) == ("soc-1", "system-1")
        assert server.limits.slots > 0
        assert not server.healthy
        assert any("board" in problem for problem in server.problems)


def test_roles_over_the_wire(soc):
    with soc.client("observer") as observer:
        assert observer.list_interfaces() == []
        with pytest.raises(AccessDeniedError) as caught:
            observer.create_interface("a", port_id=PORT_ID, mac=MAC)
        assert caught.value.reason == "PermissionDenied"
        assert "observer" in str(caught.value)
    with soc.client("mesh") as mesh, pytest.raises(AccessDeniedError):
        mesh.list_disks()
    with soc.client(None) as nobody, pytest.raises(AccessDeniedError, match="no role"):
        nobody.get_server()


def test_no_certificate_or_one_of_another_ca_is_refused_in_the_handshake(soc, tmp_path):
    other = Authority(tmp_path / "other")
    with soc.client(authority=other) as stranger, pytest.raises(UnavailableError) as caught:
        stranger.get_server()
    assert caught.value.reason == "AgentUnreachable"
    channel = grpc.secure_channel(f"127.0.0.1:{soc.port}", credentials(soc))
    call = channel.unary_unary("/opendpu.agent.v1.Servers/GetServer")
    with channel, pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05ab", bytes(17 << 20)],
    ids=["tag", "length", "truncated", "too-long"],
)
def test_garbage_in_a_message_is_an_error_and_the_agent_lives(soc, garbage):
    files = soc.authority.issue("client-conductor", role="conductor")
    options = [("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(f"127.0.0.1:{soc.port}", credentials(soc, files), options) as channel:
        call = channel.unary_unary("/opendpu.agent.v1.Interfaces/CreateInterface")
        with pytest.raises(grpc.RpcError) as caught:
            call(garbage, timeout=10)
        too_long = len(garbage) > 16 << 20
        expected = grpc.StatusCode.RESOURCE_EXHAUSTED if too_long else grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.code() is expected
    with soc.client() as client:
        assert client.list_interfaces() == []


def test_garbage_on_the_sockets_leaves_the_agent_alive(soc):
    for content in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(5000), b"\x16\x03\x01\xff\xff" + os.urandom(900)):
        with socket.create_connection(("127.0.0.1", soc.port)) as raw:
            raw.sendall(content)
    context = ssl.create_default_context(cafile=str(soc.files.ca))
    files = soc.authority.issue("client-conductor", role="conductor")
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", soc.port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
    ):
        wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(3000))
    with soc.client() as client:
        assert client.get_server().chassis == "soc-1"


def test_bad_requests_come_back_as_the_right_errors(soc):
    with soc.client() as client:
        with pytest.raises(InvalidArgumentError, match="mac"):
            client.create_interface("a", port_id=PORT_ID, mac="zz")
        with pytest.raises(NotFoundError):
            client.create_disk("d", volume_id="none")
        with pytest.raises(NotFoundError):
            client.create_volume("v", image="none")
        with pytest.raises(NotFoundError):
            client.get_interface("none")
        assert client.delete_interface("none").id == "none"
        client.create_interface("a", port_id=PORT_ID, mac=MAC)
        with pytest.raises(AlreadyExistsError) as caught:
            client.create_interface("b", port_id=PORT_ID.replace("1111-4", "2222-4"), mac=MAC.upper())
        assert caught.value.reason == "DuplicateMac"
        with pytest.raises(DeadlineError, match="WaitingForBus"):
            client.wait_ready(interfaces=["a"], timeout=0.5)
        client.delete_interface("a")
        client.wait_deleted(interfaces=["a"], timeout=5)


def test_desired_state_survives_kill_and_a_waiter_outlives_it(soc):
    with soc.client() as client:
        client.create_interface("k", port_id=PORT_ID, mac=MAC)
        client.create_volume("kv", size_bytes=1 << 20)
        client.create_disk("kd", volume_id="kv")
        failures = []

        def wait():
            try:
                with soc.client() as waiter:
                    waiter.wait_deleted(interfaces=["k"], disks=["kd"], timeout=40)
            except OpenDPUError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        soc.stop("agent", signal.SIGKILL)
        soc.start_agent()
        assert [each.id for each in client.list_interfaces()] == ["k"]
        assert client.get_disk("kd").spec.volume_id == "kv"
        client.delete_interface("k")
        client.delete_disk("kd")
        thread.join(45)
        assert not failures
        client.delete_volume("kv")


def test_a_call_outlives_a_restart(soc):
    """As a deployment must: a call that comes while nobody listens is made when the agent is back."""
    with soc.client() as client:
        client.get_server()
        soc.stop("agent", signal.SIGKILL)
        thread = threading.Timer(0.5, soc.launch_agent)
        thread.start()
        assert client.create_volume("r", size_bytes=1 << 20).id == "r"
        client.delete_volume("r")
        thread.join()


def test_an_agent_that_stays_away_is_named_soon(soc):
    with soc.client() as client:
        soc.stop("agent", signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{soc.port}") as caught:
            client.get_server()
        assert caught.value.reason == "AgentUnreachable"
        assert time.monotonic() - began < 10
    soc.start_agent()


def test_sigterm_ends_watches_and_stops_at_once(soc):
    with soc.client() as client:
        stream = client.watch_server(30)
        next(stream)
        began = time.monotonic()
        assert soc.stop("agent") == 0
        assert time.monotonic() - began < 6
        with pytest.raises(UnavailableError):
            list(stream)
    soc.start_agent()


def test_the_agent_at_rest(soc):
    with soc.client() as client:
        client.get_server()
    pid = soc.processes["agent"].pid

    def cpu_s():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(2)
    before = cpu_s()
    time.sleep(10)
    used = cpu_s() - before
    rss_kib = resident_kib(pid)
    print(f"agent at rest: RSS {rss_kib / 1024:.1f} MiB, CPU {used:.3f} s in 10 s")
    assert rss_kib * 1024 < 80e6
    assert used < 0.1


def resident_kib(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def test_watchers_that_do_not_read_cost_the_agent_no_memory(soc):
    pid = soc.processes["agent"].pid
    files = soc.authority.issue("client-conductor", role="conductor")
    with soc.client() as client, contextlib.ExitStack() as stack:

        def change(times):
            for _ in range(times):
                client.create_interface("w", port_id=PORT_ID, mac=MAC)
                client.delete_interface("w")
                client.wait_deleted(interfaces=["w"], timeout=10)

        change(20)  # what is loaded at first use
        client.create_interface("seen", port_id=PORT_ID.replace("1111-4", "2222-4"), mac="52:54:00:00:00:02")
        streams = []
        for _ in range(30):
            channel = stack.enter_context(grpc.secure_channel(f"127.0.0.1:{soc.port}", credentials(soc, files)))
            watch = channel.unary_stream("/opendpu.agent.v1.Interfaces/WatchInterfaces")
            streams.append(watch(b"", timeout=120))
        for stream in streams:
            stream.initial_metadata()  # comes with the first event: the watch is there
        before = resident_kib(pid)
        change(150)
        grown = resident_kib(pid) - before
        print(f"30 silent watchers, 450 changes each: {grown} KiB")
        assert grown < 8 << 10
        for stream in streams:
            assert stream.is_active()
            stream.cancel()
        client.delete_interface("seen")


def test_metrics_tell_of_calls_and_resources(soc):
    def read():
        with urllib.request.urlopen(f"http://127.0.0.1:{soc.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}

    refused = 'opendpu_agent_rpcs_total{code="NOT_FOUND",method="/opendpu.agent.v1.Disks/GetDisk"}'
    with soc.client() as client:
        before = read()
        with pytest.raises(NotFoundError):
            client.get_disk("none")
        client.create_interface("m", port_id=PORT_ID, mac=MAC)
        now = read()
        assert now[refused] == before.get(refused, 0) + 1
        assert now['opendpu_agent_resources{kind="interface",state="pending"}'] == 1
        assert now["opendpu_agent_healthy"] == 0  # there is no board
        client.delete_interface("m")
        client.wait_deleted(interfaces=["m"], timeout=5)
        assert read()['opendpu_agent_resources{kind="interface",state="pending"}'] == 0
        assert read()['opendpu_agent_reconcile_seconds_count{kind="interface"}'] > 0


async def _fill(path: Path) -> None:
    store = Store(path)
    await store.add(Record("disk", "a", 1, bytes(1000), False, "", "", 1.0))
    with pytest.raises(ResourceExhaustedError) as caught:
        await store.add(Record("disk", "big", 1, os.urandom(2 << 20), False, "", "", 1.0))
    assert caught.value.reason == "StoreFull"
    assert [each.id for each in store.load()] == ["a"]
    await store.remove("disk", "a")
    await store.close()
    store = Store(path)
    assert store.load() == []
    await store.close()


def test_a_full_disk_refuses_the_write_and_keeps_the_rest(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "ot-small", tmp_path], check=True)
    try:
        asyncio.run(_fill(tmp_path / "agent.db"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
