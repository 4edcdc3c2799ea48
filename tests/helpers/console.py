"""The root shell on a guest's serial console."""

import asyncio
import itertools


class Console:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._count = itertools.count()
        self.seen = b""

    @classmethod
    async def open(cls, path: str) -> "Console":
        return cls(*await asyncio.open_unix_connection(path, limit=1 << 20))

    async def expect(self, text: bytes, timeout: float = 60) -> bytes:
        """What came up to and with `text`."""
        try:
            async with asyncio.timeout(timeout):
                while text not in self.seen:
                    data = await self._reader.read(65536)
                    if not data:
                        raise AssertionError("the console was closed")
                    self.seen += data
        except TimeoutError:
            raise AssertionError(
                f"waited {timeout} s for {text!r}; the console ends with {self.seen[-800:]!r}"
            ) from None
        before, _, self.seen = self.seen.partition(text)
        return before

    async def run(self, command: str, timeout: float = 30) -> str:
        """Run a command in the guest; its output. A command that fails is an AssertionError."""
        mark = f"M{next(self._count)}"
        self._writer.write(f"{command}; echo {mark}=$?=\n".encode())
        code = b""
        while not code.isdigit():  # the echo of the command, once or twice, has $? where the answer has a number
            output = await self.expect(f"{mark}=".encode(), timeout)
            code = await self.expect(b"=", timeout)
        if code != b"0":
            raise AssertionError(f"{command}: status {code!r}: {output!r}")
        return output.decode(errors="replace").replace("\r", "").strip()

    async def send(self, line: str) -> None:
        self._writer.write(f"{line}\n".encode())
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()
