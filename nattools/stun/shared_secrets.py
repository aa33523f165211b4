"""User names and passwords for anybody, as RFC 3489 hands them out over TLS (§8.2, §9.3).

Nothing is kept of them. A user name holds when it was made, a random number, and an HMAC over both and over
the client's IP address; its password is another HMAC over the name. So whoever has the same key judges what
another has handed out: several processes, or two hosts, whose clocks agree to `CLOCK_SKEW_S`. Whoever shows
such a name in a datagram has connected from the same IP address before: the address is not forged.

::

    name: base64url of  time 4 | random 8 | HMAC 12        password: base64url of  HMAC 18

Names and passwords are of whole words, as RFC 3489 §11.2.6 and §11.2.7 want them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass, field

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import CredentialError, DecodeError
from nattools.machine import Entropy
from nattools.stun.accounts import LEAST_SECRET_BYTES, Admission, Rejection
from nattools.stun.attributes import PASSWORD, USERNAME, Attribute, ErrorCode
from nattools.stun.integrity import integrity_holds
from nattools.stun.message import Message

LIFETIME_S = 600
"""A shared secret is taken for so long: RFC 3489 §8.2 wants 10 minutes at the least and 30 at the most."""

CLOCK_SKEW_S = 60
"""So far ahead may the clock be of the host that has handed a secret out."""

_TIME_BYTES, _RANDOM_BYTES, _MARK_BYTES, _PASSWORD_BYTES = 4, 8, 12, 18
_NAME_BYTES = _TIME_BYTES + _RANDOM_BYTES + _MARK_BYTES
_FOR_NAMES, _FOR_PASSWORDS = b"RFC 3489 USERNAME", b"RFC 3489 PASSWORD"


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """What a client gets, and shows from then on."""

    username: str
    password: str = field(repr=False)

    @property
    def attributes(self) -> tuple[Attribute, Attribute]:
        """The attributes of the Shared Secret Response (RFC 3489 §8.2)."""
        return USERNAME.of(self.username), PASSWORD.of(self.password.encode())


class SharedSecrets:
    """Hands out shared secrets, and judges the classic requests that are sealed with them."""

    def __init__(self, key: bytes, *, entropy: Entropy, clock_ahead_s: float = 0.0) -> None:
        """`key` makes names and passwords; `clock_ahead_s` is the time of day less that of `now`, in seconds.

        Raises `CredentialError` for a key of less than `LEAST_SECRET_BYTES`.
        """
        if len(key) < LEAST_SECRET_BYTES:
            raise CredentialError(f"a key of {len(key)} bytes; {LEAST_SECRET_BYTES} at the least")
        self._name_key = hmac.digest(key, _FOR_NAMES, "sha256")
        self._password_key = hmac.digest(key, _FOR_PASSWORDS, "sha256")
        self._entropy = entropy
        self._clock_ahead_s = clock_ahead_s

    def issue(self, source: Endpoint, *, now: float) -> SharedSecret:
        """A new one, for requests from the IP address of `source`."""
        time = int(now + self._clock_ahead_s) & 0xFFFFFFFF
        head = time.to_bytes(_TIME_BYTES, "big") + self._entropy(_RANDOM_BYTES)
        username = _text(head + self._mark(head, source.ip))
        return SharedSecret(username, self._password(username))

    def judge(self, request: Message, source: Endpoint, *, now: float) -> Admission | Rejection:
        """Whether the classic `request`, which has MESSAGE-INTEGRITY, is sealed with a secret for `source`.

        432 without USERNAME, 430 for a name that is too old or not one for this address, 431 where the seal
        is wrong (RFC 3489 §8.1). It never raises.
        """
        try:
            username = request.get(USERNAME)
        except DecodeError:  # bytes that are no UTF-8 are no name of ours
            return Rejection(ErrorCode.STALE_CREDENTIALS)
        if username is None:
            return Rejection(ErrorCode.MISSING_USERNAME)
        if not self.knows(username, source, now=now):
            return Rejection(ErrorCode.STALE_CREDENTIALS)
        key = self._password(username).encode()
        if not integrity_holds(request, key):
            return Rejection(ErrorCode.INTEGRITY_CHECK_FAILURE)
        return Admission(key, sha256=False)

    def knows(self, username: str, source: Endpoint, *, now: float) -> bool:
        """Whether this is the name of a secret for `source` that is still good."""
        try:
            name = base64.b64decode(username.encode(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return False
        head, mark = name[:-_MARK_BYTES], name[-_MARK_BYTES:]
        if len(name) != _NAME_BYTES or not hmac.compare_digest(mark, self._mark(head, source.ip)):
            return False
        time = int.from_bytes(head[:_TIME_BYTES], "big")
        age_s = (int(now + self._clock_ahead_s) - time + (1 << 31)) % (1 << 32) - (1 << 31)
        return -CLOCK_SKEW_S <= age_s <= LIFETIME_S

    def _mark(self, head: bytes, ip: IPAddress) -> bytes:
        return hmac.digest(self._name_key, head + ip.packed, "sha256")[:_MARK_BYTES]

    def _password(self, username: str) -> str:
        return _text(hmac.digest(self._password_key, username.encode(), "sha256")[:_PASSWORD_BYTES])


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
