"""A registrar: what it makes of a REGISTER, in the order of steps of RFC 3261 §10.3.

It keeps no bindings and does not wait for any. The way of a REGISTER through it::

    if registrar.is_responsible(request):                                                       # step 1
        admitted = registrar.admit(request, source=source, flow=flow, now=now)                  # steps 2 to 6
        if isinstance(admitted, Admission):
            registration = await location.update(                                               # steps 7, 8
                admitted.address_of_record,
                lambda bindings: registrar.register(admitted, bindings, now=now),
                now=now,
            )

and whatever came out has a `response`. Extensions: Path (RFC 3327), outbound (RFC 5626 §6), and public GRUUs
(RFC 5627). Temporary GRUUs are not made: they hide who is called, and this registrar asks for the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.machine import Entropy
from nattools.session.contacts import Wish, pub_gruu, read_wishes
from nattools.session.domains import Domains
from nattools.session.location import Bindings, ContactBinding
from nattools.session.sources import Sources
from nattools.session.users import Users
from nattools.sip.comparison import is_same_uri
from nattools.sip.digest import Algorithm, DigestServer, Verdict
from nattools.sip.headers import NameAddress, split_list
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.uri import SipUri

EXTENSIONS = ("gruu", "outbound", "path")
"""The option tags that a REGISTER may require."""

CHALLENGED_ALGORITHMS = (Algorithm.MD5,)
"""What phones are asked for. RFC 8760 would have SHA-256 beside it, which baresip 1.0 cannot be offered: of
several challenges it must understand each, and sipp 3.6 reads the first."""

_TAG_BYTES = 8
_MOST_PATH_BYTES = 2048
_LONGEST_LEAST_S = 3600  # no REGISTER of an hour or more may be refused as too brief (RFC 3261 §10.3 step 7)

Fields = list[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class RegistrarSettings:
    """How long registrations last, in seconds, and how many there may be. Raises `ValueError`.

    What asks for less than `least_expires_s` is refused (423), what asks for more than `most_expires_s` gets
    that. `users_per_source` counts addresses-of-record by the address that they register from (IPv6: by the
    /64); phones behind one NAT share it.
    """

    default_expires_s: int = 3600
    least_expires_s: int = 60
    most_expires_s: int = 7200
    contacts_per_user: int = 8
    users_per_source: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.least_expires_s <= self.default_expires_s <= self.most_expires_s:
            raise ValueError(
                "of the times of registrations least <= default <= most is expected, all above 0"
            )
        if self.least_expires_s > _LONGEST_LEAST_S:
            raise ValueError(f"least_expires_s={self.least_expires_s} is more than an hour (RFC 3261 §10.3)")
        if self.contacts_per_user < 1 or self.users_per_source < 1:
            raise ValueError("a limit below 1 would let nobody register")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A REGISTER that is answered without a look at any binding: the response, and why, for the log.

    `is_guess` says that it showed a password which is not the user's, or a user that is none; `is_stale` that
    only the nonce was too old, as it is whenever a phone registers again: it is just asked once more.
    """

    response: bytes
    reason: str
    is_guess: bool = False
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """A REGISTER that is well formed, by somebody who may send it, and what it asks for.

    `outside` is kept in its bindings (`ContactBinding.outside`).
    """

    request: SipMessage
    address_of_record: str
    user: str
    source: Endpoint
    call_id: bytes
    cseq: int
    wishes: tuple[Wish, ...]
    is_star: bool
    path: tuple[bytes, ...]
    flow: str
    outside: bytes = b""


@dataclass(frozen=True, slots=True)
class Registration:
    """What a REGISTER comes to: the response, and all bindings from now on, None where nothing changes.

    `reason` is empty, or says why it was refused.
    """

    response: bytes
    bindings: Bindings | None
    reason: str = ""


class _RefusedError(Exception):
    """A request that is answered with this code, for this reason."""

    def __init__(
        self,
        code: int,
        phrase: str,
        reason: str,
        headers: Iterable[tuple[str, str | bytes]] = (),
        *,
        is_guess: bool = False,
        is_stale: bool = False,
    ) -> None:
        super().__init__(reason)
        self.is_guess = is_guess
        self.is_stale = is_stale
        self.code = code
        self.phrase = phrase
        self.reason = reason
        self.headers = tuple(headers)


class Registrar:
    """The registrar of some domains and their users."""

    def __init__(
        self,
        domains: Domains,
        users: Users,
        *,
        entropy: Entropy,
        realm: str = "",
        settings: RegistrarSettings | None = None,
    ) -> None:
        """`realm` is what phones show when they ask for a password; the first domain where it is empty."""
        self._domains = domains
        self._users = users
        self._entropy = entropy
        self._settings = settings or RegistrarSettings()
        self._digest = DigestServer(realm or domains.name, entropy=entropy, algorithms=CHALLENGED_ALGORITHMS)
        self._sources = Sources(self._settings.users_per_source)

    def is_responsible(self, request: SipMessage) -> bool:
        """Whether it is a REGISTER to a domain of ours (step 1); any other is the proxy's."""
        if request.request_uri is None or request.method != "REGISTER":
            return False
        try:
            return SipUri.parse(request.data, request.request_uri).host in self._domains
        except DecodeError:
            return False

    def admit(
        self, request: SipMessage, *, source: Endpoint, flow: str = "", now: float
    ) -> Admission | Refusal:
        """Do steps 2 to 6: extensions, who it is, what they may, for whom, and whether it can be read.

        `source` is where the request came from, `flow` the name of the socket or connection, which no other
        may have later or on another host. Any request that is one gets an answer.
        """
        try:
            self._check_extensions(request)
            user = self._authenticate(request, now)
            return self._read(request, user, source, flow)
        except _RefusedError as refused:
            response = self._answer(request, refused)
            return Refusal(response, refused.reason, refused.is_guess, refused.is_stale)
        except DecodeError as error:
            return Refusal(self._answer(request, _RefusedError(400, "Bad Request", str(error))), str(error))

    def register(self, admission: Admission, bindings: Bindings, *, now: float) -> Registration:
        """Do steps 7 and 8: all that was asked for, or nothing of it. `bindings` are those not expired.

        Can be asked again with other bindings, as `Location.update` does.
        """
        try:
            after = self._changed(admission, bindings, now)
        except _RefusedError as refused:
            return Registration(self._answer(admission.request, refused), None, refused.reason)
        if after is not None:
            until = max((binding.expires_at for binding in after), default=None)
            self._sources.note(admission.source.ip, admission.address_of_record, until, now=now)
        response = self._accept(admission, bindings if after is None else after, now)
        return Registration(response, after)

    def _check_extensions(self, request: SipMessage) -> None:
        unknown = [option for option in options(request, "require") if option not in EXTENSIONS]
        if unknown:
            shown = ", ".join(unknown)
            raise _RefusedError(420, "Bad Extension", f"it requires {shown}", [("Unsupported", shown)])

    def _authenticate(self, request: SipMessage, now: float) -> str:
        """The name of the user whose password the sender knows."""
        verification = self._digest.verify(request, self._users.password_of, now=now)
        if verification.verdict is not Verdict.ACCEPTED:
            is_stale = verification.verdict is Verdict.STALE
            is_guess = verification.verdict is Verdict.REFUSED
            challenges = self._digest.challenges(now=now, stale=is_stale)
            reason = verification.reason
            raise _RefusedError(401, "Unauthorized", reason, challenges, is_guess=is_guess, is_stale=is_stale)
        return verification.username

    def _read(self, request: SipMessage, user: str, source: Endpoint, flow: str) -> Admission:
        to = request.header("to")
        uri = None if to is None else NameAddress.parse(request.data, to.value_span).uri
        cseq = request.cseq
        if uri is None or cseq is None or not request.call_id:
            raise DecodeError("a REGISTER without To, Call-ID or CSeq")
        own = self._domains.user_of(uri)
        if own is not None and own != user:
            raise _RefusedError(403, "Forbidden", f"{user!r} may not register for {own!r}")
        address_of_record = self._domains.address_of_record(uri)
        if address_of_record is None:
            raise _RefusedError(404, "Not Found", "To is nobody of this domain")
        wishes, is_star = self._read_contacts(request, source)
        path = _read_path(request)
        self._check_outbound(request, wishes, path)
        return Admission(
            request,
            address_of_record,
            user,
            source,
            request.call_id,
            cseq[0],
            wishes,
            is_star,
            path,
            flow,
        )

    def _read_contacts(self, request: SipMessage, source: Endpoint) -> tuple[tuple[Wish, ...], bool]:
        """What the Contacts ask for, and whether it is `*`, which takes all away (step 6)."""
        settings = self._settings
        number = len(request.values("contact"))
        if number > 2 * settings.contacts_per_user:  # as many new ones as old ones taken back
            raise _RefusedError(403, "Too Many Contacts", f"{number} contacts in one REGISTER")
        contacts = request.contacts
        if any(contact.is_star for contact in contacts):
            expires = request.first_value("expires")
            if len(contacts) > 1 or not expires or expires.strip(b"0"):
                raise DecodeError("a Contact * beside others, or without Expires: 0")
            return (), True
        wishes = read_wishes(
            request,
            contacts,
            source,
            default_expires_s=settings.default_expires_s,
            has_outbound="outbound" in options(request, "supported"),
        )
        for wish in wishes:
            uri = SipUri.parse(wish.contact)
            if uri.host in self._domains and (uri.port is None or uri.param("gr") is not None):
                raise _RefusedError(
                    403, "Forbidden", "a contact that is an address of this domain would go round"
                )
            if 0 < wish.expires_s < settings.least_expires_s:
                least = str(settings.least_expires_s)
                raise _RefusedError(
                    423, "Interval Too Brief", f"it asks for {wish.expires_s} s", [("Min-Expires", least)]
                )
        return wishes, False

    def _check_outbound(self, request: SipMessage, wishes: tuple[Wish, ...], path: tuple[bytes, ...]) -> None:
        """Refuse flows that cannot be kept apart, or that end at a proxy that knows none (RFC 5626 §6)."""
        flows = [wish for wish in wishes if wish.reg_id is not None]
        if sum(wish.expires_s > 0 for wish in flows) > 1:
            raise DecodeError("several contacts with a reg-id in one REGISTER")
        if not flows:
            return
        if path:
            edge = NameAddress.parse(path[-1]).uri  # each proxy puts its own above those before it
            is_able = edge is not None and edge.param("ob") is not None
        else:
            is_able = len(request.values("via")) == 1
        if not is_able:
            raise _RefusedError(
                439, "First Hop Lacks Outbound Support", "the first proxy of its way keeps no flows"
            )

    def _changed(self, admission: Admission, bindings: Bindings, now: float) -> Bindings | None:
        """The bindings as they are wished for; None where nothing is."""
        if admission.is_star:
            _check_order(admission, bindings)
            return ()
        if not admission.wishes:
            return None
        old, new = list(bindings), list[ContactBinding]()
        for wish in admission.wishes:
            _check_order(admission, (binding for binding in old if is_meant(binding, wish)))
            old = [binding for binding in old if not is_meant(binding, wish)]
            new = [binding for binding in new if not is_meant(binding, wish)]
            if wish.expires_s:
                new.append(self._bind(admission, wish, now))
        after = (*old, *new)
        if len(after) > max(self._settings.contacts_per_user, len(bindings)):
            raise _RefusedError(
                403, "Too Many Contacts", f"{admission.user!r} has {len(bindings)} contacts already"
            )
        address, who = admission.source.ip, admission.address_of_record
        if new and not self._sources.has_room(address, who, now=now):
            raise _RefusedError(403, "Too Many Registrations", f"too many users register from {address}")
        return after

    def _bind(self, admission: Admission, wish: Wish, now: float) -> ContactBinding:
        expires_s = min(wish.expires_s, self._settings.most_expires_s)
        return ContactBinding(
            wish.contact,
            now + expires_s,
            admission.call_id,
            admission.cseq,
            wish.params,
            wish.q,
            admission.path,
            None if admission.path else wish.received,
            admission.flow,
            wish.instance,
            wish.reg_id,
            admission.outside,
        )

    def _accept(self, admission: Admission, bindings: Bindings, now: float) -> bytes:
        """The 200, with all bindings there are (step 8)."""
        request = admission.request
        wants_gruu = "gruu" in options(request, "supported")
        fields: Fields = []
        for binding in bindings:
            value = b"<%b>%b" % (binding.contact, binding.params)
            if binding.q != 1:
                value += b";q=%b" % f"{binding.q:g}".encode()
            if wants_gruu and binding.instance:
                value += b";pub-gruu=%b" % pub_gruu(admission.user, binding.instance, self._domains.host)
            remaining_s = max(1, round(binding.expires_at - now))
            fields.append(("Contact", value + b";expires=%d" % remaining_s))
        fields += (("Path", value) for value in admission.path)
        if any(wish.reg_id is not None for wish in admission.wishes):
            fields.append(("Require", "outbound"))
        fields.append(("Supported", ", ".join(EXTENSIONS)))
        return compose_response(request, 200, "OK", fields, to_tag=self._tag())

    def _answer(self, request: SipMessage, refused: _RefusedError) -> bytes:
        return compose_response(request, refused.code, refused.phrase, refused.headers, to_tag=self._tag())

    def _tag(self) -> str:
        return self._entropy(_TAG_BYTES).hex()


def options(request: SipMessage, name: str) -> list[str]:
    """The option tags in the headers of that name, in lower case."""
    return [
        _unfolded(request.data[slice(*span)]).decode("latin-1").lower()
        for header in request.headers_named(name)
        for span in split_list(request.data, header.value_span)
    ]


def _read_path(request: SipMessage) -> tuple[bytes, ...]:
    """The values of Path, topmost first, which is the order of a Route (RFC 3327 §5.3)."""
    path = tuple(_unfolded(request.data[slice(*span)]) for span in request.values("path"))
    if sum(map(len, path)) > _MOST_PATH_BYTES:
        raise DecodeError(f"a Path of more than {_MOST_PATH_BYTES} bytes")
    for value in path:
        uri = NameAddress.parse(value).uri
        if uri is None or uri.scheme not in ("sip", "sips"):
            raise DecodeError("a Path that no request can go by")
    return path


def _check_order(admission: Admission, bindings: Iterable[ContactBinding]) -> None:
    """Refuse what comes after something later of the same phone (RFC 3261 §10.3 step 7)."""
    for binding in bindings:
        if binding.call_id == admission.call_id and binding.cseq >= admission.cseq:
            raise _RefusedError(
                500, "CSeq Out Of Order", f"CSeq {admission.cseq} is not higher than {binding.cseq}"
            )


def is_meant(binding: ContactBinding, wish: Wish) -> bool:
    """Whether a Contact is about that binding: by phone and flow (RFC 5626 §6), else by its URI."""
    if wish.reg_id is not None and binding.reg_id is not None:
        return (binding.instance, binding.reg_id) == (wish.instance, wish.reg_id)
    return is_same_uri(binding.contact, wish.contact)


def _unfolded(value: bytes) -> bytes:
    return b" ".join(value.split())
