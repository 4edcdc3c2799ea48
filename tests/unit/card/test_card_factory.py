"""Cards by configuration, and the names of functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendpu.card.card import CardLimits, FunctionId
from opendpu.card.emulated.bus import disk_device, disk_id, node_name
from opendpu.card.factory import make_card
from opendpu.errors import InvalidArgumentError

SETTINGS = {"bus": "/run/x/card.qmp", "model": "M", "serial": "S"}


async def test_emulated_card_with_its_limits():
    card = make_card("emulated", {**SETTINGS, "driver": "emulated", "limits": {"slots": 4, "mtu_max": 1500}})
    info = await card.info()
    assert (info.driver, info.model, info.serial) == ("emulated", "M", "S")
    assert info.limits == CardLimits(slots=4, mtu_max=1500)


@pytest.mark.parametrize(
    ("driver", "change", "word"),
    [
        ("bluefield", {}, "driver"),
        ("emulated", {"bus": ""}, "bus"),
        ("emulated", {"serial": 5}, "serial"),
        ("emulated", {"limits": {"slots": -1}}, "slots"),
        ("emulated", {"limits": {"slots": True}}, "slots"),
        ("emulated", {"limits": {"slotz": 1}}, "slotz"),
        ("emulated", {"limits": 3}, "limits"),
    ],
)
async def test_bad_settings_name_the_key(driver, change, word):
    with pytest.raises(InvalidArgumentError, match=word):
        make_card(driver, {**SETTINGS, **change})


@given(st.text(max_size=20))
def test_any_text_is_a_representor_s_name_or_refused(text):
    try:
        function = FunctionId.parse(text)
    except InvalidArgumentError:
        return
    assert FunctionId.parse(function.representor) == function


@given(st.from_regex(r"[a-z0-9-]{1,48}", fullmatch=True))
def test_a_disk_s_names_in_qemu(id):
    assert disk_id(disk_device(id)) == id
    assert len(node_name(id)) <= 31
