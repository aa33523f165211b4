"""From where how many users are registered, so that one address cannot fill the registrar."""

from __future__ import annotations

from nattools.endpoint import IPAddress, site_of

_MOST_QUIET_NOTES = 1024  # after which all sources are looked through for users that have run out


class Sources:
    """The addresses-of-record of each source address (IPv6: each /64), until their bindings expire.

    What was registered before a restart, or by another host, is not counted.
    """

    def __init__(self, most_users: int) -> None:
        self._most_users = most_users
        self._until: dict[IPAddress, dict[str, float]] = {}
        self._notes = 0

    def has_room(self, ip: IPAddress, address_of_record: str, *, now: float) -> bool:
        """Whether that source may register this address-of-record: it has before, or not too many others."""
        source = site_of(ip)
        users = self._prune(source, now)
        return address_of_record in users or len(users) < self._most_users

    def note(self, ip: IPAddress, address_of_record: str, until: float | None, *, now: float) -> None:
        """Remember that the source has bindings of this address-of-record `until` then; None: no more."""
        source = site_of(ip)
        if until is not None:
            self._until.setdefault(source, {})[address_of_record] = until
        elif source in self._until:
            self._until[source].pop(address_of_record, None)
        self._notes += 1
        if self._notes >= max(_MOST_QUIET_NOTES, len(self._until)):
            self._notes = 0
            for each in list(self._until):
                self._prune(each, now)

    def _prune(self, source: IPAddress, now: float) -> dict[str, float]:
        users = {name: until for name, until in self._until.get(source, {}).items() if until > now}
        if users:
            self._until[source] = users
        else:
            self._until.pop(source, None)
        return users
