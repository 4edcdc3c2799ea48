"""The board's configuration and the command made from it."""

import pytest

from opendpu.errors import InvalidArgumentError
from opendpu.lab.board import BoardConfig, command, prepare, read_config

GOOD = {
    "name": "s1",
    "uuid": "4c4c4544-0000-2010-8020-b0c04f0000aa",
    "serial": "SN1",
    "vcpus": 2,
    "memory_mib": 128,
    "slots": 10,
    "run_dir": "/run/x",
    "state_dir": "/var/x",
    "ram_file": "/dev/shm/x.ram",
}


def write(path, table):
    lines = (f"{key} = {value!r}" if isinstance(value, int) else f'{key} = "{value}"' for key, value in table.items())
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a,b"},
        {"serial": "x,readonly=on"},
        {"uuid": "none"},
        {"vcpus": 0},
        {"memory_mib": 1},
        {"slots": 65},
        {"accel": "magic"},
        {"run_dir": "/run/" + "x" * 100},
        {"vcpus": "2"},
        {"colour": "blue"},
    ],
    ids=str,
)
def test_bad_configuration_is_refused(tmp_path, change):
    with pytest.raises(InvalidArgumentError):
        read_config(write(tmp_path / "board.toml", {**GOOD, **change}))


def test_command_has_every_slot_and_quotes_commas(tmp_path):
    config = read_config(write(tmp_path / "board.toml", {**GOOD, "state_dir": "/var/a,b"}))
    words = command(config)
    ports = [word for word in words if word.startswith("pcie-root-port")]
    assert len(ports) == config.slots
    assert sum("multifunction=on" in port for port in ports) == 2
    assert any("file=/var/a,,b/vars.fd" in word for word in words)
    assert words[words.index("-accel") + 1].startswith("tcg")


def test_memory_starts_empty_and_variables_are_kept(tmp_path):
    ram = tmp_path / "ram"
    ram.write_bytes(b"the last tenant's secret")
    config = BoardConfig(
        **{**GOOD, "run_dir": str(tmp_path / "run"), "state_dir": str(tmp_path / "state"), "ram_file": str(ram)}
    )
    prepare(config)
    assert ram.stat().st_size == 128 << 20
    assert ram.stat().st_mode & 0o777 == 0o600
    assert b"secret" not in ram.read_bytes()[:4096]
    config.varstore.write_bytes(b"changed")
    prepare(config)
    assert config.varstore.read_bytes() == b"changed"
