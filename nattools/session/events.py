"""What a proxy tells its driver: requests to be decided about, and what becomes of calls."""

from __future__ import annotations

from dataclasses import dataclass

from nattools.session.dialogs import Call
from nattools.session.flows import Flow
from nattools.session.nat_tests import NatTest
from nattools.session.routing import NextHop
from nattools.sip.message import SipMessage


@dataclass(frozen=True, slots=True)
class Received:
    """A request that waits for `forward`, `answer` or `ignore`.

    `request` has `received` and `rport` in its top Via. `nat` are the signs that who sent it is behind a NAT,
    empty where another proxy sent it. `next_hop` is where it goes by itself; None where it is for a user of
    this proxy's own domains, whom a registrar knows. `call` is the call that it is in, if the proxy knows it;
    nobody else may follow `next_hop` without having shown who they are. `earlier` is the number that the very
    same request had when it came here first, where the proxy behind this one has sent it back.
    """

    number: int
    request: SipMessage
    flow: Flow
    nat: NatTest
    next_hop: NextHop | None
    call: Call | None = None
    earlier: int | None = None


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A 2xx to the INVITE `number` has passed; of one that was forked there may be several.

    Where the INVITE has passed here twice, it is the first of its numbers, and the call starts once.
    """

    number: int
    call: Call


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The INVITE `number`, which was to begin a call, had this final response and no 2xx."""

    number: int
    call_id: bytes
    status_code: int


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call is over: its BYE was answered, or nobody answers it any more, or `hang_up` was called.

    `why` says why the proxy itself has ended it, if it has.
    """

    call: Call
    why: str = ""


@dataclass(frozen=True, slots=True)
class ChangeFailed:
    """The INVITE, UPDATE or PRACK `number`, in a call, was refused: what it offered does not hold."""

    number: int
    status_code: int


Event = Received | CallStarted | CallFailed | CallEnded | ChangeFailed


@dataclass(frozen=True, slots=True)
class Passage:
    """A message on its way from one side to the other, whose body may be edited in place.

    `number` is that of the request in `Received`, also where the message is its response; `branch` is that of
    the Via by which this copy of it was sent on.
    """

    message: SipMessage
    arrived: Flow
    leaves: Flow
    number: int
    branch: bytes
