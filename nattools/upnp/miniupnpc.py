"""The C library miniupnpc as a second client: it finds the router, and carries the same actions to it.

Its Python binding blocks, cannot be cancelled, has no limit to the time that an answer takes, and its objects
are not for two threads at once. So each has a thread of its own, which is left to itself when it is too slow.
What it does not tell is not known here: the router's name and the version of its service; codes of errors are
read off its texts. It has no pinholes and no events, and it writes on stderr what its sockets complain of.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from ipaddress import ip_address
from queue import SimpleQueue
from typing import Protocol, TypeVar
from xml.sax.saxutils import unescape

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    LocalAddressError,
    MappingError,
    NatToolsError,
    NoResponseError,
    NoRouterError,
    TransportError,
    UpnpError,
)
from nattools.net.interfaces import interfaces
from nattools.net.udp import MulticastInterface, UdpSocket, local_address_towards
from nattools.upnp import ssdp
from nattools.upnp.faults import CONNECTION_FAULTS, FIREWALL_FAULTS, NO_CODE, fault, fault_name
from nattools.upnp.igd import (
    Action,
    AddPortMapping,
    DeletePortMapping,
    GetExternalIPAddress,
    GetGenericPortMappingEntry,
    GetSpecificPortMappingEntry,
    GetStatusInfo,
    Reply,
    clean_description,
)
from nattools.upnp.location import Location, check_location
from nattools.upnp.server import ChangeKind, RouterChange, open_announcements
from nattools.upnp.wan_connection import WanConnection

REQUEST_TIMEOUT_S = 3.0
LEAST_SEARCH_S = 2.5
"""The least time for a search: the library waits a whole second for each of the four things it looks for."""

_DISCOVER_DELAY_MS = 200
_INVALID_ACTION = 401
_SPECIFIED_ARRAY_INDEX_INVALID = 713
_NO_SUCH_ENTRY_IN_ARRAY = 714
_NOBODY = "Success"  # what the library says when nobody answered its search
_NO_DEVICE = "No UPnP device discovered"
_NO_ANSWER = "Miniupnpc HTTP error"
_NO_SOCKET = "Miniupnpc Socket error"
_UNKNOWN = "UnknownError"
_MARKUP = str.maketrans("<>&", "???")
_QUOTES = {"&quot;": '"', "&apos;": "'"}
_MEANING = {
    ssdp.RouterSign.RESTARTED: ChangeKind.RESTARTED,
    ssdp.RouterSign.GONE: ChangeKind.GONE,
}

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Binding(Protocol):
    """What is used of `miniupnpc.UPnP`, as its 2.3.3 has it. Every failure is an `Exception` with a text."""

    lanaddr: str

    def discover(self) -> int:
        """Search; gives how many devices answered."""

    def selectigd(self) -> str | None:
        """Take the best of them, be it a router or not; gives the URL of its control."""

    def statusinfo(self) -> tuple[str, int, str]:
        """Status, uptime in seconds, last error."""

    def externalipaddress(self) -> str:
        """The external address."""

    def addportmapping(
        self,
        external_port: int,
        protocol: str,
        internal_client: str,
        internal_port: int,
        description: str,
        remote_host: str,
        lease_s: int,
        /,
    ) -> bool:
        """Map a port."""

    def deleteportmapping(self, external_port: int, protocol: str, remote_host: str, /) -> bool:
        """Remove a mapping."""

    def getspecificportmapping(
        self, external_port: int, protocol: str, remote_host: str, /
    ) -> tuple[str, int, str, bool, int] | None:
        """Client, port, description, enabled, lease; None whatever went wrong."""

    def getgenericportmapping(
        self, index: int, /
    ) -> tuple[int, str, tuple[str, int], str, str, str, int] | None:
        """External port, protocol, client, description, enabled, remote host, lease; None at any failure."""


class LibraryConnection(WanConnection):
    """The WAN connection that the library has chosen. Made by `discover`."""

    udn = ""
    model = ""
    version = 1  # it is not told, and AddAnyPortMapping of the library takes no lease

    def __init__(self, thread: _LibraryThread, control: Location, local: IPAddress) -> None:
        super().__init__(local)
        self._thread = thread
        self._control = control

    @property
    def host(self) -> IPAddress:
        """The router's address on this side."""
        return self._control.endpoint.ip

    async def call(self, action: Action[ResultT], *, timeout_s: float | None = None) -> ResultT:
        """Ask the router for `action`, in `timeout_s` or else in 3 s; who is slower is not asked again.

        Raises what any WAN connection does, and `InvalidActionError` for what the library cannot ask for.
        """
        return await self._call(action, REQUEST_TIMEOUT_S if timeout_s is None else timeout_s)

    async def _call(self, action: Action[ResultT], timeout_s: float) -> ResultT:
        try:
            return action.parse(await self._thread.ask(lambda binding: _ask(binding, action), timeout_s))
        except UpnpError as error:
            raise type(error)(f"{self}: {error}", code=error.code) from error
        except (DecodeError, TransportError) as error:
            raise type(error)(f"{action.name} of {self}: {error}") from error

    @asynccontextmanager
    async def watch(self, on_change: Callable[[RouterChange], None]) -> AsyncIterator[None]:
        """Listen to the router's multicast announcements; of its events the library knows nothing.

        A router that ends without a goodbye is known to have restarted by its second announcement only.
        """
        signs = ssdp.Watch(udn=self.udn, address=self.host)

        def announced(data: bytes, source: Endpoint) -> None:
            sign = signs.receive(data, source)
            if sign is not None:
                on_change(RouterChange(_MEANING[sign], self.external_address))

        listener: UdpSocket | None = None
        try:
            for interface in interfaces():
                if self.local in interface.ips and interface.is_multicast and not interface.is_loopback:
                    place = MulticastInterface(interface.index, self.local)
                    listener = await open_announcements(place, announced)
                    break
        except TransportError as error:
            _log.debug("the announcements of %s cannot be heard: %s", self, error)
        try:
            yield
        finally:
            if listener is not None:
                listener.close()

    def close(self) -> None:
        """End the library's thread."""
        self._thread.close()


async def discover(
    *, gateway: IPAddress | None = None, interface: str | None = None, timeout_s: float = LEAST_SEARCH_S
) -> list[LibraryConnection]:
    """Have the library search, by multicast, and take the WAN connection that it likes best.

    It searches on `interface`, or on the one towards `gateway`, otherwise on that of the default route. It
    cannot be told whom to ask: where another router answers it than `gateway`, there is none.
    Raises `MappingError` where the library is not installed, `NoRouterError` where nothing or only something
    else was found, `NoResponseError` after `timeout_s`, which is 2.5 s at the least, and `TransportError`
    where the gateway or the interface cannot be used.
    """
    thread = _LibraryThread(_new_binding(_multicast_address(gateway, interface)))
    try:
        return [await _select(thread, gateway, max(timeout_s, LEAST_SEARCH_S))]
    except BaseException:
        thread.close()
        raise


async def _select(thread: _LibraryThread, gateway: IPAddress | None, timeout_s: float) -> LibraryConnection:
    url, lan_address = await thread.ask(_found, timeout_s)
    try:
        control, local = Location.parse(url), ip_address(lan_address)
        if control.endpoint.ip.is_loopback and not local.is_loopback:
            raise DecodeError(f"{control} is refused: its host is this machine, and {local} was not")
        on_link = [address.network for interface in interfaces() for address in interface.addresses]
        check_location(control, source=control.endpoint.ip, on_link=on_link)
    except (DecodeError, ValueError) as error:
        raise NoRouterError(f"miniupnpc chose what is no router of this network: {error}") from error
    if gateway not in (None, control.endpoint.ip):
        raise NoRouterError(
            f"miniupnpc chose {control.endpoint.ip} and not {gateway}, and it cannot be told: ask without it"
        )
    connection = LibraryConnection(thread, control, local)
    try:  # the library takes whatever answers, a media player or a 404 page
        await connection.probe(REQUEST_TIMEOUT_S)
    except NoResponseError:
        raise
    except NatToolsError as error:
        raise NoRouterError(f"miniupnpc chose {control}, which is no WAN connection: {error}") from error
    return connection


def _multicast_address(gateway: IPAddress | None, interface: str | None) -> str | None:
    """The address to search from, for the library; None lets the default route decide."""
    if interface is not None:
        for present in interfaces():
            if present.name == interface:
                address = next((ip for ip in present.ips if ip.version == 4), None)
                if address is not None:
                    return str(address)
        raise LocalAddressError(f"there is no interface {interface} with an IPv4 address to search from")
    if gateway is not None:
        return str(local_address_towards(Endpoint(gateway, ssdp.PORT)))
    return None


def _new_binding(multicast_address: str | None) -> Binding:
    try:
        import miniupnpc
    except ImportError as error:
        raise MappingError(
            f"the library miniupnpc cannot be used ({error}): pip install 'nattools[miniupnpc]', "
            "or let nattools speak UPnP itself"
        ) from error
    binding: Binding = miniupnpc.UPnP(multicastif=multicast_address, discoverdelay=_DISCOVER_DELAY_MS)
    return binding


class _LibraryThread:
    """One object of the library, and the only thread that touches it.

    It is a daemon: a library that hangs must not keep the program from ending, which the threads of asyncio's
    executor would. An object that was too slow is left to itself; whoever asks it again is told so.
    """

    def __init__(self, binding: Binding) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._binding = binding
        self._is_closed = False
        threading.Thread(target=_work, args=(self._jobs,), name="miniupnpc", daemon=True).start()

    async def ask(self, question: Callable[[Binding], ResultT], timeout_s: float) -> ResultT:
        """Have the thread ask. Raises `NatToolsError`, which is `NoResponseError` after `timeout_s`."""
        if self._is_closed:
            raise NoResponseError("miniupnpc had no answer in time before, and is left to itself")
        future: Future[ResultT] = Future()
        binding = self._binding

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(question(binding))
            except BaseException as error:  # noqa: BLE001  it is raised where the answer is waited for
                future.set_exception(error)

        self._jobs.put(job)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            self.close()
            raise NoResponseError(
                f"miniupnpc was not done after {timeout_s:g} s, and is left to itself"
            ) from error

    def close(self) -> None:
        """Ask no more; the thread ends when the library lets it."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or the thread would hold the answer until the next question


def _found(binding: Binding) -> tuple[str, str]:
    """Search and select: the URL of the control, and this machine's address towards it."""
    try:
        binding.discover()
        return binding.selectigd() or "", binding.lanaddr
    except Exception as error:
        if str(error) in (_NOBODY, _NO_DEVICE):
            raise NoRouterError("no UPnP router answered miniupnpc's search") from error
        raise _meaning(error, "the search") from error


def _ask(binding: Binding, action: Action[ResultT]) -> Reply:
    """Ask for an action, in words of the library; gives what the router would have replied.

    The library does not escape what it sends: text that could end its XML element would be taken as
    arguments. Numbers it cuts off at 16 bits, which the actions check.
    """
    try:
        match action:
            case GetExternalIPAddress():
                return {"newexternalipaddress": binding.externalipaddress()}
            case GetStatusInfo():
                status, uptime_s, last_error = binding.statusinfo()
                return {
                    "newconnectionstatus": status,
                    "newuptime": str(uptime_s),
                    "newlastconnectionerror": last_error,
                }
            case AddPortMapping():
                binding.addportmapping(
                    action.external_port,
                    action.transport.name,
                    str(action.internal.ip),
                    action.internal.port,
                    clean_description(action.description).translate(_MARKUP),
                    action.remote_host.translate(_MARKUP),
                    action.lease_s or 0,
                )
                return {}
            case DeletePortMapping():
                remote_host = action.remote_host.translate(_MARKUP)
                binding.deleteportmapping(action.external_port, action.transport.name, remote_host)
                return {}
            case GetSpecificPortMappingEntry():
                return _specific(binding, action)
            case GetGenericPortMappingEntry():
                return _generic(binding, action)
    except NatToolsError:
        raise
    except Exception as error:
        raise _meaning(error, action.name) from error
    raise fault(_INVALID_ACTION, "miniupnpc cannot ask for it", action=action.name)


def _specific(binding: Binding, action: GetSpecificPortMappingEntry) -> Reply:
    remote_host = action.remote_host.translate(_MARKUP)
    entry = binding.getspecificportmapping(action.external_port, action.transport.name, remote_host)
    if entry is None:
        raise _none(binding, _NO_SUCH_ENTRY_IN_ARRAY, action.name)
    client, internal_port, description, enabled, lease_s = entry
    return {
        "newinternalclient": client,
        "newinternalport": str(internal_port),
        "newportmappingdescription": unescape(description, _QUOTES),
        "newenabled": str(int(enabled)),
        "newleaseduration": str(lease_s),
    }


def _generic(binding: Binding, action: GetGenericPortMappingEntry) -> Reply:
    entry = binding.getgenericportmapping(action.index)
    if entry is None:
        raise _none(binding, _SPECIFIED_ARRAY_INDEX_INVALID, action.name)
    external_port, protocol, (client, internal_port), description, enabled, remote_host, lease_s = entry
    return {
        "newremotehost": remote_host,
        "newexternalport": str(external_port),
        "newprotocol": protocol,
        "newinternalclient": client,
        "newinternalport": str(internal_port),
        "newportmappingdescription": unescape(description, _QUOTES),
        "newenabled": enabled,
        "newleaseduration": str(lease_s),
    }


def _none(binding: Binding, code: int, action: str) -> UpnpError:
    """What None means: that there is no such entry, unless the router does not answer at all any more."""
    try:
        binding.externalipaddress()
    except Exception as error:
        meaning = _meaning(error, action)
        if not isinstance(meaning, UpnpError):
            raise meaning from error
    return fault(code, "", action=action)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


# strupnperror of miniupnpc names a code without knowing of which service it is
_CODES = {
    _letters(fault_name(refused)): code
    for faults in (FIREWALL_FAULTS, CONNECTION_FAULTS)
    for code, refused in faults.items()
}


def _meaning(error: Exception, action: str) -> NatToolsError:
    """The error of ours for one of the library's."""
    text = str(error)
    code = _CODES.get(_letters(text), NO_CODE)
    if code != NO_CODE or text == _UNKNOWN:
        return fault(code, "", action=action)
    if text == _NO_ANSWER:
        return DisconnectedError("miniupnpc got no whole answer: is the router on?")
    if text == _NO_SOCKET:
        return TransportError("miniupnpc cannot open a socket for it")
    return DecodeError(f"miniupnpc cannot make sense of the answer: {text[:100]}")
