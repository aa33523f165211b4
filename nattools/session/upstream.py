"""Registrations at another registrar, under Contacts that lead here and name a phone (RFC 3261 §10.2).

Most registrars know nothing of Path (RFC 3327), and keep each Contact as it is. So a phone's Contact is
exchanged for one at an address of this program, with a parameter that nobody can guess: a `Ticket`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from nattools.endpoint import AddressClass, Endpoint
from nattools.errors import DecodeError
from nattools.machine import Entropy
from nattools.session.contacts import Wish, read_seconds, read_wishes
from nattools.session.flows import Flow, Flows, endpoint_of, transport_of
from nattools.session.location import Bindings, ContactBinding, instance_of
from nattools.session.nat_tests import read_alias
from nattools.session.registrar import is_meant, options
from nattools.sip.comparison import canonical_host, is_same_uri, unescaped
from nattools.sip.headers import NameAddress, Via
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri, Span, read_ip

PARAM = "natgate"
"""The parameter of a URI that has a ticket."""

_TOKEN_BYTES = 12
_DEFAULT_EXPIRES_S = 3600
_TEXT = ("utf-8", "surrogateescape")
_IN_USER = "!~*'()+$&="  # besides letters, digits and -_. (RFC 3261 §25.1)
_HOP_PARAMS = frozenset({"transport", "maddr", "alias", "lr", PARAM})
_INSIDE = frozenset({AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LINK_LOCAL})


@dataclass(frozen=True, slots=True)
class Upstream:
    """The registrar and proxy behind this program: its host, its port (None: by DNS), and the transport."""

    host: bytes
    port: int | None
    transport: str

    @classmethod
    def parse(cls, text: str) -> Upstream:
        """Read `sip:HOST[:PORT][;transport=tcp]`. Raises `DecodeError`."""
        uri = SipUri.parse(text.encode())
        transport = transport_of(uri)
        if uri.scheme not in ("sip", "sips") or transport not in ("UDP", "TCP", "TLS"):
            raise DecodeError(f"{text!r} is no SIP server: sip:HOST[:PORT][;transport=udp|tcp|tls] expected")
        return cls(uri.host, uri.port, transport)

    def __str__(self) -> str:
        return f"{self._host_port.decode('latin-1')} ({self.transport})"

    @property
    def name(self) -> str:
        """The host name, which a certificate must show; empty where it is an address."""
        return "" if read_ip(self.host) is not None else self.host.decode("latin-1").lower()

    @property
    def _host_port(self) -> bytes:
        host = b"[%b]" % self.host if b":" in self.host else self.host
        return host if self.port is None else b"%b:%d" % (host, self.port)

    def address(self, uri: bytes) -> bytes:
        """A URI that names this program, as one that names the upstream. Raises `DecodeError`.

        Phones that can only be told one server write its address into each Request-URI.
        """
        parsed = SipUri.parse(uri)
        user = b"" if parsed.user is None else parsed.user + b"@"
        kept = [param for param in parsed.params if param.name not in _HOP_PARAMS]
        params = b"".join(
            b";" + param.name.encode("latin-1") + (b"" if param.value is None else b"=" + param.value)
            for param in kept
        )
        return b"%b:%b%b%b" % (parsed.scheme.encode(), user, self._host_port, params)


def is_ours(uri: SipUri, flows: Flows) -> bool:
    """Whether a URI names this program: by `Flows.is_own`, or by its address without a port."""
    ip = uri.ip if uri.port is None else None
    at_address = ip is not None and any(ip in (it.local.ip, it.public.ip) for it in flows.listeners)
    return at_address or flows.is_own(uri.host, uri.port)


def address_of_record(request: SipMessage, flows: Flows, own: bytes) -> str | None:
    """Whom a request is to, by its To: `alice@example.com`; `own` is the host in place of our addresses.

    None where To names nobody. Raises `DecodeError`.
    """
    header = request.header("to")
    uri = None if header is None else NameAddress.parse(request.data, header.value_span).uri
    if uri is None or uri.scheme not in ("sip", "sips") or uri.user is None:
        return None
    host = own if is_ours(uri, flows) else uri.host
    user = (unescaped(uri.user.partition(b":")[0]) or b"").decode(*_TEXT)
    return f"{user}@{canonical_host(host).decode(*_TEXT)}" if user and host else None


@dataclass(frozen=True, slots=True)
class Ticket:
    """What leads from a URI to one phone: whose it is, and a token that only who was told it knows."""

    address_of_record: str
    token: str

    @classmethod
    def new(cls, address_of_record: str, entropy: Entropy) -> Ticket:
        """A ticket with a token of its own."""
        return cls(address_of_record, entropy(_TOKEN_BYTES).hex())

    @classmethod
    def read(cls, uri: SipUri | None) -> Ticket | None:
        """The ticket in a URI that `uri` has composed; None where there is none."""
        param = None if uri is None else uri.param(PARAM)
        if uri is None or param is None or not param.value:
            return None
        token, _, domain = (unescaped(param.value) or b"").partition(b"~")
        user = (unescaped(uri.user) or b"").decode(*_TEXT)
        return cls(f"{user}@{canonical_host(domain).decode(*_TEXT)}", token.decode("latin-1").lower())

    def uri(self, public: Endpoint, transport: str) -> bytes:
        """A URI at `public` that has it: `sip:alice@203.0.113.5:5060;natgate=...~example.com`."""
        user, _, domain = self.address_of_record.rpartition("@")
        via = "" if transport == "UDP" else f";transport={transport.lower()}"
        name = f"{quote(user.encode(*_TEXT), safe=_IN_USER)}@" if user else ""
        return f"sip:{name}{public}{via};{PARAM}={self.token}~{domain}".encode(*_TEXT)


@dataclass(frozen=True, slots=True)
class _Place:
    """A Contact of the phone's own, the ticket it goes by, and what is known of it from before."""

    uri_span: Span
    value_span: Span
    wish: Wish
    ticket: Ticket
    known: ContactBinding | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What a REGISTER comes to: all bindings from now on (`Location.update`)."""

    bindings: Bindings | None


class Exchange:
    """One REGISTER on its way to another registrar, and its answer on the way back."""

    def __init__(
        self,
        request: SipMessage,
        flow: Flow,
        address_of_record: str,
        bindings: Bindings,
        *,
        entropy: Entropy,
        by_path: bool = False,
    ) -> None:
        """`bindings` are those that are known; `by_path` leaves the Contacts, and adds a Path (RFC 3327).

        Contacts that are not the phone's own, as of another phone of the same user, are left alone, and all
        where another proxy is in between. Raises `DecodeError` for Contacts that cannot be read.
        """
        self.address_of_record = address_of_record
        self._request = request
        self._flow = flow
        self._by_path = by_path
        self._entropy = entropy
        contacts = [contact for contact in request.contacts if contact.uri is not None]
        self._is_star = len(contacts) < len(request.contacts)
        via = request.top_via if len(request.values("via")) == 1 else None
        self._is_direct = via is not None
        self._has_outbound = "outbound" in options(request, "supported")
        self._places: list[_Place] = []
        if not self._is_star and via is not None:
            wishes = read_wishes(
                request,
                contacts,
                flow.remote,
                default_expires_s=_DEFAULT_EXPIRES_S,
                has_outbound=self._has_outbound,
            )
            self._place(contacts, wishes, via, bindings)
        number = request.cseq
        self._cseq = 0 if number is None else number[0]
        self._own = {place.ticket.token: place.wish.contact for place in self._places} | {
            ticket.token: binding.contact
            for binding in bindings
            if binding.call_id == request.call_id and (ticket := ticket_of(binding)) is not None
        }
        self._at: tuple[Endpoint, str] | None = None

    @property
    def new_contacts(self) -> int:
        """How many contacts it adds to those that are known."""
        return sum(place.known is None and place.wish.expires_s > 0 for place in self._places)

    def _place(
        self, contacts: list[NameAddress], wishes: tuple[Wish, ...], via: Via, bindings: Bindings
    ) -> None:
        own = [
            (contact, wish)
            for contact, wish in zip(contacts, wishes, strict=True)
            if contact.uri is not None and _is_own(contact.uri, via, self._flow.remote)
        ]
        named = [
            next((binding for binding in bindings if self._is_about(wish, binding)), None) for _, wish in own
        ]
        shared: Ticket | None = None
        others = [binding for binding in bindings if binding not in named]
        for (contact, wish), same in zip(own, named, strict=True):
            known = same or _moved(wish, others)
            ticket = shared or (None if known is None else ticket_of(known))
            ticket = ticket or Ticket.new(self.address_of_record, self._entropy)
            shared = ticket if self._by_path else None
            assert contact.uri is not None
            self._places.append(_Place(contact.uri.span, contact.span, wish, ticket, known))

    def edit_request(self, message: SipMessage, public: Endpoint, transport: str) -> None:
        """Exchange the Contacts for such at `public`; where they were at another address, take those away."""
        self._at = public, transport
        if self._by_path:
            self._add_path(message, public, transport)
            return
        removed: set[bytes] = set()
        for place in self._places:
            uri = place.ticket.uri(public, transport)
            _write_uri(message, place.uri_span, uri)
            old = b"" if place.known is None else place.known.outside
            if old and old != uri and old not in removed:
                removed.add(old)
                message.edit(Span(place.value_span.end, place.value_span.end), b", <%b>;expires=0" % old)

    def _add_path(self, message: SipMessage, public: Endpoint, transport: str) -> None:
        if not self._is_direct or not self._places:
            return
        flows = ";ob" if self._has_outbound else ""  # RFC 5626 §5.1: this proxy keeps to a phone's flow
        uri = self._places[0].ticket.uri(public, transport)
        first = message.header("path")
        value = b"<%b;lr%b>" % (uri, flows.encode())
        if first is None:
            message.insert_header_after(message.headers_named("via")[-1], "Path", value)
        else:
            message.insert_header_before(first, "Path", value)
        if "path" not in options(message, "supported"):
            # Registrars refuse a Path to phones that do not say they know it (RFC 3327 §5.3); they need not.
            message.insert_header_after(message.headers_named("via")[-1], "Supported", "path")

    def edit_response(self, message: SipMessage) -> None:
        """Put the phone's own Contacts back into a 2xx, so that it finds them; those of others are left."""
        for contact in [] if self._by_path else message.contacts:
            ticket = Ticket.read(contact.uri)
            own = None if ticket is None else self._own.get(ticket.token)
            if own is not None and contact.uri is not None:
                _write_uri(message, contact.uri.span, own)

    def lacks_path(self, response: SipMessage) -> bool:
        """Whether a 2xx does not repeat the Path that was added, as who knows Path must (RFC 3327 §5.3)."""
        return self._by_path and bool(self._places) and not response.values("path")

    def kept(
        self, response: SipMessage, bindings: Bindings, *, now: float, server: Endpoint | None = None
    ) -> Kept:
        """What is registered after a 2xx, which says for how long. `bindings` are those not expired.

        A Contact that the answer does not list was not taken, unless it lists none at all. `server` is
        that of `ContactBinding`.
        """
        if self._is_star:
            return Kept(())
        if not self._places or self._at is None:
            return Kept(None)
        granted = self._granted(response)
        after = list(bindings)
        for place in self._places:
            after = [binding for binding in after if not self._is_replaced(binding, place)]
            expires_s = granted.get(place.wish.contact, 0)
            if place.wish.expires_s and expires_s:
                outside = place.ticket.uri(*self._at)
                after.append(self._bind(place, outside, server, now + expires_s))
        return Kept(tuple(after))

    def _is_replaced(self, binding: ContactBinding, place: _Place) -> bool:
        ticket = ticket_of(binding)
        is_same_ticket = not self._by_path and ticket is not None and ticket.token == place.ticket.token
        return is_same_ticket or self._is_about(place.wish, binding)

    def _is_about(self, wish: Wish, binding: ContactBinding) -> bool:
        """Whether a Contact is the one that was kept, and not the same private address in another network."""
        if not is_meant(binding, wish):
            return False
        if wish.instance and binding.instance:
            return wish.instance == binding.instance
        is_here = binding.received is None or wish.received is None or binding.received.ip == wish.received.ip
        return is_here or binding.call_id == self._request.call_id

    def _granted(self, response: SipMessage) -> Mapping[bytes, int]:
        """For how many seconds each contact of this REGISTER is registered now."""
        general = read_seconds(response.first_value("expires"))
        if not response.values("contact"):
            return {
                place.wish.contact: place.wish.expires_s if general is None else general
                for place in self._places
            }
        granted = {}
        for contact in response.contacts:
            place = self._listed(response, contact)
            if place is None:
                continue
            param = contact.param("expires")
            said = read_seconds(b"" if param is None or param.value is None else param.value)
            said = general if said is None else said
            granted[place.wish.contact] = place.wish.expires_s if said is None else said
        return granted

    def _listed(self, response: SipMessage, contact: NameAddress) -> _Place | None:
        if contact.uri is None:
            return None
        if self._by_path:
            uri = response.data[slice(*contact.uri.span)]
            return next((place for place in self._places if is_same_uri(place.wish.contact, uri)), None)
        ticket = Ticket.read(contact.uri)
        tokens = (
            place for place in self._places if ticket is not None and place.ticket.token == ticket.token
        )
        return next(tokens, None)

    def _bind(
        self, place: _Place, outside: bytes, server: Endpoint | None, expires_at: float
    ) -> ContactBinding:
        wish = place.wish
        return ContactBinding(
            wish.contact,
            expires_at,
            self._request.call_id,
            self._cseq,
            wish.params,
            wish.q,
            (),
            wish.received,
            self._flow.socket,
            wish.instance,
            wish.reg_id,
            outside,
            server,
        )


def _is_own(uri: SipUri, via: Via, source: Endpoint) -> bool:
    """Whether a Contact is where the phone that sends the REGISTER is itself, and no other place."""
    if uri.scheme not in ("sip", "sips") or uri.param("gr") is not None:
        return False
    is_inside = uri.ip is not None and Endpoint(uri.ip, 0).address_class in _INSIDE
    return is_inside or uri.ip == source.ip or canonical_host(uri.host) == canonical_host(via.host)


def _moved(wish: Wish, bindings: list[ContactBinding]) -> ContactBinding | None:
    """What the same phone had before it was given another address."""
    for binding in bindings:
        if wish.instance and (binding.instance, binding.reg_id) == (wish.instance, wish.reg_id):
            return binding
    return None


def _write_uri(message: SipMessage, span: Span, uri: bytes) -> None:
    """Write a URI in place of another, in `<>`, without which its params would be the header's."""
    is_bracketed = message.data[: span.start].rstrip(b" \t\r\n").endswith(b"<")
    message.edit(span, uri if is_bracketed else b"<%b>" % uri)


def ticket_of(binding: ContactBinding) -> Ticket | None:
    """The ticket that a binding was registered with at another registrar."""
    if not binding.outside:
        return None
    try:
        return Ticket.read(SipUri.parse(binding.outside))
    except DecodeError:
        return None


def binding_of(ticket: Ticket, bindings: Bindings, target: bytes = b"") -> ContactBinding | None:
    """The binding of a ticket; of several, which came by one Path, that of the contact `target`."""
    found = [binding for binding in bindings if ticket_of(binding) == ticket]
    same = [binding for binding in found if is_same_uri(binding.contact, target)]
    return next(iter((same or found)[-1:]), None)


def binding_in_dialog(bindings: Bindings, uri: bytes) -> ContactBinding | None:
    """Which phone of a user a request within an unknown dialog is for: by alias, GRUU or contact.

    A user with one phone only has no other.
    """
    target = SipUri.parse(uri)
    alias, instance = read_alias(target), instance_of(target)
    for binding in reversed(bindings):
        if alias is not None and binding.received == alias[0]:
            return binding
        if (instance and binding.instance == instance) or is_same_uri(binding.contact, uri):
            return binding
    return bindings[0] if len(bindings) == 1 else None


def flow_to_phone(binding: ContactBinding, flows: Flows) -> Flow | None:
    """How a phone is reached now: as it was heard when it registered, if that still is; None: not at all."""
    try:
        uri = SipUri.parse(binding.contact)
    except DecodeError:
        return None
    remote = binding.received or endpoint_of(uri)
    if remote is None:
        return None
    flow = Flow(binding.flow, remote)
    if flows.is_open(flow):
        return flow
    return flows.towards(remote, transport_of(uri)) if binding.received is None else None
