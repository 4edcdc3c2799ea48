"""The BMC, driven by the client that Ironic uses."""

import base64
import datetime
import ipaddress
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import sushy
import sushy.auth
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rack import Program, Rack, wait_for

from opendpu.lab.bmc import htpasswd_line

PASSWORD = "correct horse"


def make_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bmc")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False).sign(key, hashes.SHA256())
    (folder / "bmc.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "bmc.key").write_bytes(private)


@pytest.fixture
def url(rack: Rack) -> Iterator[str]:
    make_certificate(rack.folder)
    (rack.folder / "htpasswd").write_text(htpasswd_line("admin", PASSWORD))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = rack.folder / "bmc.toml"
    config.write_text(
        f'name="{rack.name}"\nuuid="{rack.uuid}"\nvcpus=2\nmemory_mib={rack.memory_mib}\nqmp="{rack.bmc_qmp}"\n'
        f'ram_file="{rack.ram_file}"\nconsole_log="{rack.console_log}"\nlisten="127.0.0.1"\nport={port}\ncertificate="{rack.folder}/bmc.pem"\n'
        f'key="{rack.folder}/bmc.key"\nauth_file="{rack.folder}/htpasswd"\nstate_dir="{rack.folder}/bmc"\n'
    )
    bmc = Program(sys.executable, "-m", "opendpu.lab.bmc", "--config", str(config), log=rack.folder / "bmc.out")
    rack.programs["bmc"] = bmc

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    bmc.wait_for(listens, "the BMC's port")
    return f"https://127.0.0.1:{port}"


def connect(url: str, rack: Rack, password: str = PASSWORD) -> sushy.Sushy:
    return sushy.Sushy(
        url, verify=str(rack.folder / "bmc.pem"), auth=sushy.auth.BasicAuth(username="admin", password=password)
    )


@pytest.fixture
def system(url, rack):
    return connect(url, rack).get_system(f"/redfish/v1/Systems/{rack.uuid}")


def power_of(system) -> str:
    system.refresh(force=True)
    return system.power_state.value


def test_what_the_system_is(system, rack):
    assert (system.uuid, system.name) == (rack.uuid, rack.name)
    assert system.boot.mode is sushy.BOOT_SOURCE_MODE_UEFI
    assert system.boot.target is sushy.BOOT_SOURCE_TARGET_HDD
    assert system.bios is not None
    assert power_of(system) == "Off"


def test_power_by_each_reset_type_and_memory_is_gone(system, rack):
    for on in (sushy.RESET_ON, sushy.RESET_FORCE_ON):
        system.reset_system(on)
        assert power_of(system) == "On"
        wait_for(lambda: not rack.memory_is_blank(), "firmware to use its memory")
        system.reset_system(sushy.RESET_FORCE_OFF)
        assert power_of(system) == "Off"
        assert rack.memory_is_blank()
        assert rack.ram_file.stat().st_mode & 0o777 == 0o600
    system.reset_system(sushy.RESET_FORCE_RESTART)
    assert power_of(system) == "On"
    system.reset_system(sushy.RESET_GRACEFUL_SHUTDOWN)  # firmware does not hear it
    assert power_of(system) == "On"


def test_boot_device_and_what_the_board_does_not_have(system):
    system.set_system_boot_options(sushy.BOOT_SOURCE_TARGET_PXE, enabled=sushy.BOOT_SOURCE_ENABLED_ONCE)
    system.refresh(force=True)
    assert system.boot.target is sushy.BOOT_SOURCE_TARGET_PXE
    system.set_system_boot_options(sushy.BOOT_SOURCE_TARGET_HDD, enabled=sushy.BOOT_SOURCE_ENABLED_CONTINUOUS)
    with pytest.raises(sushy.exceptions.BadRequestError):
        system.set_system_boot_options(sushy.BOOT_SOURCE_TARGET_CD)


def test_unknown_reset_type_says_what_there_is(url, rack):
    answer = requests.post(
        f"{url}/redfish/v1/Systems/{rack.uuid}/Actions/ComputerSystem.Reset",
        json={"ResetType": "Explode"},
        auth=("admin", PASSWORD),
        verify=str(rack.folder / "bmc.pem"),
        timeout=10,
    )
    assert answer.status_code == 400
    assert "ForceOff" in answer.text


def test_wrong_password_is_refused(url, rack):
    with pytest.raises(sushy.exceptions.AccessError):
        connect(url, rack, "wrong").get_system(f"/redfish/v1/Systems/{rack.uuid}")


def test_a_client_that_says_nothing_does_not_stop_the_others(url, rack, system):
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)):
        assert power_of(system) == "Off"
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(base64.b64decode("AAECAw==") * 100)  # no TLS
        assert power_of(system) == "Off"


def test_old_tls_is_refused(url):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        context.wrap_socket(raw)


def test_bmc_survives_its_board(system, rack):
    system.reset_system(sushy.RESET_ON)
    rack.programs["board"].stop()
    rack.start_board()
    assert power_of(system) == "Off"
    system.reset_system(sushy.RESET_ON)
    assert power_of(system) == "On"


def test_reset_bios_gives_the_next_tenant_fresh_uefi_variables(system, rack):
    variables = rack.folder / "state/vars.fd"
    template = variables.read_bytes()
    system.reset_system(sushy.RESET_ON)
    wait_for(lambda: variables.read_bytes() != template, "firmware to write variables", timeout=60)
    system.reset_system(sushy.RESET_FORCE_OFF)
    board = rack.programs["board"]

    # The supervisor: starts the board again when it ends.
    def supervise() -> None:
        board.process.wait(timeout=30)
        rack.start_board()

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    system.bios.reset_bios()
    supervisor.join()
    assert variables.read_bytes() == template
    assert variables.stat().st_mode & 0o777 == 0o600
    begin = time.monotonic()
    system.reset_system(sushy.RESET_ON)
    assert power_of(system) == "On"
    assert time.monotonic() - begin < 10
