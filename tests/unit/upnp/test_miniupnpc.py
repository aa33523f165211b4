"""The library as a second client, with a binding in its place that does as it is told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar, cast

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    LocalAddressError,
    MappingError,
    NatToolsError,
    NoResponseError,
    NoRouterError,
    TransportError,
)
from nattools.upnp import miniupnpc as miniupnpc_door
from nattools.upnp.faults import (
    CONNECTION_FAULTS,
    InvalidActionError,
    NoSuchEntryInArrayError,
    RefusedError,
    SpecifiedArrayIndexInvalidError,
)
from nattools.upnp.igd import (
    Action,
    AddAnyPortMapping,
    AddPinhole,
    AddPortMapping,
    DeletePortMapping,
    GetExternalIPAddress,
    GetGenericPortMappingEntry,
    GetListOfPortMappings,
    GetSpecificPortMappingEntry,
    GetStatusInfo,
    PortMappingEntry,
    StatusInfo,
)
from nattools.upnp.miniupnpc import LibraryConnection, discover
from tests.unit.upnp.library import PATIENCE_S, Install, install, opened, run, threads_end

__all__ = ["install"]

T = TypeVar("T")

UDP, TCP = TransportProtocol.UDP, TransportProtocol.TCP
PUBLIC = IPv4Address("11.22.33.2")
LOCAL = IPv4Address("127.0.0.1")
PHONE = Endpoint(LOCAL, 5060)
AddArguments = tuple[int, str, str, int, str, str, int]
Row = tuple[int, str, tuple[str, int], str, str, str, int]


@dataclass
class Scripted:
    """A binding that says what it is told to; an exception is raised."""

    control: str | None = "http://127.0.0.1:5000/ctl/IPConn"
    lanaddr: str = "127.0.0.1"
    found: int | Exception = 1
    status: tuple[str, int, str] | Exception = ("Connected", 60, "ERROR_NONE")
    address: str | Exception = "11.22.33.2"
    added: bool | Exception = True
    deleted: bool | Exception = True
    specific: tuple[str, int, str, bool, int] | None = None
    rows: tuple[Row, ...] = ()
    before: Callable[[], object] = lambda: None
    asked: list[AddArguments] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def _say(self, answer: T | Exception) -> T:
        self.before()
        self.threads.add(threading.current_thread().name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def discover(self) -> int:
        return self._say(self.found)

    def selectigd(self) -> str | None:
        return self.control

    def statusinfo(self) -> tuple[str, int, str]:
        return self._say(self.status)

    def externalipaddress(self) -> str:
        return self._say(self.address)

    def addportmapping(self, *arguments: object) -> bool:
        self.asked.append(cast(AddArguments, arguments))
        return self._say(self.added)

    def deleteportmapping(self, *arguments: object) -> bool:
        return self._say(self.deleted)

    def getspecificportmapping(self, *arguments: object) -> tuple[str, int, str, bool, int] | None:
        return self._say(self.specific)

    def getgenericportmapping(self, index: int) -> Row | None:
        return self._say(self.rows[index] if index < len(self.rows) else None)


def with_connection(work: Callable[[LibraryConnection], Awaitable[T]]) -> T:
    async def main() -> T:
        async with opened() as connection:
            return await work(connection)

    return run(main())


def error_of(action: Action[T], error: type[NatToolsError]) -> NatToolsError:
    """The very error that an action ends with."""

    async def ask(connection: LibraryConnection) -> NatToolsError:
        with pytest.raises(error) as caught:
            await connection.call(action)
        assert type(caught.value) is error
        return caught.value

    return with_connection(ask)


class TestDiscover:
    def test_a_router_is_known_by_what_the_library_tells(self, install: Install) -> None:
        made_with = install(Scripted())

        async def look(connection: LibraryConnection) -> None:
            assert (connection.host, connection.local) == (LOCAL, LOCAL)
            assert connection.external_address == PUBLIC
            assert connection.status == StatusInfo("Connected", "ERROR_NONE", 60)
            assert connection.is_online
            assert (connection.udn, connection.model, connection.version) == ("", "", 1)
            assert str(connection) == "the router at 127.0.0.1"

        with_connection(look)
        assert made_with == {"multicastif": None, "discoverdelay": 200}

    def test_the_library_is_asked_in_a_thread_of_its_own_that_holds_up_no_exit(
        self, install: Install
    ) -> None:
        daemons: list[bool] = []
        binding = Scripted(before=lambda: daemons.append(threading.current_thread().daemon))
        install(binding)
        with_connection(lambda connection: connection.external_ip_address())
        assert binding.threads == {"miniupnpc"}
        assert set(daemons) == {True}

    def test_it_searches_on_the_interface(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        made_with = install(Scripted())
        [connection] = run(discover(interface="lo"))
        connection.close()
        assert made_with["multicastif"] == "127.0.0.1"
        with pytest.raises(LocalAddressError, match="no interface eth77 with an IPv4 address"):
            run(discover(interface="eth77"))

    def test_it_searches_towards_the_gateway_and_takes_no_other(self, install: Install) -> None:
        made_with = install(Scripted(control="http://127.0.77.98:5000/ctl"))
        with pytest.raises(NoRouterError, match=r"chose 127\.0\.77\.98 and not 127\.0\.77\.99"):
            run(discover(gateway=IPv4Address("127.0.77.99")))
        assert made_with["multicastif"] == "127.0.0.1"
        [connection] = run(discover(gateway=IPv4Address("127.0.77.98")))
        connection.close()
        threads_end()

    def test_without_the_library_it_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "miniupnpc", None)
        with pytest.raises(MappingError, match=r"pip install 'nattools\[miniupnpc\]'") as caught:
            run(discover())
        assert type(caught.value) is MappingError

    @pytest.mark.parametrize("text", ["Success", "No UPnP device discovered"])
    def test_nobody_is_no_router(self, install: Install, text: str) -> None:
        install(Scripted(found=Exception(text)))
        with pytest.raises(NoRouterError, match="no UPnP router answered"):
            run(discover())
        threads_end()

    def test_a_search_that_cannot_be_sent_is_a_transport_error(self, install: Install) -> None:
        install(Scripted(found=Exception("Miniupnpc Socket error")))
        with pytest.raises(TransportError, match="cannot open a socket") as caught:
            run(discover())
        assert type(caught.value) is TransportError

    @pytest.mark.parametrize(
        ("control", "local"),
        [
            (None, "127.0.0.1"),
            ("", ""),
            ("http://router.example/ctl", "127.0.0.1"),
            ("http://127.0.0.1/ctl", "192.168.0.108"),
            ("http://169.254.169.254/ctl", "192.168.0.108"),
            ("http://[::ffff:192.168.0.1]/ctl", "192.168.0.108"),
            ("http://11.22.33.2/ctl", "192.168.0.108"),
            ("http://127.0.0.1/ctl", "not an address"),
        ],
    )
    def test_a_control_url_that_is_no_routers_is_refused(
        self, install: Install, control: str | None, local: str
    ) -> None:
        install(Scripted(control=control, lanaddr=local))
        with pytest.raises(NoRouterError, match="what is no router of this network"):
            run(discover())

    def test_what_answers_no_question_is_no_router(self, install: Install) -> None:
        """The library takes a 404 page, a media player and the root of an old Huawei for routers."""
        unknown = Exception("Miniupnpc Unknown Error")
        install(Scripted(status=unknown, address=unknown))
        with pytest.raises(NoRouterError, match="is no WAN connection"):
            run(discover())

    @pytest.mark.parametrize("text", ["Miniupnpc Unknown Error", "Action Failed"])
    def test_a_router_may_leave_one_question_unanswered(self, install: Install, text: str) -> None:
        install(Scripted(status=Exception(text)))

        async def look(connection: LibraryConnection) -> None:
            assert (connection.status, connection.external_address) == (None, PUBLIC)

        with_connection(look)

    def test_a_search_that_does_not_end_is_left_to_itself(
        self, install: Install, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(miniupnpc_door, "LEAST_SEARCH_S", 0.05)
        release = threading.Event()
        install(Scripted(before=lambda: release.wait(PATIENCE_S)))
        with pytest.raises(NoResponseError, match=r"not done after 0\.05 s, and is left to itself"):
            run(discover(timeout_s=0.01))
        release.set()
        threads_end()

    def test_a_search_that_is_cancelled_leaves_no_thread(self, install: Install) -> None:
        started, release = threading.Event(), threading.Event()

        def wait() -> None:
            started.set()
            release.wait(PATIENCE_S)

        install(Scripted(before=wait))

        async def main() -> None:
            search = asyncio.create_task(discover())
            await asyncio.to_thread(started.wait, PATIENCE_S)
            search.cancel()
            with pytest.raises(asyncio.CancelledError):
                await search

        run(main())
        release.set()
        threads_end()


class TestCall:
    @pytest.mark.parametrize(
        ("text", "code"),
        [  # as strupnperror of miniupnpc has them, whatever service the code is of
            ("Invalid Action", 401),
            ("Invalid Args", 402),
            ("Action Failed", 501),
            ("Argument Value Invalid", 600),
            ("Argument Value Out of Range", 601),
            ("Optional Action Not Implemented", 602),
            ("Out of Memory", 603),
            ("Human Intervention Required", 604),
            ("String Argument Too Long", 605),
            ("Action not authorized", 606),
            ("InboundPinholeNotAllowed", 703),
            ("NoSuchEntry", 704),
            ("ProtocolNotSupported", 705),
            ("InternalPortWildcardingNotAllowed", 706),
            ("ProtocolWildcardingNotAllowed", 707),
            ("InvalidLayer2Address", 708),
            ("NoTrafficReceived", 709),
            ("SpecifiedArrayIndexInvalid", 713),
            ("NoSuchEntryInArray", 714),
            ("WildCardNotPermittedInSrcIP", 715),
            ("WildCardNotPermittedInExtPort", 716),
            ("ConflictInMappingEntry", 718),
            ("SamePortValuesRequired", 724),
            ("OnlyPermanentLeasesSupported", 725),
            ("RemoteHostOnlySupportsWildcard", 726),
            ("ExternalPortOnlySupportsWildcard", 727),
            ("NoPortMapsAvailable", 728),
            ("ConflictWithOtherMechanisms", 729),
            ("PortMappingNotFound", 730),
            ("ReadOnly", 731),
            ("WildCardNotPermittedInIntPort", 732),
            ("InconsistentParameters", 733),
        ],
    )
    def test_a_text_of_the_library_is_the_error_of_its_code(
        self, install: Install, text: str, code: int
    ) -> None:
        install(Scripted(added=Exception(text)))
        error = error_of(AddPortMapping(PHONE, 5060, UDP, 600), CONNECTION_FAULTS[code])
        assert isinstance(error, RefusedError)
        assert error.code == code
        assert str(error).startswith(f"the router at 127.0.0.1: AddPortMapping was refused: {code} ")

    def test_a_code_without_a_text_is_refused_all_the_same(self, install: Install) -> None:
        install(Scripted(added=Exception("UnknownError")))
        error_of(AddPortMapping(PHONE, 5060, UDP, 600), RefusedError)

    @pytest.mark.parametrize(
        ("raised", "error"),
        [
            (Exception("Miniupnpc HTTP error"), DisconnectedError),
            (Exception("Miniupnpc Socket error"), TransportError),
            (Exception("Miniupnpc Invalid response"), DecodeError),
            (Exception("Miniupnpc Memory allocation error"), DecodeError),
            (UnicodeDecodeError("utf-8", b"\xc3", 0, 1, "unexpected end of data"), DecodeError),
            (TypeError("function takes exactly 6 arguments"), DecodeError),
        ],
    )
    def test_no_error_of_the_library_gets_out(
        self, install: Install, raised: Exception, error: type[NatToolsError]
    ) -> None:
        install(Scripted(deleted=raised))
        message = str(error_of(DeletePortMapping(5060, UDP), error))
        assert message.startswith("DeletePortMapping of the router at 127.0.0.1: miniupnpc ")

    def test_an_address_that_is_none_is_a_decode_error(self, install: Install) -> None:
        install(Scripted(address="fe80::not"))
        error_of(GetExternalIPAddress(), DecodeError)

    @pytest.mark.parametrize(
        "action",
        [
            AddAnyPortMapping(PHONE, 5060, UDP, 600),
            GetListOfPortMappings(1, 65535, UDP),
            AddPinhole(IPv6Address("2001:db8::1"), 5060, UDP, 600),
        ],
        ids=lambda action: action.name,
    )
    def test_what_the_library_cannot_ask_for_is_an_unknown_action(
        self, install: Install, action: Action[object]
    ) -> None:
        install(Scripted())
        error_of(action, InvalidActionError)

    def test_no_markup_gets_into_a_request(self, install: Install) -> None:
        """It would be taken as arguments: the library does not escape."""
        binding = Scripted()
        install(binding)
        injection = "a</NewPortMappingDescription><NewInternalPort>22"
        action = AddPortMapping(PHONE, 15060, TCP, None, injection, remote_host="<&>")
        with_connection(lambda connection: connection.call(action))
        description = "a?/NewPortMappingDescription??NewInternalPort?22"
        assert binding.asked == [(15060, "TCP", "127.0.0.1", 5060, description, "???", 0)]

    def test_the_lease_is_passed_on(self, install: Install) -> None:
        binding = Scripted()
        install(binding)
        with_connection(lambda connection: connection.call(AddPortMapping(PHONE, 5060, UDP, 600, "phone")))
        assert binding.asked == [(5060, "UDP", "127.0.0.1", 5060, "phone", "", 600)]

    @pytest.mark.parametrize(
        ("action", "error"),
        [
            (GetSpecificPortMappingEntry(5060, UDP), NoSuchEntryInArrayError),
            (GetGenericPortMappingEntry(0), SpecifiedArrayIndexInvalidError),
        ],
    )
    def test_nothing_is_no_entry(
        self, install: Install, action: Action[PortMappingEntry], error: type[NatToolsError]
    ) -> None:
        install(Scripted())
        error_of(action, error)

    @pytest.mark.parametrize(
        "action", [GetSpecificPortMappingEntry(5060, UDP), GetGenericPortMappingEntry(0)]
    )
    def test_nothing_of_a_router_that_is_gone_is_no_answer(
        self, install: Install, action: Action[PortMappingEntry]
    ) -> None:
        """Or a mapping would be taken as removed while the router restarts."""
        binding = Scripted()
        install(binding)

        async def ask(connection: LibraryConnection) -> None:
            binding.address = Exception("Miniupnpc HTTP error")
            with pytest.raises(DisconnectedError):
                await connection.call(action)
            binding.address = Exception("Action Failed")  # it answers
            with pytest.raises(RefusedError):
                await connection.call(action)

        with_connection(ask)

    def test_an_entry_is_read_as_it_was_written(self, install: Install) -> None:
        install(
            Scripted(
                specific=("192.168.0.77", 5062, "a &lt;b&gt; &amp;lt; &quot;c&apos;", True, 0),
                rows=((15060, "TCP", ("phone.lan", 5062), "Tom &amp; Jo", "0", "10.0.0.9", 77),),
            )
        )

        async def ask(connection: LibraryConnection) -> None:
            specific = await connection.call(GetSpecificPortMappingEntry(5061, UDP))
            assert specific == PortMappingEntry(
                "", 5061, UDP, "192.168.0.77", 5062, True, "a <b> &lt; \"c'", None
            )
            assert await connection.entries() == [
                PortMappingEntry("10.0.0.9", 15060, TCP, "phone.lan", 5062, False, "Tom & Jo", 77)
            ]

        with_connection(ask)

    def test_who_is_too_slow_is_not_asked_again(
        self, install: Install, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        binding = Scripted()
        install(binding)
        release = threading.Event()

        async def ask(connection: LibraryConnection) -> None:
            binding.before = lambda: release.wait(PATIENCE_S)
            monkeypatch.setattr(miniupnpc_door, "REQUEST_TIMEOUT_S", 0.05)
            with pytest.raises(NoResponseError, match=r"not done after 0\.05 s, and is left to itself"):
                await connection.call(GetStatusInfo())
            with pytest.raises(NoResponseError, match="had no answer in time before"):
                await connection.call(GetStatusInfo())
            release.set()

        with_connection(ask)

    def test_a_question_that_is_cancelled_costs_the_next_one_nothing(self, install: Install) -> None:
        binding = Scripted()
        install(binding)
        started, release = threading.Event(), threading.Event()

        def wait() -> None:
            started.set()
            release.wait(PATIENCE_S)

        async def ask(connection: LibraryConnection) -> None:
            binding.before = wait
            asked = asyncio.create_task(connection.call(GetStatusInfo()))
            await asyncio.to_thread(started.wait, PATIENCE_S)
            waiting = asyncio.create_task(connection.call(AddPortMapping(PHONE, 5060, UDP, 600)))
            await asyncio.sleep(0)
            for task in (asked, waiting):
                task.cancel()
            await asyncio.gather(asked, waiting, return_exceptions=True)
            release.set()
            assert await connection.external_ip_address() == PUBLIC
            assert binding.asked == []  # what was not begun is not done

        with_connection(ask)


def test_a_library_that_hangs_does_not_keep_the_program_from_ending() -> None:
    program = """
import asyncio, sys, threading, types
from nattools.errors import NoResponseError
from nattools.upnp import miniupnpc
class UPnP:
    def __init__(self, **_): pass
    def discover(self): threading.Event().wait()
sys.modules["miniupnpc"] = types.SimpleNamespace(UPnP=UPnP)
miniupnpc.LEAST_SEARCH_S = 0.05
try:
    asyncio.run(miniupnpc.discover(timeout_s=0.05))
except NoResponseError:
    print("given up")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "given up\n", "")
