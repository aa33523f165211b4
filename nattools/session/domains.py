"""The domains that a registrar answers for, and who is addressed in them (RFC 3261 §10.3)."""

from __future__ import annotations

from collections.abc import Iterable

from nattools.sip.comparison import canonical_host, unescaped
from nattools.sip.uri import SipUri


class Domains:
    """Host names and addresses that all mean this one domain; the first is the one it is called by.

    A user of one of them is the same user in all, since phones are set up by name and by address.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` as they stand in URIs, IPv6 addresses with brackets or without. None: `ValueError`."""
        written = [name.removeprefix("[").removesuffix("]") for name in names]
        if not written:
            raise ValueError("a registrar without a domain would answer for nobody: name at least one")
        self._hosts = frozenset(canonical_host(name.encode()) for name in written)
        self.name = canonical_host(written[0].encode()).decode()

    def __contains__(self, host: bytes) -> bool:
        """Whether a URI with this host is for us, whatever its port."""
        return canonical_host(host) in self._hosts

    @property
    def host(self) -> str:
        """The first domain as a URI has it: an IPv6 address in brackets."""
        return f"[{self.name}]" if ":" in self.name else self.name

    def user_of(self, uri: SipUri) -> str | None:
        """The user that a sip or sips URI of ours names, unescaped and without a password; None for no user.

        `sip:alice@...` and `sips:alice@...` are one user (RFC 5630 §5.3), `sip:Alice@...` is another.
        """
        if uri.scheme not in ("sip", "sips") or uri.user is None or uri.host not in self:
            return None
        user = unescaped(uri.user.partition(b":")[0]) or b""
        return user.decode("utf-8", "surrogateescape") or None

    def address_of_record(self, uri: SipUri) -> str | None:
        """The canonical address-of-record of a URI (RFC 3261 §10.3 step 5): `alice@example.com`.

        None where it is not of our domains, or names no user in them. Parameters, GRUU's too, are dropped.
        """
        user = self.user_of(uri)
        return None if user is None else f"{user}@{self.name}"
