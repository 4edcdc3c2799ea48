"""The documents are true where a machine can tell: links, commands, paths, reason words, make targets."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from opendpu.cli.main import cli

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SOURCES = sorted((ROOT / "src" / "opendpu").rglob("*.py"))

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[\s(])(?:\.venv/bin/)?opendpu (?!-h)([^\n]*)")
_REPOSITORY_PATH = re.compile(
    r"(?:src|tests|docs|bench|examples|deploy|proto|scripts)/[\w./-]+|(?:Makefile|constraints\.txt|pyproject\.toml)"
)
_REASON = re.compile(r"reason(?:: str)? ?= ?\"([A-Za-z]+)\"|Waiting\(\s*\"(\w+)\"|\"((?:WaitingFor|Duplicate)\w+)\"")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+")


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, *languages: str) -> Iterator[str]:
    return (body for language, body in _BLOCK.findall(text) if language in languages)


def prose(text: str) -> str:
    return _BLOCK.sub("", text)


def commands(text: str) -> list[str]:
    """Every `opendpu ...` command line of a document, without its comment and what a shell would do around it."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += _CODE.findall(prose(text))
    found = [match for line in lines for match in _COMMAND.findall(line.partition("#")[0])]
    return [re.split(r"\s*(?:&&|;|\|)\s*", command)[0].strip() for command in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_relative_links_resolve(path: Path) -> None:
    for link in _LINK.findall(path.read_text()):
        if "://" not in link:
            name, _, heading = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), link
            if heading:
                assert heading in headings(target), link


def headings(path: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_paths_of_the_repository_exist(path: Path) -> None:
    text = path.read_text()
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    for code in [*_CODE.findall(prose(text)), *lines]:
        for word in code.split():
            if _REPOSITORY_PATH.fullmatch(word):
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_no_path_of_a_developers_machine(path: Path) -> None:
    assert not re.search(r"/(?:work|home|root|Users)/", path.read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = path.read_text()
    code = "\n".join([*blocks(text, "sh"), *_CODE.findall(prose(text))])
    for target in re.findall(r"(?:^|\s)make ([a-z-]+)", code):
        assert target in targets, f"make {target}"


def parse(line: str) -> None:
    """Walk the group as click does, without running the command; raises what click says to a person."""
    command: click.Command = cli
    words = shlex.split(line)
    context = click.Context(cli, info_name="opendpu")
    while isinstance(command, click.Group):
        rest = command.make_parser(context).parse_args(list(words))[1] if words else []
        if not rest or _PLACEHOLDER.fullmatch(rest[0]):
            return
        name = rest[0]
        found = command.get_command(context, name)
        assert found is not None, f"opendpu {line}: no command {name!r}"
        command, words = found, rest[1:]
        context = click.Context(command, parent=context, info_name=name)
    options, rest, _ = command.make_parser(context).parse_args(list(words))
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    assert not rest or any(argument.nargs == -1 for argument in arguments), f"opendpu {line}: {rest} is too much"
    for parameter in command.params:
        value = options.get(parameter.name)
        if isinstance(parameter.type, click.Choice) and isinstance(value, str) and not _PLACEHOLDER.fullmatch(value):
            parameter.type.convert(value, parameter, context)


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_commands_parse(path: Path) -> None:
    for line in commands(path.read_text()):
        parse(line)


def test_the_readme_has_commands() -> None:
    """The walk above finds them at all, and refuses what is none."""
    found = commands((ROOT / "README.md").read_text())
    assert "lab deploy server1" in found
    assert len(found) > 10
    for wrong in ("lab dance", "lab up --wings 2", "server show --format yaml", "lab deploy server1 server2"):
        with pytest.raises((AssertionError, click.UsageError)):
            parse(wrong)


def test_every_command_is_in_a_document() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    for name in cli.commands:
        assert re.search(rf"`?opendpu [^\n]*\b{name}\b", text), name


def test_reason_words_are_those_of_the_sources() -> None:
    sources = {next(filter(None, word)) for path in SOURCES for word in _REASON.findall(path.read_text())}
    table = (ROOT / "docs" / "agent-api.md").read_text().partition("## Errors and reason words")[2]
    documented = set(re.findall(r"^\| `([A-Z]\w+)` \|", table, re.MULTILINE))
    assert len(sources) > 30
    assert documented == sources


def test_every_timeline_stage_is_documented() -> None:
    text = (ROOT / "docs" / "ironic.md").read_text()
    marked = re.findall(
        r"timeline\.mark\(node, \"([\w-]+)\"", (ROOT / "src/opendpu/openstack/ironic/deploy.py").read_text()
    )
    assert marked
    assert [name for name in marked if f"`{name}`" not in text] == []


def test_figures_come_from_the_script() -> None:
    """Each block between figure marks has its writer."""
    writers = set(re.findall(r"^    \"(\w+)\": \w+,$", (ROOT / "scripts" / "figures.py").read_text(), re.MULTILINE))
    blocks_used = {name for path in DOCUMENTS for name in re.findall(r"<!-- figures:(\w+) -->", path.read_text())}
    assert blocks_used <= writers
    assert blocks_used


def test_every_direct_dependency_has_its_reason() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    python, _, system = text.partition("## System packages")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in wanted} - {"opendpu"}
    assert first_cells(python) == names
    packages = (ROOT / "scripts" / "system-packages.txt").read_text()
    assert first_cells(system) == {line for line in packages.splitlines() if line and not line.startswith("#")}


def first_cells(text: str) -> set[str]:
    """The names in the first column of all tables."""
    rows = re.findall(r"^\| ([\w., -]+?) \|", text, re.MULTILINE)
    return {name for row in rows for name in row.split(", ")} - {"Package"}
