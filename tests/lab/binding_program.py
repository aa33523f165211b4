"""A program that opens public bindings and tells, in JSON lines, what happens; run on a lab's client.

It obeys lines on its stdin, in which NAME is any word that its answers will carry::

    open NAME LOCAL SETTINGS        a binding with a keeper of its own; SETTINGS is a JSON object
    send NAME HOST:PORT TEXT        from the binding's socket
    close NAME                      give everything back

It closes what is open, and ends, when its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing

# What a keeper loads when it first asks a router: the bindings beside it would wait for that, too.
import nattools.binding.providers.router
import nattools.mapping.client  # noqa: F401 - to have it loaded is all
from nattools.binding.client import LiveBinding
from nattools.binding.keeper import open_binding
from nattools.binding.model import BindingChange, PublicBinding
from nattools.binding.settings import Settings
from nattools.endpoint import Endpoint
from nattools.errors import BindingError


def described(binding: PublicBinding | None) -> dict[str, object]:
    """A binding in words that JSON has."""
    if binding is None:
        return {}
    return {
        "local": str(binding.local),
        "public": str(binding.public),
        "method": binding.method.value,
        "reach": binding.reachability.reach.value,
        "evidence": list(binding.reachability.evidence),
        "outbound_matches": binding.outbound_matches,
        "realm": binding.realm,
        "lease_s": binding.lease_s,
        "keepalive_s": binding.keepalive_s,
    }


class Kept:
    """One binding, by its name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._closing = asyncio.Event()
        self._live: LiveBinding | None = None

    def tell(self, event: str, **what: object) -> None:
        """One line."""
        line = {"name": self._name, "event": event, "at": time.monotonic(), **what}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    async def keep(self, local: str, words: str) -> None:
        """Keep it until it is to be closed, and tell what becomes of it."""
        began = time.monotonic()
        try:
            async with open_binding(local, settings=Settings.of(json.loads(words))) as binding:
                took_s = time.monotonic() - began
                self._live = binding
                tasks = [
                    asyncio.create_task(self._tell_changes(binding.changes())),
                    asyncio.create_task(self._tell_datagrams(binding)),
                    asyncio.create_task(self._closing.wait()),
                ]
                self.tell("acquired", took_s=took_s, reason="", **described(binding.snapshot))
                ended, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                for task in ended:
                    task.result()
            self.tell("released")
        except BindingError as error:
            took_s = time.monotonic() - began
            self.tell("failed", error=type(error).__name__, reason=str(error), took_s=took_s)

    def send(self, destination: Endpoint, text: str) -> None:
        """Send from its socket."""
        assert self._live is not None
        self._live.sendto(text.encode(), destination)

    def close(self) -> None:
        """Have it closed."""
        self._closing.set()

    async def _tell_changes(self, changes: AsyncIterator[BindingChange]) -> None:
        async for change in changes:
            self.tell(change.kind.value, reason=change.reason, **described(change.binding))

    async def _tell_datagrams(self, binding: LiveBinding) -> None:
        while True:
            data, source = await binding.recvfrom()
            self.tell("datagram", data=data.decode(errors="backslashreplace"), source=str(source))


async def main() -> None:
    """Obey until there are no more commands."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    all_kept: dict[str, Kept] = {}
    with closing(pipe):
        async with asyncio.TaskGroup() as group:
            while line := await lines.readline():
                command, name, *rest = line.decode().rstrip("\n").split(" ", 3)
                if command == "open":
                    all_kept[name] = Kept(name)
                    group.create_task(all_kept[name].keep(*rest))
                elif command == "send":
                    all_kept[name].send(Endpoint.parse(rest[0]), rest[1])
                else:
                    assert command == "close", f"{command!r} is no command"
                    all_kept[name].close()
            for kept in all_kept.values():
                kept.close()


if __name__ == "__main__":
    asyncio.run(main())
