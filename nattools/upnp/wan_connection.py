"""What is done with a router's WAN connection, all of it by actions, whoever carries them to the router."""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, cast

from nattools.endpoint import AddressClass, Endpoint, IPAddress, TransportProtocol, classify_address
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    MappingError,
    NatToolsError,
    NoResponseError,
    TransportError,
    UpnpError,
)
from nattools.upnp import faults
from nattools.upnp.acquisition import Acquisition, Done, GaveUp, Result
from nattools.upnp.igd import (
    MOST_ENTRIES,
    Action,
    DeletePortMapping,
    GetExternalIPAddress,
    GetGenericPortMappingEntry,
    GetListOfPortMappings,
    GetSpecificPortMappingEntry,
    GetStatusInfo,
    PortMappingEntry,
    StatusInfo,
)
from nattools.upnp.server import RouterChange

TASK_TIMEOUT_S = 2.5
"""So long may a router take for one mapping, its removal or the list, however many questions that takes."""

_SHARE = 0.8
_LEAST_SHARE_S = 0.02
_NO_SUCH_ENTRY = (faults.NoSuchEntryInArrayError, faults.PortMappingNotFoundError)
_ENDS_OF_A_WALK = (  # the first by the specification, the others by routers
    faults.SpecifiedArrayIndexInvalidError,
    faults.NoSuchEntryInArrayError,
    faults.InvalidArgsError,
    faults.ActionFailedError,
)

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class WanConnection(ABC):
    """One WAN connection of one router.

    `local` is this machine's address on the connection that reached the router: what a port mapping of this
    machine must lead to. `status` and `external_address` are as they were when the router was found, None
    where it did not tell. `task_timeout_s` may be changed for a router that is known to be slow.
    """

    def __init__(self, local: IPAddress) -> None:
        self.local = local
        self.status: StatusInfo | None = None
        self.external_address: IPAddress | None = None
        self.task_timeout_s = TASK_TIMEOUT_S
        self._permanent_only = False

    @property
    @abstractmethod
    def host(self) -> IPAddress:
        """The router's address on this side."""

    @property
    @abstractmethod
    def udn(self) -> str:
        """The unique device name of the router's root device; empty where that is not known."""

    @property
    @abstractmethod
    def model(self) -> str:
        """Manufacturer, model and its number, as far as that is known."""

    @property
    @abstractmethod
    def version(self) -> int:
        """The version of the service."""

    @abstractmethod
    async def call(self, action: Action[ResultT], *, timeout_s: float | None = None) -> ResultT:
        """Ask the router for `action`, in `timeout_s` or else in 3 s.

        Raises `UpnpError` where it refuses, `TransportError` where it cannot be asked or does not answer,
        `DecodeError` where its answer makes no sense, and `EncodeError` for what cannot be said.
        """

    @abstractmethod
    async def _call(self, action: Action[ResultT], timeout_s: float) -> ResultT:
        """The same, once and within `timeout_s`."""

    @abstractmethod
    def watch(self, on_change: Callable[[RouterChange], None]) -> AbstractAsyncContextManager[None]:
        """Listen to what the router says unasked, as far as that can be heard."""

    def close(self) -> None:  # noqa: B027  not all hold something
        """Let go of what asking needs."""

    @property
    def is_online(self) -> bool:
        """Whether it had a public address, and did not say that it is not connected, when it was found."""
        address = self.external_address
        is_public = address is not None and classify_address(address) is AddressClass.PUBLIC
        return is_public and (self.status is None or self.status.is_connected)

    def __str__(self) -> str:
        return f"{self.model} at {self.host}" if self.model else f"the router at {self.host}"

    async def probe(self, timeout_s: float) -> None:
        """Ask for the connection's status and address, both at once, and remember them.

        Raises `TransportError` or `DecodeError` where the router cannot say either.
        """
        asked = self._answer(GetStatusInfo(), timeout_s)
        also_asked = self._answer(GetExternalIPAddress(), timeout_s)
        status, address = await asyncio.gather(asked, also_asked)
        self.status = None if isinstance(status, NatToolsError) else status
        self.external_address = None if isinstance(address, NatToolsError) else address
        errors = [answer for answer in (status, address) if isinstance(answer, NatToolsError)]
        if len(errors) == 2 and not any(isinstance(error, UpnpError) for error in errors):
            raise errors[0]

    async def _answer(self, action: Action[ResultT], timeout_s: float) -> ResultT | NatToolsError:
        try:
            return await self._call(action, timeout_s)
        except NatToolsError as error:
            return error

    async def external_ip_address(self) -> IPAddress | None:
        """Ask for the external address; None while the connection has none."""
        return await self.call(GetExternalIPAddress())

    async def acquire(
        self,
        internal: Endpoint,
        transport: TransportProtocol,
        *,
        external_port: int | None,
        lease_s: int | None,
        description: str,
    ) -> Done:
        """Make a port mapping to `internal`, or renew it, and read it back, in `task_timeout_s` at the most.

        With `external_port` only that will do. Without, the internal port's number is asked for first. A
        lease of None is for ever. Raises what `call` does: of a `UpnpError` the class says why.
        """
        acquisition = Acquisition(
            internal,
            transport,
            external_port=external_port,
            lease_s=lease_s,
            description=description,
            version=self.version,
            entropy=secrets.token_bytes,
            permanent_only=self._permanent_only,
        )
        ends_at = self._ends_at()
        while True:
            step = acquisition.next_action()
            if isinstance(step, Done):
                self._permanent_only = step.permanent_only
                return step
            if isinstance(step, GaveUp):
                self._permanent_only = step.permanent_only
                raise step.error
            try:
                asked = cast(Action[Result], step)  # one of a union of them
                result: Result = await self.call(asked, timeout_s=_share(ends_at))
            except (UpnpError, NoResponseError, DisconnectedError, DecodeError) as error:
                acquisition.failed(error)
            else:
                acquisition.answered(result)

    async def release(self, internal: Endpoint, transport: TransportProtocol, external_port: int) -> bool:
        """Remove a port mapping if it leads to `internal`, which is read back before and after.

        False when it was gone already or leads elsewhere. A router that cannot tell is told to remove it.
        Raises what `call` does, and `MappingError` where the mapping is still there afterwards.
        """
        ends_at = self._ends_at()
        try:
            entry = await self._entry(transport, external_port, ends_at)
            if entry is None or entry.internal != internal:
                return False
        except (UpnpError, DecodeError) as error:
            _log.debug("%s does not tell its mappings: %s", self, error)
        try:
            await self.call(DeletePortMapping(external_port, transport), timeout_s=_share(ends_at))
        except _NO_SUCH_ENTRY:
            return False
        try:
            entry = await self._entry(transport, external_port, ends_at)
        except (UpnpError, DecodeError, TransportError):
            return True
        if entry is not None and entry.internal == internal:
            raise MappingError(
                f"{self} said that it removed {transport.name} port {external_port}, but the mapping to "
                f"{internal} is still there: remove it in the router's own pages"
            )
        return True

    async def _entry(
        self, transport: TransportProtocol, external_port: int, ends_at: float
    ) -> PortMappingEntry | None:
        try:
            asked = GetSpecificPortMappingEntry(external_port, transport)
            return await self.call(asked, timeout_s=_share(ends_at))
        except _NO_SUCH_ENTRY:
            return None

    async def entries(self) -> list[PortMappingEntry]:
        """The router's port mappings: at most 1,000, and what it tells within most of `task_timeout_s`.

        The rest is for showing them. Raises what `call` does.
        """
        found: list[PortMappingEntry] = []
        ends_at = asyncio.get_running_loop().time() + _SHARE * self.task_timeout_s
        if self.version < 2 or not await self._listed(found, ends_at):
            await self._walked(found, ends_at)
        return found[:MOST_ENTRIES]

    def _ends_at(self) -> float:
        return asyncio.get_running_loop().time() + self.task_timeout_s

    async def _listed(self, found: list[PortMappingEntry], ends_at: float) -> bool:
        """Ask an IGD:2 for its whole list; whether it has one."""
        for transport in TransportProtocol:
            try:
                asked = GetListOfPortMappings(1, 0xFFFF, transport, manage=True)
                listed = await self.call(asked, timeout_s=_share(ends_at))
                found += listed
            except _NO_SUCH_ENTRY:
                continue
            except (UpnpError, DecodeError, DisconnectedError):
                found.clear()
                return False
        return True

    async def _walked(self, found: list[PortMappingEntry], ends_at: float) -> None:
        """Ask for one after the other (WANIPConnection:1 §2.4.17)."""
        while len(found) < MOST_ENTRIES:
            try:
                asked = GetGenericPortMappingEntry(len(found))
                entry = await self.call(asked, timeout_s=_share(ends_at))
            except _ENDS_OF_A_WALK:
                return
            except NoResponseError:
                if not found:
                    raise
                _log.warning("%s is slow: of its mappings only the first %d are known", self, len(found))
                return
            if found and entry == found[-1]:
                return
            found.append(entry)


def _share(ends_at: float) -> float:
    """Most of the time that is left for a task: the next question must have some as well."""
    return max(_LEAST_SHARE_S, _SHARE * (ends_at - asyncio.get_running_loop().time()))
