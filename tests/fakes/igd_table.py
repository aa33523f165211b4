"""The table of port mappings of a fake router, and its answers to actions (WANIPConnection:2 §2.5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace

from tests.fakes.igd_descriptions import FIREWALL, Arguments, Behaviour, Entry, Refusal, Service, escaped

_MOST_LISTED = 1000

LIST_ENTRY = (
    "<p:PortMappingEntry><p:NewRemoteHost>{remote_host}</p:NewRemoteHost>"
    "<p:NewExternalPort>{external_port}</p:NewExternalPort><p:NewProtocol>{protocol}</p:NewProtocol>"
    "<p:NewInternalPort>{internal_port}</p:NewInternalPort>"
    "<p:NewInternalClient>{internal_client}</p:NewInternalClient><p:NewEnabled>{enabled}</p:NewEnabled>"
    "<p:NewDescription>{description}</p:NewDescription><p:NewLeaseTime>{lease}</p:NewLeaseTime></p:PortMappingEntry>"
)
LIST = (
    '<?xml version="1.0"?>\r\n<p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection">'
    "{entries}</p:PortMappingList>"
)


class RefusedError(Exception):
    """A UPnP error code that answers an action."""

    def __init__(self, code: int) -> None:
        super().__init__(f"UPnP error {code}")
        self.code = code


class Table:
    """The port mappings and pinholes of a router, and its answers to actions (WANIPConnection:2 §2.5)."""

    def __init__(self, behaviour: Behaviour, clock: Callable[[], float]) -> None:
        self.external_address = behaviour.external_address
        self._behaviour = behaviour
        self._clock = clock
        self._rows: dict[tuple[str, int, str], tuple[Entry, float | None]] = {}
        self._pinholes: dict[str, Arguments] = {}
        self._given: Counter[str] = Counter()
        for entry in behaviour.entries:
            self._store(entry)

    @property
    def entries(self) -> list[Entry]:
        """What is mapped now, with what is left of each lease."""
        now = self._clock()
        for key, (_, ends_at) in list(self._rows.items()):
            if ends_at is not None and ends_at <= now:
                del self._rows[key]
        return [
            entry if ends_at is None else replace(entry, lease_s=max(1, round(ends_at - now)))
            for entry, ends_at in self._rows.values()
        ]

    def forget(self) -> None:
        """Lose everything, as a power cut does."""
        self._rows.clear()
        self._pinholes.clear()

    def perform(self, service: Service, action: str, arguments: Arguments, peer: str) -> Arguments:
        """Carry out an action; gives the out arguments. Raises `RefusedError`."""
        handlers = self._handlers(service, peer)
        if action not in handlers:
            raise RefusedError(401)
        self._refuse_as_told(action)
        try:
            reply = handlers[action](arguments)
        except (KeyError, ValueError) as error:  # an argument that is missing, or not a number
            raise RefusedError(402) from error
        reply |= self._behaviour.answers.get(action, {})
        return {self._behaviour.renamed.get(name, name): text for name, text in reply.items()}

    def knows(self, service: Service, action: str) -> bool:
        """Whether the service has that action."""
        return action in self._handlers(service, "")

    def _refuse_as_told(self, action: str) -> None:
        rule = self._behaviour.fault_on.get(action)
        refusal = Refusal(rule) if isinstance(rule, int) else rule
        if refusal is not None and (refusal.times is None or self._given[action] < refusal.times):
            self._given[action] += 1
            raise RefusedError(refusal.code)

    def _handlers(self, service: Service, peer: str) -> dict[str, Callable[[Arguments], Arguments]]:
        if service.type == FIREWALL:
            return {
                "GetFirewallStatus": lambda a: {"FirewallEnabled": "1", "InboundPinholeAllowed": "1"},
                "AddPinhole": self._add_pinhole,
                "UpdatePinhole": self._update_pinhole,
                "DeletePinhole": self._delete_pinhole,
                "GetPinholePackets": lambda a: {"PinholePackets": self._pinhole(a).get("Packets", "0")},
            }
        handlers: dict[str, Callable[[Arguments], Arguments]] = {
            "GetExternalIPAddress": lambda a: {"NewExternalIPAddress": self.address_of(service)},
            "GetStatusInfo": lambda a: {
                "NewConnectionStatus": service.status,
                "NewLastConnectionError": "ERROR_NONE",
                "NewUptime": str(int(self._clock())),
            },
            "AddPortMapping": lambda a: self._add_one(a, peer, service.version),
            "DeletePortMapping": lambda a: self._delete(a, peer),
            "GetGenericPortMappingEntry": self._generic,
            "GetSpecificPortMappingEntry": lambda a: _row(self._find(a), keyed=False),
        }
        if service.version >= 2:
            handlers |= {
                "AddAnyPortMapping": lambda a: {"NewReservedPort": self._add_any(a, peer, service.version)},
                "DeletePortMappingRange": lambda a: self._delete_range(a, peer),
                "GetListOfPortMappings": self._list,
            }
        return handlers

    def address_of(self, service: Service) -> str:
        """The external address of one WAN connection."""
        return self.external_address if service.external_address is None else service.external_address

    def _store(self, entry: Entry) -> None:
        ends_at = self._clock() + entry.lease_s if entry.lease_s else None
        self._rows[entry.remote_host, entry.external_port, entry.protocol] = (entry, ends_at)

    def _add(self, arguments: Arguments, peer: str, version: int) -> Entry:
        rules = self._behaviour
        entry = Entry(
            int(arguments["NewExternalPort"]),
            arguments["NewProtocol"].upper(),
            arguments["NewInternalClient"],
            int(arguments["NewInternalPort"]),
            int(arguments["NewLeaseDuration"]),
            rules.description_form(arguments["NewPortMappingDescription"]),
            arguments["NewRemoteHost"],
            arguments["NewEnabled"],
        )
        is_known = any(_key(entry) == _key(other) for other in self.entries)
        refusals = (
            (entry.protocol not in ("TCP", "UDP"), 402),
            (arguments["NewProtocol"] != entry.protocol, rules.lower_case_protocol_code),
            (not 0 <= entry.external_port <= 0xFFFF or not 0 <= entry.internal_port <= 0xFFFF, 601),
            (entry.external_port == 0, rules.port_zero_code),
            (entry.internal_port == 0, 732),
            (rules.is_secure and entry.internal_client != peer, rules.not_yours_code),
            (entry.external_port != entry.internal_port, rules.other_port_code),
            (bool(entry.remote_host), rules.remote_host_code),
            (entry.lease_s > 0, rules.lease_code),
            (entry.lease_s == 0, rules.permanent_code),
            (entry.external_port in rules.forbidden_ports, rules.forbidden_code),
            (self._is_anothers(entry), rules.conflict_code),
            (len(self._rows) >= rules.most_entries and not is_known, rules.full_code),
        )
        for applies, code in refusals:
            if applies and code is not None:
                raise RefusedError(code)
        if version >= 2:  # 0 is the longest lease there (WANIPConnection:2 §2.3.16)
            lease_s = min(entry.lease_s or rules.longest_lease_s, rules.longest_lease_s)
            entry = replace(entry, lease_s=0 if rules.lease_code is not None else lease_s)
        if not rules.pretends:
            self._store(entry)
        return entry

    def _add_one(self, arguments: Arguments, peer: str, version: int) -> Arguments:
        self._add(arguments, peer, version)
        return {}

    def _is_anothers(self, entry: Entry) -> bool:
        return any(
            _key(entry) == _key(other) and entry.internal_client != other.internal_client
            for other in self.entries
        )

    def _add_any(self, arguments: Arguments, peer: str, version: int) -> str:
        """Map the port that is asked for, or the next one that is free (WANIPConnection:2 §2.5.17)."""
        for port in range(int(arguments["NewExternalPort"]), 0xFFFF):
            try:
                entry = self._add({**arguments, "NewExternalPort": str(port)}, peer, version)
            except RefusedError as refused:
                if refused.code not in (self._behaviour.conflict_code, self._behaviour.forbidden_code):
                    raise
            else:
                return str(entry.external_port)
        raise RefusedError(728)

    def _find(self, arguments: Arguments) -> Entry:
        wanted = (
            arguments["NewRemoteHost"],
            int(arguments["NewExternalPort"]),
            arguments["NewProtocol"].upper(),
        )
        found = next((entry for entry in self.entries if _key(entry) == wanted), None)
        if found is None:
            raise RefusedError(714)
        return found

    def _delete(self, arguments: Arguments, peer: str) -> Arguments:
        entry = self._find(arguments)
        if self._behaviour.is_secure and entry.internal_client != peer:
            raise RefusedError(606)
        del self._rows[_key(entry)]
        return {}

    def _in_range(self, arguments: Arguments) -> list[Entry]:
        ports = range(int(arguments["NewStartPort"]), int(arguments["NewEndPort"]) + 1)
        if not ports:
            raise RefusedError(733)
        protocol = arguments["NewProtocol"].upper()
        return [e for e in self.entries if e.external_port in ports and e.protocol == protocol]

    def _delete_range(self, arguments: Arguments, peer: str) -> Arguments:
        found = self._in_range(arguments)
        if not found:
            raise RefusedError(730)
        for entry in found:
            if entry.internal_client == peer or not self._behaviour.is_secure:
                del self._rows[_key(entry)]
        return {}

    def _generic(self, arguments: Arguments) -> Arguments:
        index = int(arguments["NewPortMappingIndex"])
        if self._behaviour.endless_entries is not None:
            return _row(self._behaviour.endless_entries(index))
        entries = self.entries
        if not 0 <= index < len(entries):
            raise RefusedError(713)
        return _row(entries[index])

    def _list(self, arguments: Arguments) -> Arguments:
        number = int(arguments["NewNumberOfPorts"]) or _MOST_LISTED
        found = self._in_range(arguments)[:number]
        if not found:
            raise RefusedError(730)
        rows = "".join(_listed(entry) for entry in found)
        return {"NewPortListing": LIST.replace("{entries}", rows)}

    def _add_pinhole(self, arguments: Arguments) -> Arguments:
        name = str(len(self._pinholes) + 1)
        self._pinholes[name] = dict(arguments)
        return {"UniqueID": name}

    def _update_pinhole(self, arguments: Arguments) -> Arguments:
        self._pinhole(arguments)["LeaseTime"] = arguments["NewLeaseTime"]
        return {}

    def _delete_pinhole(self, arguments: Arguments) -> Arguments:
        self._pinhole(arguments)
        del self._pinholes[arguments["UniqueID"]]
        return {}

    def _pinhole(self, arguments: Arguments) -> Arguments:
        if arguments["UniqueID"] not in self._pinholes:
            raise RefusedError(704)
        return self._pinholes[arguments["UniqueID"]]


def _key(entry: Entry) -> tuple[str, int, str]:
    return entry.remote_host, entry.external_port, entry.protocol


def _row(entry: Entry, *, keyed: bool = True) -> Arguments:
    """The out arguments of a row; without its key where that was asked for."""
    key = {
        "NewRemoteHost": entry.remote_host,
        "NewExternalPort": str(entry.external_port),
        "NewProtocol": entry.protocol,
    }
    return (key if keyed else {}) | {
        "NewInternalPort": str(entry.internal_port),
        "NewInternalClient": entry.internal_client,
        "NewEnabled": entry.enabled,
        "NewPortMappingDescription": entry.description,
        "NewLeaseDuration": str(entry.lease_s),
    }


def _listed(entry: Entry) -> str:
    row = LIST_ENTRY
    for name, value in {**asdict(entry), "lease": entry.lease_s}.items():
        row = row.replace("{" + name + "}", escaped(str(value)))
    return row
