"""Cards by the name of their driver."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from opendpu.card.card import Card, CardLimits
from opendpu.card.emulated.card import EmulatedCard
from opendpu.errors import InvalidArgumentError


def make_card(driver: str, settings: Mapping[str, Any]) -> Card:
    """Make a card from the [card] table of the agent's configuration. Raises InvalidArgumentError naming the key."""
    if driver != "emulated":
        raise InvalidArgumentError(f"[card] driver = {driver!r}: there is no such driver; this release has: emulated")
    texts = {key: _text(settings, key) for key in ("bus", "model", "serial")}
    return EmulatedCard(**texts, limits=_limits(settings.get("limits", {})))


def _text(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"[card] {key} must be a text that is not empty")
    return value


def _limits(table: object) -> CardLimits:
    known = {field.name for field in fields(CardLimits)}
    if not isinstance(table, Mapping):
        raise InvalidArgumentError("[card.limits] must be a table")
    for key, value in table.items():
        if key not in known:
            raise InvalidArgumentError(f"[card.limits] {key}: unknown; known are {', '.join(sorted(known))}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidArgumentError(f"[card.limits] {key} must be a whole number, 0 or more")
    return CardLimits(**table)
