"""How the storage daemon is started, by whoever supervises it."""

# The sockets and every file the daemon makes are its owner's alone, whatever umask the supervisor has. The shell is
# replaced by the daemon, so the supervisor's pid is the daemon's. A socket file left by a killed daemon is no
# obstacle: QEMU unlinks it before it listens.
_OWNER_ONLY = 'umask 077; exec "$@"'


def daemon_command(qmp_socket: str, nbd_socket: str) -> tuple[str, ...]:
    """The command of a storage daemon that listens on two unix sockets and offers nothing yet."""
    for path in (qmp_socket, nbd_socket):
        if len(path.encode()) > 107 or "," in path:  # sun_path of unix(7); the comma is QEMU's option separator
            raise ValueError(f"socket path {path!r} must be under 108 bytes and without a comma")
    return (
        *("/bin/sh", "-c", _OWNER_ONLY, "storage-daemon", "qemu-storage-daemon"),
        *("--chardev", f"socket,path={qmp_socket},server=on,wait=off,id=m"),
        *("--monitor", "chardev=m"),
        *("--nbd-server", f"addr.type=unix,addr.path={nbd_socket},max-connections=0"),
    )
