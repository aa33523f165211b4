"""What an observer says of each kind of NAT on the simulated internet, and what it never says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nattools.binding.model import Reflection
from nattools.binding.observer import Inbound, Reflected, Silent, Unchanged
from nattools.endpoint import Endpoint
from nattools.stun.attributes import RESPONSE_PORT
from nattools.stun.classifier import Mapping
from nattools.stun.message import Message
from tests.sim.internet import Reply, Server
from tests.sim.one_socket import MAPPED, SECOND, THIRD, OneSocket, serving
from tests.sim.servers import A1P1, A2, A2P2, ALL, P1, stun_server

MAPPINGS = {
    "open": Mapping.NONE,
    "symmetric-firewall": Mapping.NONE,
    "full-cone": Mapping.ENDPOINT_INDEPENDENT,
    "restricted-cone": Mapping.ENDPOINT_INDEPENDENT,
    "port-restricted-cone": Mapping.ENDPOINT_INDEPENDENT,
    "symmetric": Mapping.ADDRESS_DEPENDENT,
    "address-dependent": Mapping.ADDRESS_DEPENDENT,
}
KINDS = list(MAPPINGS)
LETS_ANYONE_IN = ("open", "full-cone")
BEHIND_NAT = KINDS[2:]
CLOSED_CONES = ["restricted-cone", "port-restricted-cone"]
CLOSED = [kind for kind in KINDS if kind not in LETS_ANYONE_IN]
ONE, TWO = (A1P1,), (A1P1, SECOND)
BOTH_COUNTS = pytest.mark.parametrize("servers", [ONE, TWO], ids=["one server", "two servers"])
SEEDS = 200


def is_true_of(kind: str, reflection: Reflection) -> bool:
    """Whether nothing is claimed that is not so; unknown claims nothing."""
    return reflection.mapping in (MAPPINGS[kind], Mapping.UNKNOWN) and not (
        reflection.reached_by_stranger and kind not in LETS_ANYONE_IN
    )


def without_response_port(server: Server) -> Server:
    """The same server, but it does not know that attribute and passes over it."""

    def serve(data: bytes, source: Endpoint, local: Endpoint) -> Reply | None:
        message = Message.parse(data)
        kept = tuple(a for a in message.attributes if a.type != RESPONSE_PORT.type)
        return server(
            Message(message.method, message.message_class, message.transaction_id, kept).encode(),
            source,
            local,
        )

    return serve


class TestMapping:
    @BOTH_COUNTS
    @pytest.mark.parametrize("fresh_port", [True, False], ids=["fresh port", "given port"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_nat_is_known(self, kind: str, fresh_port: bool, servers: Sequence[Endpoint]) -> None:
        socket = OneSocket(kind, servers=servers, fresh_port=fresh_port)
        reflection = socket.observe()
        assert reflection.mapping is MAPPINGS[kind], reflection.evidence
        assert reflection.server == A1P1
        assert reflection.mapped == socket.nat.outbound(socket.local, A1P1)
        assert reflection.can_test_inbound
        shows_strangers = kind in LETS_ANYONE_IN and (fresh_port or servers == TWO)
        assert reflection.reached_by_stranger is (True if shows_strangers else None), reflection.evidence
        assert socket.observer.timeout_at() is None

    @BOTH_COUNTS
    @pytest.mark.parametrize("kind", KINDS)
    def test_loss_never_makes_a_wrong_verdict(self, kind: str, servers: Sequence[Endpoint]) -> None:
        unknown = 0
        for seed in range(SEEDS):
            socket = OneSocket(kind, servers=servers, seed=seed, loss=0.2, fresh_port=bool(seed % 2))
            reflection = socket.observe()
            assert is_true_of(kind, reflection), f"seed {seed}: {reflection}"
            unknown += reflection.mapping is Mapping.UNKNOWN
        assert unknown <= SEEDS * 0.03

    @pytest.mark.parametrize("kind", KINDS)
    def test_nor_do_late_and_doubled_answers(self, kind: str) -> None:
        for seed in range(40):
            socket = OneSocket(
                kind, servers=TWO, seed=seed, loss=0.2, jitter_s=0.3, duplicates=0.3, fresh_port=True
            )
            assert is_true_of(kind, socket.observe())
            socket.run_for(30)
            assert socket.observer.reflection is not None
            assert is_true_of(kind, socket.observer.reflection)

    @BOTH_COUNTS
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("delay_s", [0.0001, 1.0])
    def test_the_distance_of_the_servers_changes_nothing(
        self, kind: str, delay_s: float, servers: Sequence[Endpoint]
    ) -> None:
        socket = OneSocket(kind, servers=servers, delay_s=delay_s, fresh_port=True)
        reflection = socket.observe()
        assert reflection.mapping is MAPPINGS[kind]
        assert reflection.reached_by_stranger is (True if kind in LETS_ANYONE_IN else None)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_plain_server_alone_shows_no_mapping(self, kind: str) -> None:
        socket = OneSocket(kind, servers=[SECOND], fresh_port=True)
        reflection = socket.observe()
        assert (reflection.mapping, reflection.reached_by_stranger) == (Mapping.UNKNOWN, None)
        assert not reflection.can_test_inbound
        assert "give a second STUN server" in reflection.evidence[0]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_dead_second_server_leaves_it_to_the_first_ones_other_address(self, kind: str) -> None:
        socket = OneSocket(kind, servers=TWO, fresh_port=True)
        del socket.world[SECOND]
        began = socket.now
        assert socket.observe().mapping is MAPPINGS[kind]
        assert socket.now - began < 1.2

    @pytest.mark.parametrize("kind", KINDS)
    def test_on_a_given_port_it_leaves_it_to_the_first_ones_other_port(self, kind: str) -> None:
        """Its other address is to stay a stranger for the next program on this port."""
        socket = OneSocket(kind, servers=TWO)
        del socket.world[SECOND]
        began = socket.now
        is_shown = kind == "symmetric"
        assert socket.observe().mapping is (Mapping.ADDRESS_DEPENDENT if is_shown else Mapping.UNKNOWN)
        assert socket.now - began < 1.5
        socket.run_for(10)
        assert A2P2.ip not in {asked.ip for asked in socket.asked}

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_other_address_that_does_not_answer_leaves_it_unknown(self, kind: str) -> None:
        socket = OneSocket(kind, fresh_port=True)
        socket.world = {e: server for e, server in socket.world.items() if str(e.ip) != A2}
        reflection = socket.observe()
        assert reflection.mapping is Mapping.UNKNOWN
        assert f"{A2}:{P1}: no answer" in reflection.evidence[0]

    def test_a_second_server_that_is_late_still_tells(self) -> None:
        socket = OneSocket("symmetric", servers=[SECOND, THIRD])
        third = socket.world.pop(THIRD)
        assert socket.observe().mapping is Mapping.UNKNOWN
        socket.world[THIRD] = third
        later = socket.wait_for(Reflected).reflection
        assert (later.mapping, later.is_settled) == (Mapping.ADDRESS_DEPENDENT, True)

    def test_two_that_agree_by_chance_do_not_outvote_a_third(self) -> None:
        socket = OneSocket("address-dependent", servers=[A1P1, SECOND, THIRD], delay_s=0.2)
        chance, second = socket.nat.outbound(socket.local, A1P1), socket.world[SECOND]

        def agree(data: bytes, source: Endpoint, local: Endpoint) -> Reply | None:
            reply = second(data, chance, local)
            return (reply[0], reply[1], source) if reply else None

        socket.world[SECOND] = agree
        assert socket.observe().mapping is Mapping.ENDPOINT_INDEPENDENT
        later = socket.wait_for(Reflected).reflection
        assert later.mapping is Mapping.ADDRESS_DEPENDENT
        assert str(THIRD) in later.evidence[0]

    def test_a_nat_that_restarts_in_the_middle_is_not_called_symmetric(self) -> None:
        socket = OneSocket("port-restricted-cone", servers=TWO)
        second = socket.world[SECOND]

        def after_a_restart(data: bytes, source: Endpoint, local: Endpoint) -> Reply | None:
            if str(socket.nat.public_ip) == str(MAPPED.ip):
                socket.nat.restart("203.0.113.99")
                return None
            return second(data, source, local)

        socket.delay_s = 0.03
        socket.world[SECOND] = after_a_restart
        reflection = socket.observe()
        assert reflection.mapping is Mapping.ENDPOINT_INDEPENDENT
        assert str(reflection.mapped.ip) == "203.0.113.99"


class TestStrangers:
    @BOTH_COUNTS
    @pytest.mark.parametrize("kind", CLOSED)
    def test_a_port_that_an_earlier_program_had_is_not_taken_for_an_open_one(
        self, kind: str, servers: Sequence[Endpoint]
    ) -> None:
        socket = OneSocket(kind, servers=servers)
        for _ in range(4):
            assert not socket.observe().reached_by_stranger
            socket.try_inbound(MAPPED)
            socket.run_for(5)
            socket.open()

    @pytest.mark.parametrize("kind", CLOSED)
    def test_with_loss_neither(self, kind: str) -> None:
        for seed in range(SEEDS):
            socket = OneSocket(kind, servers=TWO, seed=seed, loss=0.2)
            for _ in range(3):
                assert not socket.observe().reached_by_stranger
                socket.open()

    def test_an_observation_that_follows_another_claims_no_more_than_it_shows(self) -> None:
        socket = OneSocket("restricted-cone", fresh_port=True)
        for _ in range(3):
            assert socket.observe().reached_by_stranger is None

    @pytest.mark.parametrize("honours", ["ignore", "refuse", "silent", "address-only"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_server_that_breaks_its_word_shows_nothing_wrong(self, kind: str, honours: str) -> None:
        socket = OneSocket(kind, fresh_port=True)
        socket.world = dict.fromkeys(ALL, stun_server(honours=honours))
        reflection = socket.observe()
        assert reflection.mapping is MAPPINGS[kind]
        assert reflection.reached_by_stranger is None

    def test_a_user_who_gives_both_addresses_of_one_server_is_told_no_lie(self) -> None:
        for kind in CLOSED:
            socket = OneSocket(kind, servers=[A1P1, Endpoint.of(A2, P1)], fresh_port=True)
            assert not socket.observe().reached_by_stranger


class TestKeepalive:
    def test_a_week_of_checks_changes_nothing_and_grows_nothing(self) -> None:
        socket = OneSocket()
        socket.observe()
        for _ in range(2000):
            socket.run_for(15)
            socket.check()
            assert socket.wait_for(Unchanged).rtt_s == pytest.approx(2 * socket.delay_s)
        assert len(socket.observer._probes._sent) < 10

    @pytest.mark.parametrize("kind", BEHIND_NAT)
    def test_a_nat_that_forgot_is_noticed(self, kind: str) -> None:
        socket = OneSocket(kind)
        before = socket.observe()
        socket.nat.restart("203.0.113.99")
        socket.check()
        after = socket.wait_for(Reflected).reflection
        assert (str(after.mapped.ip), after.is_settled) == ("203.0.113.99", False)
        assert after != before
        socket.observer.test_mapping(now=socket.now)
        settled = socket.wait_for(Reflected).reflection
        assert (settled.mapping, settled.is_settled) == (MAPPINGS[kind], True)

    def test_loss_is_overcome(self) -> None:
        answered = 0
        for seed in range(SEEDS):
            socket = OneSocket(seed=seed)
            socket.observe()
            socket.loss = 0.2
            socket.check()
            socket.run_for(60)
            answered += isinstance(socket.events[0], Unchanged)
        assert answered >= SEEDS - 4

    def test_another_server_takes_over_and_confirms_what_was_known(self) -> None:
        socket = OneSocket("full-cone", servers=TWO)
        before = socket.observe()
        assert before.reached_by_stranger
        socket.world = serving(SECOND)
        socket.check()
        after = socket.wait_for(Reflected, lambda event: event.reflection.is_settled).reflection
        assert (after.server, after.mapped, after.mapping) == (SECOND, before.mapped, before.mapping)
        assert after.reached_by_stranger
        assert f"that {A1P1} saw before" in after.evidence[0]

    def test_a_server_that_dies_is_told_and_found_again_when_it_is_back(self) -> None:
        socket = OneSocket()
        before = socket.observe()
        world, socket.world = socket.world, {}
        socket.check()
        reason = socket.wait_for(Silent).reason
        assert str(A1P1) in reason
        assert "no answer" in reason
        assert socket.observer.reflection is None
        assert socket.observer.timeout_at() is None
        socket.world = world
        socket.check()
        assert socket.wait_for(Reflected).reflection.mapped == before.mapped

    def test_a_server_that_refuses_later_is_given_up_for_the_next(self) -> None:
        socket = OneSocket(servers=TWO)
        socket.observe()
        socket.world[A1P1] = lambda data, source, local: None
        socket.check()
        assert socket.wait_for(Reflected).reflection.server == SECOND


class TestInbound:
    @BOTH_COUNTS
    @pytest.mark.parametrize("kind", BEHIND_NAT)
    @pytest.mark.parametrize("port", [5060, 6000])
    @pytest.mark.parametrize("fresh_port", [True, False], ids=["fresh port", "given port"])
    def test_a_port_that_is_forwarded_is_open(
        self, kind: str, port: int, fresh_port: bool, servers: Sequence[Endpoint]
    ) -> None:
        socket = OneSocket(kind, servers=servers, fresh_port=fresh_port)
        socket.nat.forwards[port] = socket.local
        socket.observe(test_mapping=False)
        assert socket.try_inbound(MAPPED.with_port(port)).arrived is True

    @BOTH_COUNTS
    @pytest.mark.parametrize("kind", CLOSED)
    @pytest.mark.parametrize("port", [5060, 6000])
    def test_a_port_that_is_not_forwarded_is_never_called_open(
        self, kind: str, port: int, servers: Sequence[Endpoint]
    ) -> None:
        socket = OneSocket(kind, servers=servers, fresh_port=True)
        public = socket.observe(test_mapping=False).mapped.with_port(port)
        began = socket.now
        tried = socket.try_inbound(public)
        by_address = kind == "restricted-cone" and port == 5060  # the server itself gets in there anyway
        assert tried.arrived is (None if by_address else False), tried.reason
        assert socket.now - began < 1.5

    @pytest.mark.parametrize("port", [5060, 6000])
    @pytest.mark.parametrize("kind", KINDS)
    def test_loss_never_makes_a_wrong_verdict(self, kind: str, port: int) -> None:
        for seed in range(60):
            for is_forwarded in (True, False):
                socket = OneSocket(kind, seed=seed, loss=0.2, fresh_port=bool(seed % 2))
                public = socket.observe(test_mapping=False).mapped.with_port(port)
                if is_forwarded:
                    socket.nat.forwards[port] = socket.local
                arrived = socket.try_inbound(public).arrived
                is_open = (is_forwarded and public.ip == MAPPED.ip) or (
                    kind in LETS_ANYONE_IN and socket.nat.outbound(socket.local, A1P1) == public
                )
                assert arrived in (None, is_open), f"seed {seed}"

    @pytest.mark.parametrize("kind", CLOSED_CONES)
    def test_it_leaves_nothing_behind_that_fools_the_next_test(self, kind: str) -> None:
        socket = OneSocket(kind)
        for _ in range(3):
            socket.observe(test_mapping=False)
            for port in (6000, 5060):
                assert not socket.try_inbound(MAPPED.with_port(port)).arrived
            assert A2P2.ip not in {asked.ip for asked in socket.asked}
            socket.open()

    def test_after_a_test_of_the_mapping_the_same_port_can_no_longer_be_shown(self) -> None:
        socket = OneSocket("restricted-cone", fresh_port=True)
        socket.observe()
        tried = socket.try_inbound(MAPPED)
        assert tried.arrived is None
        assert "remembers" in tried.reason

    def test_but_another_port_can(self) -> None:
        socket = OneSocket("restricted-cone")
        socket.observe()
        assert socket.try_inbound(MAPPED.with_port(6000)).arrived is False
        socket.nat.forwards[6000] = socket.local
        assert socket.try_inbound(MAPPED.with_port(6000)).arrived is True

    def test_the_mapping_is_tested_only_after_it(self) -> None:
        socket = OneSocket("restricted-cone")
        socket.nat.forwards[5060] = socket.local
        socket.observe(test_mapping=False)
        socket.observer.try_inbound(MAPPED, now=socket.now)
        socket.observer.test_mapping(now=socket.now)
        assert socket.wait_for(Inbound).arrived is True
        settled = socket.wait_for(Reflected).reflection
        assert settled.mapping is Mapping.ENDPOINT_INDEPENDENT

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_server_that_passes_over_response_port_shows_nothing(self, kind: str) -> None:
        """On a full cone its answers come in, but at another port than the one that is asked about."""
        socket = OneSocket(kind, fresh_port=True)
        socket.world = {e: without_response_port(server) for e, server in serving(A1P1, A2P2).items()}
        public = socket.observe(test_mapping=False).mapped.with_port(6000)
        tried = socket.try_inbound(public)
        assert tried.arrived is None
        assert "RESPONSE-PORT" in tried.reason

    @pytest.mark.parametrize("honours", ["ignore", "refuse", "silent", "address-only"])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("port", [5060, 6000])
    def test_a_server_that_cannot_send_from_elsewhere_shows_nothing(
        self, kind: str, honours: str, port: int
    ) -> None:
        socket = OneSocket(kind, fresh_port=True)
        socket.world = dict.fromkeys(ALL, stun_server(honours=honours))
        public = socket.observe(test_mapping=False).mapped.with_port(port)
        assert socket.try_inbound(public).arrived is None

    @pytest.mark.parametrize("silenced", [A2, None], ids=["A2 is dead", "P2 is dead"])
    def test_a_server_of_which_a_part_is_dead_closes_no_port(self, silenced: str | None) -> None:
        socket = OneSocket("port-restricted-cone")

        def half_dead(server: Server) -> Server:
            def serve(data: bytes, source: Endpoint, local: Endpoint) -> Reply | None:
                reply = server(data, source, local)
                is_dead = reply and (str(reply[1].ip) == silenced if silenced else reply[1].port != P1)
                return None if is_dead else reply

            return serve

        socket.world = {e: half_dead(server) for e, server in serving(A1P1, A2P2).items()}
        socket.nat.forwards[6000] = socket.local
        socket.observe(test_mapping=False)
        assert socket.try_inbound(MAPPED.with_port(6000)).arrived is None

    def test_a_server_that_dies_meanwhile_closes_no_port(self) -> None:
        socket = OneSocket("port-restricted-cone")
        socket.observe(test_mapping=False)
        socket.world = {}
        tried = socket.try_inbound(MAPPED.with_port(6000))
        assert (tried.arrived, tried.reason) == (None, f"{A1P1} stopped answering")

    @pytest.mark.parametrize("public", [Endpoint.of("203.0.113.77", 5060), Endpoint.of("10.0.0.1", 5060)])
    def test_another_address_than_the_one_that_is_seen_is_not_tried(self, public: Endpoint) -> None:
        socket = OneSocket()
        socket.observe(test_mapping=False)
        asked = len(socket.asked)
        assert socket.try_inbound(public).arrived is None
        assert len(socket.asked) == asked

    def test_a_plain_server_cannot_try(self) -> None:
        socket = OneSocket(servers=[SECOND])
        socket.observe(test_mapping=False)
        tried = socket.try_inbound(MAPPED)
        assert tried.arrived is None
        assert "no other address" in tried.reason

    def test_what_was_shown_already_is_not_asked_again(self) -> None:
        socket = OneSocket("full-cone", fresh_port=True)
        socket.observe()
        asked = len(socket.asked)
        assert socket.try_inbound(MAPPED).arrived is True
        assert len(socket.asked) == asked

    def test_a_nat_that_restarts_meanwhile_has_it_tried_again(self) -> None:
        socket = OneSocket("port-restricted-cone")
        socket.nat.forwards[6000] = socket.local
        socket.observe(test_mapping=False)
        socket.observer.try_inbound(MAPPED.with_port(6000), now=socket.now)
        socket.run_for(0.03)
        socket.observer.observe(socket.local, now=socket.now)
        tried = socket.wait_for(Inbound)
        assert (tried.public.port, tried.arrived) == (6000, True)

    def test_a_far_server_is_given_the_time_it_takes(self) -> None:
        socket = OneSocket("port-restricted-cone", delay_s=1.0)
        socket.observe(test_mapping=False)
        assert socket.try_inbound(MAPPED.with_port(6000)).arrived is False
        socket.nat.forwards[6000] = socket.local
        assert socket.try_inbound(MAPPED.with_port(6000)).arrived is True
