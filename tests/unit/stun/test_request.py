"""A request over challenges and redirections, against servers and attackers of every temper."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import (
    AuthenticationError,
    CredentialError,
    DecodeError,
    NatToolsError,
    NoResponseError,
    RedirectError,
    ResponseError,
)
from nattools.machine import Machine
from nattools.stun.attributes import (
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    ERROR_CODE,
    FINGERPRINT,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USERHASH,
    USERNAME,
    Attribute,
)
from nattools.stun.authentication import Credentials, LongTerm, Protection, ShortTerm, short_term_protection
from nattools.stun.integrity import SecurityFeatures, nonce_prefix, userhash, with_integrity
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.request import (
    MOST_CHALLENGES,
    MOST_REDIRECTS,
    Redirected,
    Request,
    RequestEvent,
)
from nattools.stun.transaction import Answered, Failed, RttEstimator
from tests.fakes.stun_server import (
    MD5,
    SHA256,
    UNHEARD_OF,
    Behaviour,
    LongTermServer,
    error,
    forging,
    friendly,
    garbage_first,
    mute,
    redirecting,
    refusing,
    short_term_server,
    without,
)

SERVER = Endpoint.of("192.0.2.1", 3478)
SECOND = Endpoint.of("192.0.2.2", 3478)
CLIENT = Endpoint.of("203.0.113.7", 40000)
ALICE = LongTerm("alice", "open sesame")
USERS = {"alice": "open sesame"}


def repeatable_entropy() -> Callable[[int], bytes]:
    numbers = count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


class Conversation:
    """A request, and servers that answer it at once."""

    def __init__(
        self,
        servers: dict[Endpoint, Behaviour] | Behaviour,
        credentials: Credentials | None = None,
        protection: Protection | None = None,
        *,
        reliable: bool = False,
    ) -> None:
        self.servers = servers if isinstance(servers, dict) else {SERVER: servers}
        self.asked: list[tuple[Endpoint, Message]] = []
        self.now = 0.0
        self.request = Request(
            Method.BINDING,
            (),
            SERVER,
            now=0,
            entropy=repeatable_entropy(),
            credentials=credentials,
            protection=protection,
            reliable=reliable,
        )

    def run(self) -> RequestEvent:
        while True:
            event = self.step()
            if not isinstance(event, Redirected):
                return event
            self.request.follow(now=self.now)

    def step(self) -> RequestEvent:
        while True:
            transmits = self.request.transmits()
            for transmit in transmits:
                message = Message.parse(transmit.data)
                self.asked.append((transmit.destination, message))
                for reply in self.servers[transmit.destination](message, CLIENT):
                    data = reply if isinstance(reply, bytes) else reply.encode()
                    self.request.receive(data, transmit.destination, now=self.now)
            event = self.request.next_event()
            if event is not None:
                return event
            if transmits:
                continue
            due = self.request.timeout_at()
            assert due is not None
            self.now = max(self.now, due)
            self.request.handle_timeout(now=self.now)

    def response(self) -> Message:
        event = self.run()
        assert isinstance(event, Answered), event
        return event.response

    def failure(self) -> NatToolsError:
        event = self.run()
        assert isinstance(event, Failed), event
        return event.error

    @property
    def last(self) -> Message:
        return self.asked[-1][1]


def test_a_request_is_a_machine() -> None:
    machine: Machine[RequestEvent] = Conversation(friendly).request
    assert machine.timeout_at() == 0.5


def test_a_plain_answer_is_the_answer() -> None:
    conversation = Conversation(friendly)
    assert conversation.response().mapped_address == CLIENT
    assert conversation.last.get(SOFTWARE) == "nattools"


def test_noise_before_the_answer_does_not_matter() -> None:
    assert Conversation(garbage_first(friendly)).response().mapped_address == CLIENT


def test_another_error_is_a_response_error() -> None:
    failure = Conversation(refusing(420, UNKNOWN_ATTRIBUTES.of((0x0026, 0x7777)))).failure()
    assert type(failure) is ResponseError
    assert failure.code == 420
    assert "PADDING, 0x7777" in str(failure)


class TestLongTerm:
    def test_it_is_used_only_when_the_server_asks(self) -> None:
        conversation = Conversation(friendly, ALICE)
        assert conversation.response().mapped_address == CLIENT
        assert not conversation.last.has(USERNAME)
        assert conversation.request.protection is None

    @pytest.mark.parametrize(
        ("server", "seal", "names"),
        [
            (LongTermServer(USERS, modern=False, algorithms=()), MESSAGE_INTEGRITY, USERNAME),
            (LongTermServer(USERS, algorithms=()), MESSAGE_INTEGRITY, USERNAME),
            (LongTermServer(USERS), MESSAGE_INTEGRITY_SHA256, USERNAME),
            (LongTermServer(USERS, algorithms=(MD5,)), MESSAGE_INTEGRITY_SHA256, USERNAME),
            (LongTermServer(USERS, anonymity=True), MESSAGE_INTEGRITY_SHA256, USERHASH),
            (LongTermServer(USERS, algorithms=(), anonymity=True), MESSAGE_INTEGRITY, USERHASH),
        ],
    )
    def test_a_challenge_is_answered_in_the_dialect_of_the_server(
        self, server: LongTermServer, seal: object, names: object
    ) -> None:
        conversation = Conversation(server, ALICE)
        assert conversation.response().mapped_address == CLIENT
        first, second = (message for _, message in conversation.asked)
        assert not first.has(USERNAME)
        assert first.transaction_id != second.transaction_id
        for codec in (MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256):
            assert second.has(codec) == (codec is seal)
        assert second.has(USERNAME) == (names is USERNAME)
        assert second.has(USERHASH) == (names is USERHASH)
        assert second.get(REALM) == "example.org"

    def test_an_anonymous_user_sends_no_name(self) -> None:
        conversation = Conversation(LongTermServer(USERS, anonymity=True), ALICE)
        conversation.response()
        assert conversation.last.get(USERHASH) == userhash("alice", "example.org")
        assert b"alice" not in conversation.last.encode()

    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [((SHA256, MD5), SHA256), ((MD5, SHA256), MD5), ((UNHEARD_OF, SHA256), SHA256)],
    )
    def test_the_first_known_algorithm_is_chosen_and_the_offer_returned(
        self, offered: tuple[object, ...], chosen: object
    ) -> None:
        conversation = Conversation(LongTermServer(USERS, algorithms=offered), ALICE)  # type: ignore[arg-type]  # hostile
        conversation.response()
        assert conversation.last.get(PASSWORD_ALGORITHM) == chosen
        assert conversation.last.get(PASSWORD_ALGORITHMS) == offered

    def test_only_unknown_algorithms_end_it(self) -> None:
        conversation = Conversation(LongTermServer(USERS, algorithms=(UNHEARD_OF,)), ALICE)
        failure = conversation.failure()
        assert isinstance(failure, AuthenticationError)
        assert "0x7777" in str(failure)
        assert len(conversation.asked) == 1

    @pytest.mark.parametrize("modern", [True, False])
    def test_a_wrong_password_is_tried_once(self, modern: bool) -> None:
        conversation = Conversation(LongTermServer(USERS, modern=modern), LongTerm("alice", "guess"))
        failure = conversation.failure()
        assert isinstance(failure, AuthenticationError)
        assert failure.code == 401
        assert "refused for realm 'example.org'" in str(failure)
        assert len(conversation.asked) == 2

    def test_without_credentials_the_error_says_what_is_missing(self) -> None:
        failure = Conversation(LongTermServer(USERS)).failure()
        assert isinstance(failure, AuthenticationError)
        assert "user name and password" in str(failure)

    def test_the_next_request_needs_no_challenge(self) -> None:
        server = LongTermServer(USERS)
        first = Conversation(server, ALICE)
        first.response()
        second = Conversation(server, ALICE, first.request.protection)
        assert second.response().mapped_address == CLIENT
        assert len(second.asked) == 1

    def test_a_stale_nonce_is_replaced(self) -> None:
        server = LongTermServer(USERS, requests_per_nonce=1)
        first = Conversation(server, ALICE)
        first.response()
        second = Conversation(server, ALICE, first.request.protection)
        assert second.response().mapped_address == CLIENT
        old, new = (message.get(NONCE) for _, message in second.asked)
        assert old != new

    def test_a_new_nonce_may_come_without_the_realm(self) -> None:
        server = LongTermServer(USERS, requests_per_nonce=1)
        first = Conversation(server, ALICE)
        first.response()
        second = Conversation(without(server, REALM.type), ALICE, first.request.protection)
        assert second.response().mapped_address == CLIENT

    def test_a_server_for_which_every_nonce_is_stale_is_left(self) -> None:
        conversation = Conversation(LongTermServer(USERS, requests_per_nonce=0), ALICE)
        failure = conversation.failure()
        assert isinstance(failure, AuthenticationError)
        assert failure.code == 438
        assert len(conversation.asked) == 1 + MOST_CHALLENGES

    def test_a_server_that_calls_the_same_nonce_stale_is_left(self) -> None:
        conversation = Conversation(refusing(438, REALM.of("r"), NONCE.of("always the same")), ALICE)
        assert isinstance(conversation.failure(), AuthenticationError)
        assert len(conversation.asked) == 2

    def test_a_server_with_ever_new_realms_is_left(self) -> None:
        realms = count()

        def server(request: Message, _source: Endpoint) -> list[Message]:
            return [error(request, 401, REALM.of(f"realm {next(realms)}"), NONCE.of("nonce"))]

        conversation = Conversation(server, ALICE)
        assert isinstance(conversation.failure(), AuthenticationError)
        assert len(conversation.asked) == 1 + MOST_CHALLENGES

    @pytest.mark.parametrize("missing", [REALM, NONCE])
    def test_a_challenge_without_realm_or_nonce_ends_it(self, missing: object) -> None:
        conversation = Conversation(without(LongTermServer(USERS), missing.type), ALICE)  # type: ignore[attr-defined]  # has one
        assert isinstance(conversation.failure(), AuthenticationError)
        assert len(conversation.asked) == 1

    def test_a_malformed_challenge_ends_it(self) -> None:
        conversation = Conversation(refusing(401, REALM.of("r"), Attribute(NONCE.type, b"\xff")), ALICE)
        assert isinstance(conversation.failure(), DecodeError)

    def test_quotes_and_zeros_around_the_realm_do_not_count_for_the_key(self) -> None:
        server = LongTermServer(USERS, modern=False, realm="example.org")
        quoted = forging(server, REALM.of('"example.org"\0'))
        conversation = Conversation(quoted, ALICE)
        assert conversation.response().mapped_address == CLIENT
        assert conversation.last.get(REALM) == '"example.org"\0'

    def test_a_password_outside_ascii_is_prepared_as_the_server_does_it(self) -> None:
        credentials = LongTerm("alice", "Henry\u00a0\u2168")
        # both map the space, and only SASLprep unfolds the numeral
        old = LongTermServer({"alice": "Henry IX"}, modern=False)
        assert Conversation(old, credentials).response().mapped_address == CLIENT
        new = LongTermServer({"alice": "Henry \u2168"})
        assert Conversation(new, credentials).response().mapped_address == CLIENT

    def test_a_password_that_cannot_be_used_is_a_credential_error(self) -> None:
        failure = Conversation(LongTermServer(USERS), LongTerm("alice", "\0")).failure()
        assert isinstance(failure, CredentialError)


class TestAttackersOnTheWay:
    def test_stripping_the_algorithms_is_noticed(self) -> None:
        conversation = Conversation(without(LongTermServer(USERS), PASSWORD_ALGORITHMS.type), ALICE)
        failure = conversation.failure()
        assert isinstance(failure, AuthenticationError)
        assert "weakens" in str(failure)
        assert len(conversation.asked) == 1

    def test_shortening_the_algorithms_fails_instead_of_weakening(self) -> None:
        server = forging(LongTermServer(USERS), PASSWORD_ALGORITHMS.of((MD5,)))
        conversation = Conversation(server, ALICE)
        assert isinstance(conversation.failure(), AuthenticationError)
        # the server says 400 without integrity, which anybody could say
        assert len(conversation.asked) == 1 + 7

    def test_forging_the_nonce_is_no_way_around(self) -> None:
        server = LongTermServer(USERS)
        forged = without(forging(server, NONCE.of("of the old kind")), PASSWORD_ALGORITHMS.type)
        conversation = Conversation(forged, ALICE)
        assert isinstance(conversation.failure(), AuthenticationError)

    def test_no_downgrade_with_a_stale_nonce(self) -> None:
        first = Conversation(LongTermServer(USERS), ALICE)
        first.response()
        stale = refusing(438, REALM.of("example.org"), NONCE.of("of the old kind"))
        second = Conversation(stale, ALICE, first.request.protection)
        failure = second.failure()
        assert isinstance(failure, AuthenticationError)
        assert len(second.asked) == 1

    def test_an_answer_without_integrity_is_ignored(self) -> None:
        server = LongTermServer(USERS)
        conversation = Conversation(without(server, MESSAGE_INTEGRITY_SHA256.type), ALICE)
        failure = conversation.failure()
        assert isinstance(failure, AuthenticationError)
        assert "no integrity check" in str(failure)
        assert len(conversation.asked) == 1 + 7

    def test_over_tcp_an_answer_without_integrity_ends_it_at_once(self) -> None:
        server = without(LongTermServer(USERS), MESSAGE_INTEGRITY_SHA256.type)
        conversation = Conversation(server, ALICE, reliable=True)
        assert isinstance(conversation.failure(), AuthenticationError)
        assert conversation.now == 0

    def test_a_forged_answer_before_the_true_one_is_ignored(self) -> None:
        server = LongTermServer(USERS)

        def race(request: Message, source: Endpoint) -> list[Message]:
            forged = with_integrity(friendly(request, Endpoint.of("6.6.6.6", 6))[0], b"a guess")
            return [forged, *server(request, source)] if request.has(USERNAME) else server(request, source)

        assert Conversation(race, ALICE).response().mapped_address == CLIENT

    def test_the_weaker_integrity_does_not_do_for_the_stronger(self) -> None:
        server = LongTermServer(USERS)
        conversation = Conversation(server, ALICE)
        conversation.response()
        protection = conversation.request.protection
        assert protection is not None

        def weak(request: Message, source: Endpoint) -> list[Message]:
            return [with_integrity(friendly(request, source)[0], protection.key)]

        failure = Conversation(weak, ALICE, protection).failure()
        assert isinstance(failure, AuthenticationError)
        assert "weaker" in str(failure)

    @pytest.mark.parametrize(
        "nonce",
        [
            NONCE.of(nonce_prefix(SecurityFeatures.PASSWORD_ALGORITHMS) + "x"),
            Attribute(NONCE.type, b"\xff"),
        ],
    )
    def test_an_answer_whose_nonce_promises_algorithms_it_lacks_is_ignored(self, nonce: Attribute) -> None:
        server = LongTermServer(USERS, modern=False)

        def answer(request: Message, source: Endpoint) -> list[Message]:
            (reply,) = server(request, source)
            if not request.has(USERNAME):
                return [reply]
            key = conversation.request.protection.key if conversation.request.protection else b""
            return [with_integrity(friendly(request, source)[0].append(nonce), key)]

        conversation = Conversation(answer, ALICE)
        failure = conversation.failure()
        assert isinstance(failure, AuthenticationError)
        assert "stripped" in str(failure)

    @pytest.mark.parametrize("server", [LongTermServer(USERS), LongTermServer(USERS, modern=False)])
    def test_no_bit_of_a_sealed_answer_can_be_changed(self, server: LongTermServer) -> None:
        first = Conversation(server, ALICE)
        size = 8 * len(first.response().encode())
        for bit in range(size):
            conversation = Conversation(server, ALICE, first.request.protection)
            (transmit,) = conversation.request.transmits()
            (answer,) = server(Message.parse(transmit.data), CLIENT)
            forged = bytearray(answer.encode())
            forged[bit // 8] ^= 1 << bit % 8
            conversation.request.receive(bytes(forged), SERVER, now=0)
            assert not isinstance(conversation.request.next_event(), Answered)

    @given(data=st.data())
    def test_whatever_stands_in_an_answer_is_an_event_or_passed_over(self, data: st.DataObject) -> None:
        attributes = data.draw(
            st.lists(
                st.builds(
                    Attribute,
                    st.sampled_from(
                        [c.type for c in (ERROR_CODE, REALM, NONCE, PASSWORD_ALGORITHMS, ALTERNATE_SERVER)]
                        + [c.type for c in (ALTERNATE_DOMAIN, MESSAGE_INTEGRITY, FINGERPRINT, USERHASH)]
                    ),
                    st.binary(max_size=40) | st.sampled_from([b"\0\0\4\1", b"\0\0\4\46", b"\0\0\3\0"]),
                ),
                max_size=5,
            )
        )
        kind = data.draw(st.sampled_from(MessageClass))
        protection = data.draw(st.none() | st.just(short_term_protection(ShortTerm("u", "p"))))
        request = Conversation(mute, ALICE, protection).request
        (transmit,) = request.transmits()
        transaction_id = Message.parse(transmit.data).transaction_id
        answer = Message(Method.BINDING, kind, transaction_id, tuple(attributes))
        request.receive(answer.encode(), SERVER, now=0)
        assert isinstance(request.next_event(), Answered | Failed | Redirected | None)


class TestShortTerm:
    @pytest.mark.parametrize("sha256", [True, False])
    def test_both_seals_first_and_then_the_one_the_server_knows(self, sha256: bool) -> None:
        server = short_term_server("secret", sha256=sha256)
        first = Conversation(server, ShortTerm("session", "secret"))
        assert first.response().mapped_address == CLIENT
        assert first.last.has(MESSAGE_INTEGRITY)
        assert first.last.has(MESSAGE_INTEGRITY_SHA256)
        second = Conversation(server, ShortTerm("session", "secret"), first.request.protection)
        assert second.response().mapped_address == CLIENT
        assert second.last.has(MESSAGE_INTEGRITY) is not sha256
        assert second.last.has(MESSAGE_INTEGRITY_SHA256) is sha256

    def test_a_wrong_password_shows_when_time_is_up(self) -> None:
        server = short_term_server("secret", sha256=True)
        conversation = Conversation(server, ShortTerm("session", "guess"))
        failure = conversation.failure()
        assert isinstance(failure, AuthenticationError)
        assert "401" in str(failure)
        assert conversation.now == 39.5

    def test_a_wrong_password_shows_at_once_over_tcp(self) -> None:
        server = short_term_server("secret", sha256=True)
        conversation = Conversation(server, ShortTerm("session", "guess"), reliable=True)
        assert isinstance(conversation.failure(), AuthenticationError)
        assert conversation.now == 0


class TestSecrets:
    @pytest.mark.parametrize("credentials", [ShortTerm("alice", "sesame"), LongTerm("alice", "sesame")])
    def test_no_repr_shows_a_password(self, credentials: Credentials) -> None:
        assert "sesame" not in repr(credentials)

    def test_no_repr_shows_a_key(self) -> None:
        protection = short_term_protection(ShortTerm("alice", "sesame"))
        assert protection.key == b"sesame"
        assert "sesame" not in repr(protection)


class TestAlternateServer:
    def test_the_request_goes_on_at_the_other_server(self) -> None:
        conversation = Conversation({SERVER: redirecting(SECOND, domain="b.example"), SECOND: friendly})
        assert conversation.step() == Redirected(SECOND, "b.example")
        conversation.request.follow(now=0)
        assert conversation.response().mapped_address == CLIENT
        assert conversation.request.server == SECOND

    def test_nothing_is_sent_until_the_driver_is_ready(self) -> None:
        conversation = Conversation({SERVER: redirecting(SECOND), SECOND: friendly})
        assert conversation.step() == Redirected(SECOND, None)
        assert conversation.request.transmits() == []
        assert conversation.request.timeout_at() is None

    def test_the_other_server_is_asked_with_the_same_credentials(self) -> None:
        conversation = Conversation({SERVER: redirecting(SECOND), SECOND: LongTermServer(USERS)}, ALICE)
        assert conversation.response().mapped_address == CLIENT
        assert [server for server, _ in conversation.asked] == [SERVER, SECOND, SECOND]

    def test_a_sealed_request_may_be_redirected_by_who_knows_no_password(self) -> None:
        servers = {SERVER: redirecting(SECOND), SECOND: short_term_server("secret", sha256=True)}
        conversation = Conversation(servers, ShortTerm("session", "secret"))
        assert conversation.response().mapped_address == CLIENT

    def test_the_own_address_family_is_preferred(self) -> None:
        ipv6 = Endpoint.of("2001:db8::2", 3478)
        assert Conversation(redirecting(ipv6, SECOND)).step() == Redirected(SECOND, None)
        assert Conversation(redirecting(ipv6)).step() == Redirected(ipv6, None)

    def test_what_follows_the_integrity_attribute_is_not_followed(self) -> None:
        def server(request: Message, _source: Endpoint) -> list[Message]:
            sealed = with_integrity(error(request, 300, ALTERNATE_SERVER.of(SECOND)), b"key")
            return [sealed.append(ALTERNATE_SERVER.of(Endpoint.of("6.6.6.6", 6)))]

        assert Conversation(server).step() == Redirected(SECOND, None)

    @pytest.mark.parametrize(
        "servers",
        [
            {SERVER: redirecting(SERVER)},
            {SERVER: redirecting(SECOND), SECOND: redirecting(SERVER)},
        ],
    )
    def test_a_circle_is_noticed(self, servers: dict[Endpoint, Behaviour]) -> None:
        conversation = Conversation(servers)
        failure = conversation.failure()
        assert isinstance(failure, RedirectError)
        assert failure.code == 300
        assert "192.0.2.1:3478 has had this request already" in str(failure)
        assert len(conversation.asked) == len(servers)

    def test_an_endless_row_of_servers_is_left(self) -> None:
        row = [SERVER.with_port(port) for port in range(3478, 3500)]
        servers = {here: redirecting(there) for here, there in pairwise(row)}
        conversation = Conversation(servers)
        assert isinstance(conversation.failure(), RedirectError)
        assert len(conversation.asked) == 1 + MOST_REDIRECTS

    @pytest.mark.parametrize("nowhere", ["0.0.0.0:3478", "224.0.0.1:3478", "192.0.2.9:0"])
    def test_a_redirection_to_nowhere_is_refused(self, nowhere: str) -> None:
        failure = Conversation(redirecting(Endpoint.parse(nowhere))).failure()
        assert isinstance(failure, RedirectError)

    def test_a_redirection_without_a_server_is_refused(self) -> None:
        assert isinstance(Conversation(refusing(300)).failure(), RedirectError)

    def test_a_malformed_redirection_is_refused(self) -> None:
        bad = refusing(300, Attribute(ALTERNATE_SERVER.type, b"?"))
        assert isinstance(Conversation(bad).failure(), DecodeError)


def test_the_estimator_learns_from_what_was_sent_once_only() -> None:
    estimator = RttEstimator()
    for transmissions in (1, 2):
        request = Request(
            Method.BINDING, (), SERVER, now=0, entropy=repeatable_entropy(), estimator=estimator
        )
        transmits = request.transmits()
        if transmissions == 2:
            due = request.timeout_at()
            assert due == 0.9  # SRTT 0.3, RTTVAR 0.15
            request.handle_timeout(now=due)
            transmits = request.transmits()
        (reply,) = friendly(Message.parse(transmits[0].data), CLIENT)
        request.receive(reply.encode(), SERVER, now=0.3 if transmissions == 1 else 5)
        assert isinstance(request.next_event(), Answered)
    assert estimator.rto_s(now=5) == 0.9


def test_silence_is_no_response() -> None:
    conversation = Conversation(mute)
    assert isinstance(conversation.failure(), NoResponseError)
    assert len(conversation.asked) == 7


def test_an_icmp_error_ends_it() -> None:
    request = Conversation(mute).request
    request.handle_unreachable("Connection refused", hard=True, now=0)
    assert isinstance(request.next_event(), Failed)


@pytest.mark.parametrize("start", [b"\x00", b"\x21\x12\xa4\x42"])
def test_a_classic_request_has_no_cookie(start: bytes) -> None:
    request = Request(
        Method.BINDING,
        (),
        SERVER,
        now=0,
        entropy=lambda size: start.ljust(size, b"x"),
        classic=True,
    )
    (transmit,) = request.transmits()
    assert Message.parse(transmit.data).is_classic
