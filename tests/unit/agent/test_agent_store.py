"""The store: durable, private, and clear about a file it can't use."""

import sqlite3
import stat

import pytest

from opendpu.agent.store import Record, Store
from opendpu.errors import FailedPreconditionError


def record(id="a", **values):
    return Record(
        **({"kind": "disk", "id": id, "generation": 1, "spec": b"x", "deleting": False} | values),
        allocation="pf0vf0",
        request_id="r",
        deadline_s=1.5,
    )


async def test_rows_survive_and_the_file_is_private(tmp_path):
    store = Store(tmp_path / "s" / "agent.db")
    await store.add(record())
    await store.add(record("b", deleting=True))
    await store.mark_deleting("disk", "a", 2, "r2")
    await store.write_note("k", "v")
    await store.remove("disk", "b")
    for file in (tmp_path / "s").glob("agent.db*"):
        if not file.name.endswith(".lock"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    await store.close()
    store = Store(tmp_path / "s" / "agent.db")
    (row,) = store.load()
    assert (row.generation, row.deleting, row.request_id, row.deadline_s) == (2, True, "r2", 1.5)
    assert store.read_note("k") == "v"
    assert await store.spec("disk", "a") == b"x"
    await store.close()


async def test_a_second_agent_is_refused(tmp_path):
    store = Store(tmp_path / "agent.db")
    with pytest.raises(FailedPreconditionError, match="in use by another agent"):
        Store(tmp_path / "agent.db")
    await store.close()


@pytest.mark.parametrize("damage", [b"this is no database, " * 400, None])
async def test_damage_is_named(tmp_path, damage):
    path = tmp_path / "agent.db"
    store = Store(path)
    for number in range(50):
        await store.add(record(str(number), spec=b"z" * 3000))
    await store.close()
    content = bytearray(path.read_bytes())
    content[8192:20000] = b"\xff" * (20000 - 8192)
    path.write_bytes(damage or bytes(content))
    with pytest.raises(FailedPreconditionError) as caught:
        Store(path)
    assert caught.value.reason == "StoreDamaged"
    assert str(path) in str(caught.value)


async def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "agent.db"
    await Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FailedPreconditionError) as caught:
        Store(path)
    assert caught.value.reason == "StoreTooNew"
