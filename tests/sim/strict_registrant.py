"""A strict telephone: its name, its addresses, its registration, and its password."""

from __future__ import annotations

from collections.abc import Callable

from nattools.endpoint import Endpoint
from nattools.errors import AuthenticationError
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_request
from tests.sim.strict_leg import Leg
from tests.sim.strict_line import Client, Line, World

_TRIES = 3


class Registrant:
    """A telephone as far as it registers, and shows its password."""

    def __init__(
        self,
        world: World,
        user: str,
        number: int,
        gate: Endpoint,
        domain: str,
        *,
        is_stream: bool = False,
        is_natted: bool = False,
    ) -> None:
        self.world = world
        self.user = user
        self.name = f"{user}{number}"
        self.domain = domain
        self.is_natted = is_natted
        self.is_stream = is_stream
        address = f"127.0.{1 + number // 200}.{1 + number % 200}"
        self.hidden = Endpoint.of(f"127.9.{1 + number // 200}.{1 + number % 200}", 5060)
        self.relays = {gate.ip}
        self.line = Line(world, self.name, address, gate, is_stream=is_stream)
        self.digest = DigestClient(user, user, entropy=world.random.randbytes)
        self.register_id = world.token()
        self.register_cseq = 0
        self.legs: dict[tuple[str, str, bytes], Leg] = {}
        self.calling: dict[str, Leg] = {}
        self.ended: set[tuple[str, str]] = set()
        self.is_registered = False
        self.is_silent = False

    # --- words ---

    @property
    def place(self) -> Endpoint:
        return self.hidden if self.is_natted else self.line.local

    @property
    def shown_ip(self) -> str:
        return str(self.place.ip)

    @property
    def contact(self) -> str:
        return f"<sip:{self.name}@{self.place}{';transport=tcp' if self.is_stream else ''}>"

    def via(self) -> str:
        transport = "TCP" if self.is_stream else "UDP"
        return f"SIP/2.0/{transport} {self.place};rport;branch=z9hG4bK{self.world.token()}"

    def wrong(self, text: str) -> None:
        self.world.complain(f"{self.name}: {text}")

    # --- requests with credentials ---

    def ask(
        self,
        method: str,
        uri: str,
        fields: list[tuple[str, str | bytes]],
        number: Callable[[], int],
        on_response: Callable[[Client, SipMessage], None],
        body: bytes = b"",
        tries: int = _TRIES,
    ) -> Client:
        """Send a request outside a dialog, again with credentials where they are asked for."""
        client: Client

        def responded(response: SipMessage) -> None:
            if response.status_code in (401, 407) and tries:
                try:
                    self.digest.challenged(response, client.request)
                except AuthenticationError as error:
                    self.wrong(f"its password was refused: {error}")
                    return
                self.ask(method, uri, fields, number, on_response, body, tries - 1)
                return
            on_response(client, response)

        headers = [
            ("Via", self.via()),
            ("Max-Forwards", "70"),
            *fields,
            ("CSeq", f"{number()} {method}"),
            ("Contact", self.contact),
            *self.digest.headers(method, uri, body),
        ]
        if body:
            headers.append(("Content-Type", "application/sdp"))
        data = compose_request(method, uri, headers, body)
        client = self.line.ask(data, responded, lambda: self._unanswered(client))
        return client

    def _unanswered(self, client: Client) -> None:
        leg = self.calling.pop(client.request.call_id.decode(), None)
        if leg is not None:
            if not self.line.is_gone and not leg.is_answered:
                leg.wrong(f"its INVITE was never answered (rung: {client.has_rung})")
            leg.end()

    def register(self, expires: int = 600) -> None:
        """Register, refresh, or by 0 leave."""

        def number() -> int:
            self.register_cseq += 1
            return self.register_cseq

        def responded(client: Client, response: SipMessage) -> None:
            code = response.status_code or 0
            self.world.counters[f"REGISTER {code}"] += 1
            if code == 200:
                self.is_registered = expires > 0
                own = self.contact.strip("<>").encode()
                shown = [response.data[slice(*it.uri.span)] for it in response.contacts if it.uri is not None]
                if (own in shown) is not (expires > 0) and own == asked:
                    self.wrong(f"registered for {expires}, and shown {shown}")

        aor = f"<sip:{self.user}@{self.domain}>"
        asked = self.contact.strip("<>").encode()
        fields: list[tuple[str, str | bytes]] = [
            ("From", f"{aor};tag={self.world.token()}"),
            ("To", aor),
            ("Call-ID", self.register_id),
            ("Expires", str(expires)),
        ]
        self.ask("REGISTER", f"sip:{self.domain}", fields, number, responded)

    def come_back(self) -> None:
        """Register, unless it is gone."""
        if not self.line.is_gone:
            self.register()
