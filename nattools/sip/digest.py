"""Digest authentication as SIP uses it: who answers a challenge, and who sets one (RFC 7616, RFC 8760).

The arithmetic is RFC 7616's, that of RFC 2069 included where a server asks for no qop. What SIP adds is in
RFC 3261 §22: several challenges in one response, 401 and 407 side by side, and the method and URI of a
request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from math import floor
from typing import Protocol

from nattools.errors import AuthenticationError, DecodeError
from nattools.machine import Entropy
from nattools.sip.message import SipMessage

_SCHEME = re.compile(rb"\s*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)(?:\s++|\Z)")
_PARAM = re.compile(
    rb"[\s,]*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)\s*+=\s*+"
    rb"(?:\"((?:[^\"\\]++|\\.)*+)\"|([^\s,\"]++))(?=[\s,]|\Z)",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TEXT = ("utf-8", "surrogateescape")  # bytes that are no UTF-8 come back as they were
_QOPS = ("auth", "auth-int")
_HEADERS = {"www-authenticate": "Authorization", "proxy-authenticate": "Proxy-Authorization"}
_CNONCE_BYTES = 16
_MOST_REALMS = 16
_NONCE_LIFETIME_S = 300.0
_NONCE_BYTES = 8 + 8 + 16  # when it was made, in milliseconds; chance; the HMAC of both
_MOST_NONCES = 4096
_COUNT_WINDOW = 64


class Algorithm(Enum):
    """The hashes of the registry, by their names in it; each has a `-sess` form (RFC 7616 §6.1)."""

    MD5 = "MD5"
    SHA_256 = "SHA-256"
    SHA_512_256 = "SHA-512-256"

    @property
    def is_known(self) -> bool:
        """Whether this machine can compute it: SHA-512/256 comes from OpenSSL, not from Python."""
        return _HASHES[self] in hashlib.algorithms_available

    def digest(self, text: str | bytes) -> str:
        """The hash of `text` in lower-case hexadecimal (RFC 8760 §2.2)."""
        data = text if isinstance(text, bytes) else text.encode(*_TEXT)
        return hashlib.new(_HASHES[self], data, usedforsecurity=False).hexdigest()


_HASHES = {Algorithm.MD5: "md5", Algorithm.SHA_256: "sha256", Algorithm.SHA_512_256: "sha512_256"}
_ALGORITHMS = {algorithm.value.lower(): algorithm for algorithm in Algorithm}


def _read_algorithm(name: str | None) -> tuple[Algorithm | None, bool]:
    """The algorithm of that name, None if it cannot be computed, and whether it is the `-sess` form."""
    bare = (name or Algorithm.MD5.value).lower()
    is_session = bare.endswith("-sess")
    algorithm = _ALGORITHMS.get(bare.removesuffix("-sess"))
    return (algorithm if algorithm is not None and algorithm.is_known else None), is_session


def _read_params(value: bytes) -> dict[str, str]:
    """Read `Digest name=value, ...`; a comma may be missing, as in some servers' challenges.

    Raises `DecodeError` for another scheme, and for what cannot be read.
    """
    scheme = _SCHEME.match(value)
    if scheme is None or scheme[1].lower() != b"digest":
        raise DecodeError(f"{value[:40]!r} is not of the Digest scheme")
    params: dict[str, str] = {}
    position, end = scheme.end(), len(value.rstrip(b" \t\r\n,"))
    while position < end:
        match = _PARAM.match(value, position)
        if match is None:
            raise DecodeError(f"{value[position : position + 40]!r} is no parameter of a digest")
        name = match[1].decode().lower()
        if name in params:
            raise DecodeError(f"a digest that has {name} twice")
        quoted = match[2]
        text = (match[3] if quoted is None else quoted).decode(*_TEXT)
        params[name] = text if quoted is None else _ESCAPE.sub(r"\1", text)
        position = match.end()
    return params


def is_reusable(credentials: bytes) -> bool:
    """Whether an Authorization can be sent again with another request to the same URI: it has no qop."""
    try:
        return "qop" not in _read_params(credentials)
    except DecodeError:
        return False


def _quote(text: str) -> str:
    """Write a quoted string. Line breaks, which no value may have, become blanks."""
    text = re.sub(r"[\r\n]+", " ", text)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a WWW-Authenticate or Proxy-Authenticate asks for (RFC 7616 §3.3).

    `algorithm` is None where it is not known here, `qops` empty where the server is of RFC 2069's kind.
    """

    realm: str
    nonce: str
    algorithm_name: str | None
    algorithm: Algorithm | None
    is_session: bool
    qops: tuple[str, ...]
    opaque: str | None
    is_stale: bool
    wants_userhash: bool

    @classmethod
    def parse(cls, value: bytes) -> Challenge:
        """Read a header's value. Raises `DecodeError`, also for another scheme than Digest."""
        params = _read_params(value)
        if "realm" not in params or "nonce" not in params:
            raise DecodeError("a digest challenge without realm or nonce")
        algorithm, is_session = _read_algorithm(params.get("algorithm"))
        qops = tuple(qop.strip().lower() for qop in params.get("qop", "").split(",") if qop.strip())
        return cls(
            params["realm"],
            params["nonce"],
            params.get("algorithm"),
            algorithm,
            is_session,
            qops,
            params.get("opaque"),
            params.get("stale", "").lower() == "true",
            params.get("userhash", "").lower() == "true",
        )

    @property
    def qop(self) -> str | None:
        """The protection to use: `auth` rather than `auth-int`, which forbids editing the body; or None."""
        return next((known for known in _QOPS if known in self.qops), None)

    @property
    def objection(self) -> str | None:
        """Why it cannot be answered, None where it can."""
        if self.algorithm is None:
            return f"the algorithm {(self.algorithm_name or '')[:40]!r} is not known"
        if self.qops and self.qop is None:
            return f"the protection {', '.join(self.qops)[:40]!r} is not known, only auth and auth-int are"
        return None


@dataclass(frozen=True, slots=True)
class _Use:
    """One use of a nonce, by its parameters in the header; without qop there is no `nc` and no `cnonce`."""

    nonce: str
    uri: str
    qop: str | None = None
    nc: str = ""
    cnonce: str = ""
    is_session: bool = False

    def response(self, algorithm: Algorithm, secret: str, method: str, body: bytes) -> str:
        """The `response` of RFC 7616 §3.4.1, where `secret` is H(user:realm:password)."""
        if self.is_session:
            secret = algorithm.digest(f"{secret}:{self.nonce}:{self.cnonce}")
        what = f"{method}:{self.uri}"
        if self.qop == "auth-int":
            what += f":{algorithm.digest(body)}"
        used = self.nonce if self.qop is None else f"{self.nonce}:{self.nc}:{self.cnonce}:{self.qop}"
        return algorithm.digest(f"{secret}:{used}:{algorithm.digest(what)}")


@dataclass(slots=True)
class _Answering:
    """A challenge that is being answered, and how often its nonce was used."""

    challenge: Challenge
    algorithm: Algorithm
    uses: int = 0


class Answering(Protocol):
    """Whoever answers challenges: a `DigestClient`, or what has several."""

    def challenged(self, response: SipMessage, request: SipMessage | None = None, /) -> None:
        """As `DigestClient.challenged`. Raises `AuthenticationError`."""

    def headers(self, method: str, uri: str, body: bytes = b"", /) -> list[tuple[str, bytes]]:
        """As `DigestClient.headers`."""


class DigestClient:
    """A user agent's name and password, and the challenges that it has been set.

    Give it each 401 and 407 (`challenged`), and put `headers` into the next try and every later request:
    servers that remember their nonce then ask no more.
    """

    def __init__(self, username: str, password: str, *, entropy: Entropy) -> None:
        self._username = username
        self._password = password
        self._entropy = entropy
        self._answering: OrderedDict[tuple[str, str], _Answering] = OrderedDict()

    def challenged(self, response: SipMessage, request: SipMessage | None = None) -> None:
        """Take the challenges of a 401 or 407. `request` is the one that was refused.

        Of each realm's challenges the topmost one counts whose algorithm is known: servers list what they
        like best first (RFC 8760 §2.4). Raises `AuthenticationError` where none can be answered, and where
        the password was refused; that is seen by the credentials in `request`.
        """
        challenges: dict[tuple[str, str], Challenge] = {}
        unusable = []
        for asks, answers in _HEADERS.items():
            for header in response.headers_named(asks):
                try:
                    challenge = Challenge.parse(response.value(header))
                except DecodeError as error:
                    unusable.append(str(error))
                    continue
                if (objection := challenge.objection) is not None:
                    unusable.append(objection)
                else:
                    challenges.setdefault((answers, challenge.realm), challenge)
        code = response.status_code or 401
        if not challenges:
            raise AuthenticationError(
                f"a {code} asks for credentials that cannot be given: "
                f"{'; '.join(unusable) or 'it names no challenge'}",
                code=code,
            )
        for key, challenge in challenges.items():
            self._refuse_to_repeat(key, challenge, request, code)
            self._answering.pop(key, None)
            if challenge.algorithm is not None:
                self._answering[key] = _Answering(challenge, challenge.algorithm)
        while len(self._answering) > _MOST_REALMS:
            self._answering.popitem(last=False)

    def _refuse_to_repeat(
        self, key: tuple[str, str], challenge: Challenge, request: SipMessage | None, code: int
    ) -> None:
        """Raise where credentials for a fresh nonce were refused: they would be refused again (RFC 7616
        §3.3).

        A nonce that had been good for other requests may have run out without the server calling it stale.
        """
        if challenge.is_stale or request is None:
            return
        current = self._answering.get(key)
        for header in request.headers_named(key[0].lower()):
            try:
                params = _read_params(request.value(header))
            except DecodeError:
                continue
            used_before = (
                current is not None and current.challenge.nonce == params.get("nonce") and current.uses > 1
            )
            if params.get("realm") == challenge.realm and not used_before:
                raise AuthenticationError(
                    f"user name or password refused for realm {challenge.realm!r} ({code}): "
                    "see that both are those of the account at this server",
                    code=code,
                )

    def headers(self, method: str, uri: str, body: bytes = b"") -> list[tuple[str, bytes]]:
        """The Authorization and Proxy-Authorization headers of the next request; none before any challenge.

        `uri` is the Request-URI, byte for byte. Each call counts as a use of the nonces: call it once for
        each request, and not for its retransmissions. An ACK takes the credentials of its INVITE, and a
        CANCEL needs none (RFC 3261 §22.1).
        """
        return [
            (answers, self._authorize(answering, method, uri, body))
            for (answers, _realm), answering in self._answering.items()
        ]

    def _authorize(self, answering: _Answering, method: str, uri: str, body: bytes) -> bytes:
        challenge, algorithm = answering.challenge, answering.algorithm
        answering.uses += 1
        use = _Use(
            challenge.nonce,
            uri,
            challenge.qop,
            f"{answering.uses:08x}",
            self._entropy(_CNONCE_BYTES).hex(),
            challenge.is_session,
        )
        realm, username = challenge.realm, self._username
        secret = algorithm.digest(f"{username}:{realm}:{self._password}")
        if challenge.wants_userhash:
            username = algorithm.digest(f"{username}:{realm}")
        params = [
            f"username={_quote(username)}",
            f"realm={_quote(realm)}",
            f"nonce={_quote(challenge.nonce)}",
            f"uri={_quote(uri)}",
            f'response="{use.response(algorithm, secret, method, body)}"',
        ]
        if challenge.algorithm_name is not None:
            params.append(f"algorithm={algorithm.value}{'-sess' if challenge.is_session else ''}")
        if use.qop is not None:
            params += [f"qop={use.qop}", f"nc={use.nc}"]
        if use.qop is not None or challenge.is_session:
            params.append(f'cnonce="{use.cnonce}"')
        if challenge.opaque is not None:
            params.append(f"opaque={_quote(challenge.opaque)}")
        if challenge.wants_userhash:
            params.append("userhash=true")
        return f"Digest {', '.join(params)}".encode(*_TEXT)


class Verdict(Enum):
    """What a server thinks of a request's credentials."""

    ACCEPTED = "accepted"
    ABSENT = "absent"  # none for this realm: challenge
    STALE = "stale"  # a nonce that is old, unknown or used already: challenge, saying so
    REFUSED = "refused"  # wrong name, password or form: challenge again, or answer 403


@dataclass(frozen=True, slots=True)
class Verification:
    """A verdict on the credentials of `username`, as the request claims, and what it rests on, in words."""

    verdict: Verdict
    username: str = ""
    reason: str = ""


class DigestServer:
    """Challenges for one realm, and the verification of what comes back (RFC 7616 §3.3, RFC 3261 §22.4).

    Nonces need no memory until they are used: each carries its time and an HMAC. Of those in use the counts
    that came are remembered, so that a request heard on the way cannot be sent again by somebody else.
    Without qop there is no count, and whoever hears a request can repeat its like until the nonce is old.
    """

    def __init__(
        self,
        realm: str,
        *,
        entropy: Entropy,
        algorithms: Iterable[Algorithm] = (Algorithm.SHA_256, Algorithm.MD5),
        qops: Iterable[str] = ("auth",),
        is_proxy: bool = False,
        is_qop_required: bool = False,
        nonce_lifetime_s: float = _NONCE_LIFETIME_S,
    ) -> None:
        """Offer those of `algorithms` that can be computed, best first.

        A client that answers without qop is of RFC 2069's kind (pyVoIP is), and let in unless
        `is_qop_required`. `is_proxy` asks by 407 and Proxy-Authenticate.
        """
        self._realm = realm
        self._entropy = entropy
        self._algorithms = tuple(algorithm for algorithm in algorithms if algorithm.is_known)
        self._qops = tuple(qops)
        self._is_proxy = is_proxy
        self._is_qop_required = is_qop_required
        self._lifetime_s = nonce_lifetime_s
        self._key = entropy(32)
        self._counts: OrderedDict[str, _Counts] = OrderedDict()
        self._forgotten_until = float("-inf")

    def challenges(self, *, now: float, stale: bool = False) -> list[tuple[str, bytes]]:
        """The headers of a 401, or 407: one nonce, once for each algorithm, best first (RFC 8760 §2.3)."""
        made = floor(now * 1000).to_bytes(8, "big", signed=True) + self._entropy(8)
        nonce = base64.urlsafe_b64encode(made + self._seal(made)).decode().rstrip("=")
        name = "Proxy-Authenticate" if self._is_proxy else "WWW-Authenticate"
        params = [f"realm={_quote(self._realm)}", f'nonce="{nonce}"']
        if self._qops:
            params.append(f'qop="{",".join(self._qops)}"')
        if stale:
            params.append("stale=true")
        head = f"Digest {', '.join(params)}"
        return [
            (name, f"{head}, algorithm={algorithm.value}".encode(*_TEXT)) for algorithm in self._algorithms
        ]

    def verify(
        self, request: SipMessage, password_of: Callable[[str], str | None], *, now: float
    ) -> Verification:
        """Check the credentials of `request` for this realm; `password_of` knows the accounts by their names.

        The `uri` of the credentials may differ from the Request-URI, since proxies exchange that (RFC 3261
        §22.4). ACK and CANCEL cannot be challenged: do not ask about them. Any bytes get a verdict.
        """
        name = "proxy-authorization" if self._is_proxy else "authorization"
        unread = ""
        for header in request.headers_named(name):
            try:
                params = _read_params(request.value(header))
            except DecodeError as error:
                unread = str(error)
                continue
            if params.get("realm") == self._realm:
                return self._verify(params, request, password_of, now)
        if unread:
            return Verification(Verdict.REFUSED, "", unread)
        return Verification(Verdict.ABSENT, "", f"no credentials for realm {self._realm!r}")

    def _verify(
        self,
        params: dict[str, str],
        request: SipMessage,
        password_of: Callable[[str], str | None],
        now: float,
    ) -> Verification:
        username = params.get("username", "")
        objection = self._objection(params)
        if objection is not None:
            return Verification(Verdict.REFUSED, username, objection)
        made_at = self._made_at(params["nonce"])
        if made_at is None or not 0 <= now - made_at <= self._lifetime_s:
            age = "from another server" if made_at is None else f"{now - made_at:.0f} s old"
            return Verification(Verdict.STALE, username, f"the nonce is {age}")
        algorithm, _ = _read_algorithm(params.get("algorithm"))
        password = password_of(username)
        if algorithm is None or not self._is_right(params, request, algorithm, password):
            return Verification(Verdict.REFUSED, username, "the name or the password is wrong")
        if "qop" in params and not self._is_new(params["nonce"], int(params["nc"], 16), made_at):
            return Verification(
                Verdict.STALE, username, f"the nonce was used with count {params['nc']} before"
            )
        return Verification(Verdict.ACCEPTED, username)

    def _objection(self, params: dict[str, str]) -> str | None:
        """What is wrong with the form of credentials, or None."""
        missing = [name for name in ("username", "nonce", "uri", "response") if name not in params]
        if missing:
            return f"the credentials have no {' and no '.join(missing)}"
        algorithm, is_session = _read_algorithm(params.get("algorithm"))
        if algorithm not in self._algorithms or is_session:
            return f"the algorithm {params.get('algorithm', 'MD5')[:40]!r} was not offered"
        qop = params.get("qop")
        if qop is None:
            return "the credentials have no qop" if self._is_qop_required else None
        if qop.lower() not in self._qops:
            return f"the protection {qop[:40]!r} was not offered"
        if not re.fullmatch(r"[0-9A-Fa-f]{8}", params.get("nc", "")) or "cnonce" not in params:
            return "the credentials have a qop, but no cnonce, or no nc of eight digits"
        return None

    def _is_right(
        self, params: dict[str, str], request: SipMessage, algorithm: Algorithm, password: str | None
    ) -> bool:
        qop = params.get("qop")
        use = _Use(
            params["nonce"],
            params["uri"],
            None if qop is None else qop.lower(),
            params.get("nc", ""),
            params.get("cnonce", ""),
        )
        secret = algorithm.digest(f"{params['username']}:{self._realm}:{password or ''}")
        expected = use.response(algorithm, secret, request.method, request.body)
        is_equal = hmac.compare_digest(expected.encode(), params["response"].lower().encode(*_TEXT))
        return is_equal and password is not None

    def _seal(self, made: bytes) -> bytes:
        return hmac.digest(self._key, made, "sha256")[:16]

    def _made_at(self, nonce: str) -> float | None:
        """When this server made the nonce, None if it did not, or has forgotten which counts were used."""
        try:
            raw = base64.urlsafe_b64decode(nonce.encode("ascii") + b"==")
        except (UnicodeEncodeError, ValueError):
            return None
        if len(raw) != _NONCE_BYTES or not hmac.compare_digest(self._seal(raw[:16]), raw[16:]):
            return None
        made_at = int.from_bytes(raw[:8], "big", signed=True) / 1000
        return None if made_at <= self._forgotten_until and nonce not in self._counts else made_at

    def _is_new(self, nonce: str, count: int, made_at: float) -> bool:
        """Whether that count of the nonce comes for the first time; from now on it does not."""
        counts = self._counts.get(nonce)
        if counts is None:
            counts = self._counts[nonce] = _Counts(made_at)
            if len(self._counts) > _MOST_NONCES:
                forgotten = self._counts.popitem(last=False)[1]
                self._forgotten_until = max(self._forgotten_until, forgotten.made_at)
        return counts.add(count)


class _Counts:
    """Which counts of a nonce were used: all below a window, and those in it by a bit each.

    UDP brings requests out of order, so that counting up alone would refuse good ones.
    """

    __slots__ = ("_bits", "_highest", "made_at")

    def __init__(self, made_at: float) -> None:
        self.made_at = made_at
        self._highest = 0
        self._bits = 1  # a count of zero is never used

    def add(self, count: int) -> bool:
        """Take `count` and say whether it is new."""
        if count > self._highest:
            shift = min(count - self._highest, _COUNT_WINDOW)
            self._bits = (self._bits << shift | 1) & (1 << _COUNT_WINDOW) - 1
            self._highest = count
            return True
        behind = self._highest - count
        if behind >= _COUNT_WINDOW or self._bits >> behind & 1:
            return False
        self._bits |= 1 << behind
        return True
