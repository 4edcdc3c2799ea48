"""Configuration files from the templates beside this module."""

import os
from importlib import resources
from pathlib import Path
from string import Template


def render(template: str, **values: object) -> str:
    """The template with its `$name`s filled in; a name without a value is an error (KeyError)."""
    text = (resources.files(__package__) / "templates" / template).read_text()
    return Template(text).substitute({name: str(value) for name, value in values.items()})


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only: a service that starts now reads the old or the new one."""
    aside = path.with_name(f"{path.name}.new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)
