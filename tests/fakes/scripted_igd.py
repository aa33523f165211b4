"""A router that answers by a script, which also says exactly what it must be asked."""

from __future__ import annotations

from itertools import count

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import DecodeError, DisconnectedError, NatToolsError, NoResponseError, UpnpError
from nattools.machine import Entropy
from nattools.upnp.acquisition import Acquisition, Call, Done, GaveUp, Result
from nattools.upnp.faults import fault
from nattools.upnp.igd import AddAnyPortMapping, AddPortMapping, DeletePortMapping, PortMappingEntry

UDP = TransportProtocol.UDP
PHONE = Endpoint.of("192.168.1.20", 5070)
SILENCE = NoResponseError("no answer")
RESET = DisconnectedError("reset")
GARBAGE = DecodeError("garbage")
OK = None

Answer = Result | NatToolsError
Step = tuple[str, Answer]


def refused(code: int) -> UpnpError:
    """The error for a fault code."""
    return fault(code, "", action="X")


def entry(
    port: int,
    lease_s: int | None = 3600,
    *,
    client: str = "192.168.1.20",
    internal_port: int = 5070,
    enabled: bool = True,
) -> PortMappingEntry:
    """A row of the router's table, which is this host's unless it is said to be another's."""
    return PortMappingEntry("", port, UDP, client, internal_port, enabled, "phone", lease_s)


def entropy() -> Entropy:
    """Random bytes that make the random ports 1024, 1025 and so on."""
    numbers = count()
    return lambda size: next(numbers).to_bytes(size, "big")


def acquisition(
    *,
    external_port: int | None = None,
    lease_s: int | None = 3600,
    version: int = 1,
    permanent_only: bool = False,
) -> Acquisition:
    """One for the phone, as most tests want it."""
    return Acquisition(
        PHONE,
        UDP,
        external_port=external_port,
        lease_s=lease_s,
        description="phone",
        version=version,
        entropy=entropy(),
        permanent_only=permanent_only,
    )


def said(call: Call) -> str:
    """A call in short: `add 5070 for 3600`, `any 1024 for ever`, `get 5070`, `delete 5070`."""
    assert call.transport is UDP
    if isinstance(call, AddPortMapping | AddAnyPortMapping):
        assert (call.internal, call.description, call.remote_host) == (PHONE, "phone", "")
        verb = "add" if isinstance(call, AddPortMapping) else "any"
        return f"{verb} {call.external_port} for {call.lease_s or 'ever'}"
    return f"{'delete' if isinstance(call, DeletePortMapping) else 'get'} {call.external_port}"


def play(acquiring: Acquisition, *steps: Step) -> Done | GaveUp:
    """Go through `steps`, each the action that must come and what became of it; how it ended."""
    for expected, answer in steps:
        call = acquiring.next_action()
        assert not isinstance(call, Done | GaveUp), f"{call} instead of {expected}"
        assert said(call) == expected
        if isinstance(answer, NatToolsError):
            acquiring.failed(answer)
        else:
            acquiring.answered(answer)
    end = acquiring.next_action()
    assert isinstance(end, Done | GaveUp), said(end)
    return end


def gave_up(end: Done | GaveUp, error: type[NatToolsError], *texts: str) -> None:
    """Check that it ended with such an error."""
    assert isinstance(end, GaveUp)
    assert type(end.error) is error
    for text in texts:
        assert text in str(end.error)


def conflict(port: int, answer: Answer) -> list[Step]:
    """A port is refused with 718, and read back."""
    return [(f"add {port} for 3600", refused(718)), (f"get {port}", answer)]


def granted(port: int) -> list[Step]:
    """A port is granted and shown."""
    return [(f"add {port} for 3600", OK), (f"get {port}", entry(port))]


def proven(port: int, lease_s: int | None = 3600) -> Done:
    """The good end."""
    return Done(port, lease_s, proven=True, permanent_only=False)
