"""A request until its final answer, over challenges and redirections (RFC 8489 §6.3.4, §9, §10).

A `Request` runs one `Transaction` after the other: the next one with credentials when the server challenges,
or to another server when this one sends the client away.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from nattools.endpoint import AddressClass, Endpoint
from nattools.errors import AuthenticationError, NatToolsError, RedirectError, ResponseError
from nattools.machine import Entropy, Transmit
from nattools.stun.attributes import (
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    Attribute,
    Error,
    ErrorCode,
    attribute_name,
)
from nattools.stun.authentication import (
    Credentials,
    LongTerm,
    Protection,
    ShortTerm,
    answer_challenge,
    short_term_protection,
)
from nattools.stun.message import MAGIC_COOKIE, Message, MessageClass, Method
from nattools.stun.transaction import Answered, Failed, RttEstimator, Timing, Transaction, error_of

MOST_CHALLENGES = 4
"""How many 401 and 438 one server may send in a row before the request fails."""
MOST_REDIRECTS = 5

_SEALS = (MESSAGE_INTEGRITY.type, MESSAGE_INTEGRITY_SHA256.type)
OWN_SOFTWARE = SOFTWARE.of("nattools")  # without a version: RFC 8489 §16.1.2
"""What requests say they are from. It makes a plain one 32 bytes, which over IPv6 counts.

A server that gives no more than a few times what it got has no room for OTHER-ADDRESS in the answer to 20.
"""


@dataclass(frozen=True, slots=True)
class Redirected:
    """The server sent the request elsewhere (300). The driver makes ready for `server`, then calls `follow`.

    `domain` is the name that the certificate of `server` must show; None where it stays as it was.
    """

    server: Endpoint
    domain: str | None


RequestEvent = Answered | Failed | Redirected


def compose(
    method: Method,
    message_class: MessageClass,
    attributes: tuple[Attribute, ...],
    *,
    entropy: Entropy,
    classic: bool = False,
) -> Message:
    """A message with a fresh transaction id; of the RFC 3489 dialect, without magic cookie, if `classic`."""
    if not classic:
        return Message(method, message_class, entropy(12), (OWN_SOFTWARE, *attributes))
    transaction_id = entropy(16)
    if transaction_id.startswith(MAGIC_COOKIE):
        transaction_id = bytes(4) + transaction_id[4:]
    return Message(method, message_class, transaction_id, attributes)


class Request:
    """One request, from its first transaction to the final answer; a `machine.Machine`.

    After the event, `server` and `protection` are those to use for the next request.
    """

    def __init__(
        self,
        method: Method,
        attributes: tuple[Attribute, ...],
        server: Endpoint,
        *,
        now: float,
        entropy: Entropy,
        credentials: Credentials | None = None,
        protection: Protection | None = None,
        estimator: RttEstimator | None = None,
        timing: Timing | None = None,
        reliable: bool = False,
        classic: bool = False,
    ) -> None:
        """Make the first transaction ready.

        `protection` is the one that an earlier request to `server` ended with; `estimator` gives the RTO
        towards `server` and learns from the answer. Raises `CredentialError`.
        """
        self._method = method
        self._attributes = attributes
        self._entropy = entropy
        self._credentials = credentials
        self._timing = timing or Timing()
        self._reliable = reliable
        self._classic = classic
        self._visited = {server}
        self._event: RequestEvent | None = None
        self.server = server
        self.follow(now=now, protection=protection, estimator=estimator)

    def follow(
        self,
        *,
        now: float,
        protection: Protection | None = None,
        estimator: RttEstimator | None = None,
    ) -> None:
        """After `Redirected`: start again with the new server."""
        if protection is None and isinstance(self._credentials, ShortTerm):
            protection = short_term_protection(self._credentials)
        self.protection = protection
        self._estimator = estimator or RttEstimator(self._timing.rto_s)
        self._challenges = 0
        self._begin(now)

    def _begin(self, now: float) -> None:
        message = compose(
            self._method,
            MessageClass.REQUEST,
            self._attributes,
            entropy=self._entropy,
            classic=self._classic,
        )
        protection = self.protection
        self._transaction = Transaction(
            protection.seal(message) if protection else message,
            self.server,
            now=now,
            timing=self._timing,
            rto_s=self._estimator.rto_s(now=now),
            reliable=self._reliable,
            objection=protection.objection if protection else None,
        )

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        return self._transaction.transmits()

    def timeout_at(self) -> float | None:
        """When the transaction wants `handle_timeout`."""
        return self._transaction.timeout_at()

    def next_event(self) -> RequestEvent | None:
        """Take how it ended, or that it must go on elsewhere; once."""
        taken, self._event = self._event, None
        return taken

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str = "") -> None:
        """Take a datagram, or a message off the stream."""
        self._transaction.receive(data, source, now=now, socket=socket)
        self._advance(now)

    def handle_timeout(self, *, now: float) -> None:
        """Send again, or give up, if that is due."""
        self._transaction.handle_timeout(now=now)
        self._advance(now)

    def handle_unreachable(self, reason: str, *, hard: bool, now: float) -> None:
        """Take an ICMP error or the loss of the connection; see `Transaction.handle_unreachable`."""
        self._transaction.handle_unreachable(reason, hard=hard)
        self._advance(now)

    def _advance(self, now: float) -> None:
        """Read how the transaction ended, if it did, and begin the next one where there must be one."""
        ended = self._transaction.next_event()
        if not isinstance(ended, Answered):
            self._event = ended or self._event
            return
        if ended.transmissions == 1:
            self._estimator.observe(ended.rtt_s, now=now)
        is_error = ended.response.message_class is MessageClass.ERROR
        error = error_of(ended.response) if is_error else None
        try:
            if error is None:
                self._succeed(ended)
            elif error.code == ErrorCode.TRY_ALTERNATE:
                self._event = self._redirected(ended.response, error)
            elif error.code in (ErrorCode.UNAUTHORIZED, ErrorCode.STALE_NONCE):
                self._take_challenge(ended.response, error)
                self._begin(now)
            else:
                raise ResponseError(
                    self._refusal(ended.response, error), code=error.code, reason=error.reason
                )
        except NatToolsError as failure:
            self._event = Failed(failure, ended.transmissions)

    def _succeed(self, answered: Answered) -> None:
        if self.protection is not None:
            self.protection = self.protection.after(answered.response)
        self._event = answered

    def _take_challenge(self, response: Message, error: Error) -> None:
        """Get the next protection out of a 401 or 438 (RFC 8489 §9.2.5)."""
        if not isinstance(self._credentials, LongTerm):
            raise AuthenticationError(
                f"{self.server} refuses the {self._method.name} request: {error}; "
                "it wants the user name and password of an account (long-term credentials)",
                code=error.code,
                reason=error.reason,
            )
        self._challenges += 1
        if self._challenges > MOST_CHALLENGES:
            raise AuthenticationError(
                f"{self.server} does not stop asking: {self._challenges} challenges in a row, "
                f"the last one {error}",
                code=error.code,
                reason=error.reason,
            )
        self.protection = answer_challenge(self._credentials, response, error, self.protection)

    def _redirected(self, response: Message, error: Error) -> Redirected:
        """Read where to go, and refuse to go in a circle (RFC 8489 §10)."""
        servers = [
            ALTERNATE_SERVER.parse(attribute.value, response.xor_key)
            for attribute in takewhile(lambda attribute: attribute.type not in _SEALS, response.attributes)
            if attribute.type == ALTERNATE_SERVER.type
        ]
        same_family = [server for server in servers if server.is_ipv6 == self.server.is_ipv6]
        server = next(iter(same_family or servers), None)
        problem = None
        if server is None:
            problem = "but names none"
        elif server.port == 0 or server.address_class in (AddressClass.UNSPECIFIED, AddressClass.MULTICAST):
            problem = f"but {server} is no address of a server"
        elif server in self._visited:
            problem = f"but {server} has had this request already"
        elif len(self._visited) > MOST_REDIRECTS:
            problem = f"{server}, after {MOST_REDIRECTS} redirections already"
        if server is None or problem is not None:
            raise RedirectError(
                f"{self.server} sends the {self._method.name} request to another server, {problem}",
                code=error.code,
                reason=error.reason,
            )
        self._visited.add(server)
        self.server = server
        return Redirected(server, response.get(ALTERNATE_DOMAIN))

    def _refusal(self, response: Message, error: Error) -> str:
        text = f"{self.server} answers the {self._method.name} request with error {error}"
        unknown = response.get(UNKNOWN_ATTRIBUTES) if error.code == ErrorCode.UNKNOWN_ATTRIBUTE else None
        if unknown:
            text += f"; it does not know {', '.join(map(attribute_name, unknown))}"
        return text
