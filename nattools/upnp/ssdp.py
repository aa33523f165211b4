"""The Simple Service Discovery Protocol, in which devices say where they are (UDA 1.1 §1.2, §1.3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError
from nattools.machine import Transmit
from nattools.upnp.location import Location

PORT = 1900
MULTICAST_IPV4 = Endpoint.of("239.255.255.250", PORT)
MULTICAST_IPV6 = Endpoint.of("ff02::c", PORT)

MOST_MESSAGE_BYTES = 8192
MOST_HEADERS = 64
MOST_TEXT_CHARACTERS = 200

MOST_RESPONDERS = 16
"""So many addresses are heard out that may be routers. Default gateways always are."""
MOST_UNLIKELY_RESPONDERS = 4
"""And so many that seem to be something else."""
MOST_LOCATIONS = 4
"""Of one responder. A FRITZ!Box has two: one for each version of its description."""

REPEAT_AFTER_S = 0.25

_ALL = "ssdp:all"
_SEARCH_TARGETS = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
)
_GATEWAY_TYPES = frozenset(
    {
        "internetgatewaydevice",
        "wanconnectiondevice",
        "wandevice",
        "wanipconnection",
        "wanpppconnection",
    }
)


def printable(text: str) -> str:
    """What a device says of itself, fit for a terminal: one line, no control characters, cut off."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * MOST_TEXT_CHARACTERS])
    return " ".join(line.split())[:MOST_TEXT_CHARACTERS]


def is_gateway(target_or_type: str) -> bool:
    """Whether a search target, a device or service type, or a USN is one of an Internet Gateway Device.

    Version and domain don't matter: the Huawei HG531 says `urn:dslforum-org:device:...`.
    """
    return not _GATEWAY_TYPES.isdisjoint(target_or_type.lower().split(":"))


def search_request(search_target: str, host: Endpoint, *, mx_s: int = 1) -> bytes:
    """Encode an M-SEARCH request that will be sent to `host` (UDA 1.1 §1.3.2).

    By unicast it needs no MX, but routers with libupnp pass over a request without one.
    """
    ip = IPv6Address(int(host.ip)) if isinstance(host.ip, IPv6Address) else host.ip  # without a scope
    return (
        "M-SEARCH * HTTP/1.1\r\n"
        f"HOST: {Endpoint(ip, host.port)}\r\n"
        'MAN: "ssdp:discover"\r\n'
        f"MX: {mx_s}\r\n"
        f"ST: {search_target}\r\n"
        "\r\n"
    ).encode()


def _udn_of(usn: str) -> str:
    return usn.partition("::")[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to a search (UDA 1.1 §1.3.3). What is missing is None, or empty."""

    location: str | None
    search_target: str
    usn: str
    server: str
    boot_id: int | None

    @property
    def udn(self) -> str:
        """The name of the device, `uuid:` and what follows; the Thomson TG585 has no valid UUID there."""
        return _udn_of(self.usn)

    @property
    def is_likely(self) -> bool:
        """Whether it comes from a gateway, as far as the answer tells."""
        return is_gateway(self.search_target) or is_gateway(self.usn)


class NotificationKind(Enum):
    """The notification sub type (NTS)."""

    ALIVE = "ssdp:alive"
    BYEBYE = "ssdp:byebye"
    UPDATE = "ssdp:update"


@dataclass(frozen=True, slots=True)
class Notification:
    """What a device says without being asked (UDA 1.1 §1.2). What is missing is None, or empty."""

    kind: NotificationKind
    location: str | None
    notification_type: str
    usn: str
    server: str
    boot_id: int | None
    next_boot_id: int | None

    @property
    def udn(self) -> str:
        """The name of the device, `uuid:` and what follows."""
        return _udn_of(self.usn)

    @property
    def is_likely(self) -> bool:
        """Whether it comes from a gateway, as far as the notification tells."""
        return is_gateway(self.notification_type) or is_gateway(self.usn)


def parse(data: bytes) -> Answer | Notification:
    """Read one datagram; what follows the first empty line is passed over.

    Header names count in any case, lines may end in a bare LF, and bytes that are no UTF-8 are ISO 8859-1.
    Raises `DecodeError` for anything else, and for the requests of others who search.
    """
    if len(data) > MOST_MESSAGE_BYTES:
        raise DecodeError(f"an SSDP message of {len(data)} bytes; {MOST_MESSAGE_BYTES} are the most")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    start, *lines = text.lstrip("\r\n").split("\n")
    method, _, rest = start.strip().upper().partition(" ")
    if method == "M-SEARCH":
        raise DecodeError("an M-SEARCH request: somebody else's search, not an answer")
    headers = _headers(lines)
    location = headers.get("location") or None
    usn, server = printable(headers.get("usn", "")), printable(headers.get("server", ""))
    boot_id = _number(headers.get("bootid.upnp.org"))
    if method == "NOTIFY":
        try:
            kind = NotificationKind(headers.get("nts", "").lower())
        except ValueError as error:
            raise DecodeError(f"a NOTIFY of an unknown kind: {headers.get('nts', '')[:40]!r}") from error
        next_boot_id = _number(headers.get("nextbootid.upnp.org"))
        notification_type = printable(headers.get("nt", ""))
        return Notification(kind, location, notification_type, usn, server, boot_id, next_boot_id)
    if not method.startswith("HTTP/"):
        raise DecodeError(f"neither an SSDP response nor a notification: {start[:40]!r}")
    if rest.split()[:1] != ["200"]:
        raise DecodeError(f"an SSDP response other than 200 OK: {start[:40]!r}")
    return Answer(location, printable(headers.get("st", "")), usn, server, boot_id)


def _headers(lines: Sequence[str]) -> dict[str, str]:
    """The headers by name in lower case; the first of a name counts, and a line that is none is no matter."""
    headers: dict[str, str] = {}
    for number, line in enumerate(lines):
        if not line.strip():
            break
        if number == MOST_HEADERS:
            raise DecodeError(f"an SSDP message of more than {MOST_HEADERS} headers")
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip(" \t\r\0"))
    return headers


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) <= 10 and text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class SearchSocket:
    """A socket to search from: its name, and the default gateway of its interface where there is one."""

    name: str
    gateway: IPAddress | None = None
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """A device said where its description is. One that is not `likely` a gateway is worth a look last.

    A location is heard once from one address; but once more where it turns out to be likely after all.
    """

    answer: Answer | Notification
    source: Endpoint
    socket: str
    likely: bool


@dataclass(frozen=True, slots=True)
class SearchEnded:
    """The time is up."""


class Search:
    """One search for gateways, from several sockets at once; a `machine.Machine`.

    A gateway is asked by unicast first, which opens this host's firewall for its answer; some answer nothing
    else, and others (eero) only multicast. InternetGatewayDevice is asked for by both versions, since not
    every router of the second answers for the first. `ssdp:all`, once and only where no gateway has answered,
    is for those that answer for neither. Alone it would not do: some answer it with their first device only,
    which may be another; and miniupnpd does nothing else for 0.25 s while it sends its 26 answers.
    Answers count from any address and port (the TP-Link ER605 uses a new port), and so do notifications: the
    D-Link DSL-2730E answers with one.
    """

    def __init__(self, sockets: Sequence[SearchSocket], *, timeout_s: float, now: float) -> None:
        """Make the first requests ready to be sent at once; the search ends after `timeout_s`."""
        self._sockets = tuple(sockets)
        self._gateways = frozenset(_unscoped(s.gateway) for s in sockets if s.gateway is not None)
        self._ends_at: float | None = now + timeout_s
        self._repeat_at = now + REPEAT_AFTER_S
        self._interval_s = REPEAT_AFTER_S
        self._outbox = self._requests(*_SEARCH_TARGETS)
        self._events: deque[Heard | SearchEnded] = deque()
        self._likely = _Responders(MOST_RESPONDERS)
        self._unlikely = _Responders(MOST_UNLIKELY_RESPONDERS)

    def _requests(self, *search_targets: str) -> list[Transmit]:
        requests: list[Transmit] = []
        for socket in self._sockets:
            hosts = [MULTICAST_IPV6 if socket.ipv6 else MULTICAST_IPV4]
            if socket.gateway is not None:
                hosts.insert(0, Endpoint(socket.gateway, PORT))
            for host in hosts:
                requests += (
                    Transmit(search_request(target, host), host, socket.name) for target in search_targets
                )
        return requests

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def timeout_at(self) -> float | None:
        """When to ask again or to end; None when it is over."""
        return None if self._ends_at is None else min(self._repeat_at, self._ends_at)

    def handle_timeout(self, *, now: float) -> None:
        """Ask again, or end, if that is due. The interval doubles each time."""
        if self._ends_at is None:
            return
        if now >= self._ends_at:
            self._ends_at = None
            self._outbox.clear()
            self._events.append(SearchEnded())
        elif now >= self._repeat_at:
            is_first = self._interval_s == REPEAT_AFTER_S
            self._interval_s *= 2
            self._repeat_at = now + self._interval_s
            wants_all = is_first and not self._likely.anybody
            self._outbox += self._requests(*_SEARCH_TARGETS, *([_ALL] if wants_all else []))

    def next_event(self) -> Heard | SearchEnded | None:
        """Take what was heard next, and at last the end."""
        return self._events.popleft() if self._events else None

    def receive(
        self,
        data: bytes,
        source: Endpoint,
        *,
        now: float,  # noqa: ARG002  # of the machine's contract; what is heard needs no time
        socket: str = "",
    ) -> None:
        """Take one datagram; what is no answer, or one too many, is passed over."""
        ip = _unscoped(source.ip)
        is_known_gateway = ip in self._gateways
        if self._ends_at is None or not self._likely.has_room(ip, always=is_known_gateway):
            return
        try:
            answer = parse(data)
            location = Location.parse(answer.location or "")
        except DecodeError:
            return
        if isinstance(answer, Notification) and answer.kind is not NotificationKind.ALIVE:
            return
        likely = answer.is_likely
        if self._likely.has(ip, location):
            return
        responders = self._likely if likely else self._unlikely
        if responders.add(ip, location, always=is_known_gateway):
            self._events.append(Heard(answer, source, socket, likely))


class _Responders:
    """The locations that were heard from each address, as far as there is room for them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._locations: dict[IPAddress, set[Location]] = {}

    @property
    def anybody(self) -> bool:
        """Whether there is one."""
        return bool(self._locations)

    def has(self, ip: IPAddress, location: Location) -> bool:
        return location in self._locations.get(ip, ())

    def has_room(self, ip: IPAddress, *, always: bool) -> bool:
        """Whether something new from `ip` would be kept; always from a default gateway, up to its share."""
        heard = self._locations.get(ip)
        if heard is None:
            return always or len(self._locations) < self._most
        return len(heard) < MOST_LOCATIONS

    def add(self, ip: IPAddress, location: Location, *, always: bool) -> bool:
        """Keep it; False where it was known, or there is no room."""
        if self.has(ip, location) or not self.has_room(ip, always=always):
            return False
        self._locations.setdefault(ip, set()).add(location)
        return True


def _unscoped(ip: IPAddress) -> IPAddress:
    """The address as sockets report it: an IPv6 one without the scope that routes have."""
    return IPv6Address(int(ip)) if isinstance(ip, IPv6Address) else ip


class RouterSign(Enum):
    """What notifications say about the router that is watched."""

    GONE = "gone"  # it said goodbye; its mappings cannot be relied on any more
    RESTARTED = "restarted"  # it is there, and has forgotten its mappings


class Watch:
    """What a router's notifications say about its mappings: each burst of a dozen is at most one sign.

    A notification counts when it names the router's `udn`, or is a gateway's and comes from its `address`:
    the devices inside a router have other names, and beside them may live a media server.
    """

    def __init__(self, *, udn: str, address: IPAddress, boot_id: int | None = None) -> None:
        """`boot_id` is that of the router's answer; where it is None, the first that is heard counts."""
        self._udn = udn.lower()
        self._address = _unscoped(address)
        self._boot_id = boot_id
        self._is_gone = False
        self._is_updating = False

    def receive(self, data: bytes, source: Endpoint) -> RouterSign | None:
        """Take one datagram; None where it says nothing new, or nothing about this router."""
        try:
            message = parse(data)
        except DecodeError:
            return None
        return self.heard(message, source) if isinstance(message, Notification) else None

    def heard(self, notification: Notification, source: Endpoint) -> RouterSign | None:
        """Take one notification; None where it says nothing new, or nothing about this router."""
        is_named = bool(self._udn) and notification.udn.lower() == self._udn
        if not is_named and not (_unscoped(source.ip) == self._address and notification.is_likely):
            return None
        match notification.kind:
            case NotificationKind.BYEBYE:
                was_gone, self._is_gone = self._is_gone, True
                return None if was_gone else RouterSign.GONE
            case NotificationKind.UPDATE if notification.next_boot_id is None:
                was_updating, self._is_updating = self._is_updating, True
                return None if was_updating else RouterSign.RESTARTED
            case NotificationKind.UPDATE:
                boot_id = notification.next_boot_id
                is_new = boot_id != self._boot_id
            case NotificationKind.ALIVE:
                boot_id = self._boot_id if notification.boot_id is None else notification.boot_id
                is_new = self._boot_id not in (None, boot_id)
        is_back, self._is_gone, self._is_updating = self._is_gone, False, False
        self._boot_id = boot_id
        return RouterSign.RESTARTED if is_new or is_back else None
