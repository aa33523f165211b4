"""The seam between the server, which has sockets, and a desk, which decides what becomes of each request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from nattools.endpoint import Endpoint
from nattools.session.events import Passage, Received
from nattools.session.flows import Flow, Flows
from nattools.session.forking import Target
from nattools.session.location import Location
from nattools.session.proxy import Proxy
from nattools.session.settings import GateSettings

Headers = Iterable[tuple[str, str | bytes]]


class Gate(Protocol):
    """What a server offers to those who decide. Whatever they do with it has been sent when it returns."""

    @property
    def settings(self) -> GateSettings:
        """How this natgate was started."""

    @property
    def proxy(self) -> Proxy:
        """The proxy; who decides asks its `dialogs`, and ends a request by the methods below."""

    @property
    def flows(self) -> Flows:
        """The listeners and connections."""

    @property
    def location(self) -> Location:
        """Where registrations are kept."""

    def now(self) -> float:
        """The time in monotonic seconds."""

    async def forward(
        self,
        received: Received,
        targets: Sequence[Target] | None = None,
        *,
        flows: Sequence[Flow] = (),
        realm: str = "",
        headers: Headers = (),
        user: str = "",
    ) -> None:
        """Send a request on as `Proxy.forward` does, once there are ports for its media.

        `user` is who was shown to have sent it, for the limits on calls. Where a limit or the lack of ports
        forbids the call, it is answered here.
        """

    def answer(
        self, received: Received, status_code: int, reason: str, headers: Headers = (), body: bytes = b""
    ) -> None:
        """Answer a request (`Proxy.answer`)."""

    def respond(self, received: Received, data: bytes) -> None:
        """Answer a request by a whole response (`Proxy.respond`)."""

    def ignore(self, received: Received) -> None:
        """Let a request go unanswered (`Proxy.ignore`)."""

    async def flow_to(self, host: bytes, port: int | None, transport: str) -> Flow | None:
        """How to reach a host by its name or address (RFC 3263); None where it has none that is reachable."""

    def flow_at(self, endpoint: Endpoint, transport: str, *, name: str = "") -> Flow | None:
        """How to reach an address; `name` is what its certificate must show, where it was found by one."""

    def send(self, data: bytes, flow: Flow) -> None:
        """Send a message that is of no transaction; where it cannot be sent it is lost."""


class Desk(Protocol):
    """Decides about requests: a registrar's, or that of a natgate in front of one."""

    @property
    def counters(self) -> Counter[str]:
        """What it has counted, by names for the status."""

    async def decide(self, received: Received) -> None:
        """End with one of `forward`, `answer`, `respond` and `ignore` of the gate. Raises nothing."""

    def edit(self, passage: Passage) -> None:
        """Edit a message on its way, before its media are edited; many desks do nothing."""

    async def close(self) -> None:
        """Let go of what is held."""
