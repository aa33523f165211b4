"""Carries out what is to be done in nftables, by the program nft: one transaction after the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

from nattools.errors import RelayError

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PATIENCE_S = 10.0


class Nft:
    """The program nft, which each call runs anew: some 4 ms, whatever is there already.

    A transaction is done whole or not at all. Raises `RelayError` where there is no such program.
    """

    def __init__(self) -> None:
        program = shutil.which("nft", path=_PATH)
        if program is None:
            raise RelayError(
                "the kernel engine needs the program nft: install nftables (apt install nftables)"
            )
        self._program = program
        self._lock = asyncio.Lock()

    async def apply(self, script: str) -> None:
        """Carry out a script in one transaction. Raises `RelayError`, and then nothing was changed."""
        await self._run("-f", "-", script=script)

    async def ask(self, commands: str, *, as_json: bool = True) -> str:
        """Carry out commands that tell something, and return what they tell. Raises `RelayError`."""
        return await self._run(*(["-j"] if as_json else []), commands)

    async def _run(self, *arguments: str, script: str = "") -> str:
        async with self._lock:
            # In a session of its own: Ctrl-C ends the relay, which then still has to clean up by nft.
            try:
                process = await asyncio.create_subprocess_exec(
                    self._program,
                    *arguments,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise RelayError(f"{self._program} cannot be started: {error}") from error
            try:
                said, complaint = await asyncio.wait_for(process.communicate(script.encode()), _PATIENCE_S)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                if isinstance(error, TimeoutError):
                    raise RelayError(f"nft did not come to an end within {_PATIENCE_S:.0f} s") from error
                raise
        if process.returncode != 0:
            first = complaint.decode(errors="replace").strip().partition("\n")[0] or "it did not say why"
            hint = ": give this process CAP_NET_ADMIN" if "not permitted" in first else ""
            raise RelayError(f"nft ended with status {process.returncode} ({first}){hint}")
        return said.decode(errors="replace")
