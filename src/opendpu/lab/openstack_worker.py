"""The process behind OpenStackShell: imports the stock OpenStack client once and forks for each command.

One JSON list of arguments per line on standard input, one JSON object (code, stdout, stderr) per line on standard
output; ends with its standard input.
"""

import contextlib
import gc
import json
import os
import sys
import tempfile
import traceback
from importlib import metadata
from typing import BinaryIO

# The commands' modules to import beforehand; others are imported when they are first asked for, in each fork.
_PRELOADED_GROUPS = ("openstack.cli.base", "openstack.cli.extension", "openstack.network.v2", "openstack.baremetal.v1")
_PRELOADED_EXTENSIONS = ("network", "baremetal")


def _preload() -> None:
    import openstack.baremetal.v1._proxy
    import openstack.network.v2._proxy  # noqa: F401
    from openstackclient import shell  # noqa: F401

    for group in _PRELOADED_GROUPS:
        for point in metadata.entry_points(group=group):
            if group != "openstack.cli.extension" or point.name in _PRELOADED_EXTENSIONS:
                # What cannot be imported is reported by the command that needs it.
                with contextlib.suppress(ImportError):
                    point.load()


def _command(arguments: list[str]) -> int:
    from openstackclient.shell import OpenStackShell

    try:
        return int(OpenStackShell().run(arguments) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def _fork(arguments: list[str], out: BinaryIO, err: BinaryIO) -> int:
    """Run one command in a child whose standard output and error are these files; its exit status."""
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = _command(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    sys.argv[0] = "openstack"  # its messages name it
    _preload()
    # The children share these pages until they write to them: keep the collector from touching each object.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = _fork(json.loads(line), out, err)
            out.seek(0)
            err.seek(0)
            answer = {
                "code": code,
                "stdout": out.read().decode(errors="replace"),
                "stderr": err.read().decode(errors="replace"),
            }
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
