"""Configuration files from the templates beside this module."""

from importlib import resources
from string import Template


def render(template: str, **values: object) -> str:
    """The template with its `$name`s filled in; a name without a value is an error (KeyError)."""
    text = (resources.files(__package__) / "templates" / template).read_text()
    return Template(text).substitute({name: str(value) for name, value in values.items()})
