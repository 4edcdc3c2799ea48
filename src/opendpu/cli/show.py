"""Results for people (tables) and for scripts (JSON), and progress on standard error."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

format_option = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format."
)


def show(rows: Sequence[Mapping[str, Any]], form: str, *, title: str = "") -> None:
    """Rows of equal keys as a table, or as a JSON array."""
    if form == "json":
        click.echo(json.dumps(list(rows), indent=2))
        return
    if not rows:
        click.echo("nothing to show")
        return
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console().print(table)


def stopwatch() -> Callable[[str], None]:
    """A progress line on standard error for each call, with the seconds since this function was called."""
    start = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{click.style(f'{time.monotonic() - start:6.1f} s', dim=True)}  {text}", err=True)

    return say


def _text(value: Any) -> str:
    if value is True or value is False:
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
