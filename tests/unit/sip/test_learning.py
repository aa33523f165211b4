"""What a phone's address is by the word of the servers that it talks to, and whose word is not taken."""

from __future__ import annotations

import tracemalloc

import pytest

from nattools.endpoint import Endpoint
from nattools.sip.learning import MOST_CHAINS, MOST_SERVERS, AlgSuspected, Learned
from nattools.sip.rewriter import Rewriter, RewriterEvent
from tests.unit.sip.bound import LOCAL, PUBLIC, REGISTRAR, Binding, at, events, wire

SEEN = at("203.0.113.1:40777")
OTHER = at("198.51.100.7:5060")


def register(call_id: str = "c1") -> bytes:
    return wire(f"""
REGISTER sip:registrar.example.com SIP/2.0
Via: SIP/2.0/UDP 192.168.0.111:5060;rport;branch=z9hG4bKa
From: <sip:alice@example.com>;tag=1
To: <sip:alice@example.com>
Call-ID: {call_id}
CSeq: 1 REGISTER
Contact: <sip:alice@192.168.0.111:5060>
""")


def answer(request: bytes, seen: Endpoint | None, *, received: bool = True, rport: bool = True) -> bytes:
    """A 200 to `request` as it went out, from a server that saw it come from `seen`."""
    response = b"SIP/2.0 200 OK\r\n" + request.partition(b"\r\n")[2]
    told = b";rport"
    if seen is not None:
        told = b";rport=%d" % seen.port if rport else b""
        told += f";received={seen.ip}".encode() if received else b""
    return response.replace(b";rport", told, 1)


class Phone:
    """A phone that registers at servers which see it where the test says."""

    def __init__(self, public: Endpoint | None = PUBLIC, local: Endpoint = LOCAL) -> None:
        self.binding = Binding(local, public)
        self.rewriter = Rewriter(self.binding)

    def register(
        self, seen: Endpoint | None, server: Endpoint | None = REGISTRAR, call_id: str = "c1"
    ) -> list[RewriterEvent]:
        """Register, be answered, and say what happened."""
        request = self.rewriter.outgoing(register(call_id).replace(str(LOCAL).encode(), self.written), server)
        self.rewriter.incoming(answer(request, seen), server)
        return events(self.rewriter)

    @property
    def written(self) -> bytes:
        return str(self.binding.local).encode()


class TestWhatIsLearned:
    def test_a_server_that_sees_another_endpoint_is_told_that_one_from_then_on(self) -> None:
        phone = Phone()
        assert phone.register(SEEN) == [Learned(SEEN, PUBLIC, REGISTRAR)]
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        assert b"Via: SIP/2.0/UDP 203.0.113.1:40777;rport;" in request
        assert b"Contact: <sip:alice@203.0.113.1:40777>" in request
        assert phone.rewriter.public_for(REGISTRAR) == SEEN

    def test_every_other_server_is_told_what_the_binding_has(self) -> None:
        phone = Phone()
        phone.register(SEEN)
        assert b"Contact: <sip:alice@203.0.113.1:40000>" in phone.rewriter.outgoing(register("c2"), OTHER)
        assert phone.rewriter.public_for(OTHER) == PUBLIC
        assert phone.register(at("203.0.113.1:40888"), OTHER, "c2") == [
            Learned(at("203.0.113.1:40888"), PUBLIC, OTHER)
        ]
        assert phone.rewriter.public_for(REGISTRAR) == SEEN

    def test_who_sees_what_was_written_teaches_nothing(self) -> None:
        phone = Phone()
        assert phone.register(PUBLIC) == []
        assert phone.register(None) == []

    def test_a_server_without_received_means_the_address_that_was_written(self) -> None:
        phone = Phone()
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.rewriter.incoming(answer(request, SEEN, received=False), REGISTRAR)
        assert events(phone.rewriter) == [Learned(SEEN, PUBLIC, REGISTRAR)]

    def test_an_address_without_a_port_is_not_enough(self) -> None:
        phone = Phone()
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.rewriter.incoming(answer(request, at("203.0.113.9:1"), rport=False), REGISTRAR)
        assert events(phone.rewriter) == []

    @pytest.mark.parametrize("written", ["received=2001:db8::9", "received=[2001:db8::9]"])
    def test_ipv6_with_and_without_brackets(self, written: str) -> None:
        phone = Phone(at("[2001:db8::1]:40000"), at("[fd00::5]:5060"))
        request = phone.rewriter.outgoing(
            register().replace(b"192.168.0.111:5060", b"[fd00::5]:5060"), REGISTRAR
        )
        response = answer(request, None).replace(b";rport", b";rport=7;" + written.encode(), 1)
        heard = phone.rewriter.incoming(response, REGISTRAR)
        assert events(phone.rewriter) == [
            Learned(at("[2001:db8::9]:7"), at("[2001:db8::1]:40000"), REGISTRAR)
        ]
        assert b"Via: SIP/2.0/UDP [fd00::5]:5060;rport=5060;received=fd00::5;branch" in heard

    def test_calls_to_a_learned_endpoint_reach_the_phone(self) -> None:
        phone = Phone()
        phone.register(SEEN)
        call = wire(
            "INVITE sip:alice@203.0.113.1:40777 SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7;branch=z9hG4bKp"
        )
        assert phone.rewriter.incoming(call, REGISTRAR).startswith(
            b"INVITE sip:alice@192.168.0.111:5060 SIP/2.0"
        )

    def test_without_a_public_endpoint_nothing_can_be_learned(self) -> None:
        phone = Phone(None)
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.rewriter.incoming(answer(request, SEEN), REGISTRAR)
        assert not any(isinstance(event, Learned) for event in events(phone.rewriter))

    def test_programs_that_name_no_servers_have_one_view_for_all(self) -> None:
        phone = Phone()
        assert phone.register(SEEN, None) == [Learned(SEEN, PUBLIC, None)]
        assert phone.rewriter.public_for(None) == SEEN


class TestOneCorrectionAtATime:
    def test_a_symmetric_nat_or_several_front_ends_do_not_make_a_loop(self) -> None:
        phone = Phone()
        assert phone.register(SEEN) == [Learned(SEEN, PUBLIC, REGISTRAR)]
        for port in range(50000, 50010):
            assert phone.register(at(f"203.0.113.1:{port}")) == []
        assert phone.rewriter.public_for(REGISTRAR) == SEEN

    def test_once_a_correction_is_confirmed_there_may_be_another(self) -> None:
        phone = Phone()
        phone.register(SEEN)
        assert phone.register(SEEN) == []
        newer = at("203.0.113.2:6000")
        assert phone.register(newer) == [Learned(newer, SEEN, REGISTRAR)]

    def test_a_server_that_says_nothing_confirms_nothing(self) -> None:
        phone = Phone()
        phone.register(SEEN)
        assert phone.register(None) == []
        assert phone.register(at("203.0.113.2:6000")) == []

    def test_back_to_what_the_binding_has_is_a_correction_too(self) -> None:
        phone = Phone()
        phone.register(SEEN)
        phone.register(SEEN)
        assert phone.register(PUBLIC) == [Learned(PUBLIC, SEEN, REGISTRAR)]
        assert phone.rewriter.public_for(REGISTRAR) == PUBLIC

    def test_a_late_answer_to_what_is_written_no_more_counts_no_more(self) -> None:
        phone = Phone()
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.rewriter.incoming(answer(request, SEEN), REGISTRAR)
        phone.rewriter.incoming(answer(request, at("203.0.113.1:50000")), REGISTRAR)
        assert events(phone.rewriter) == [Learned(SEEN, PUBLIC, REGISTRAR)]

    def test_a_changed_binding_starts_anew(self) -> None:
        phone = Phone()
        phone.register(SEEN)
        phone.binding.endpoint = at("203.0.113.2:40000")
        assert phone.rewriter.public_for(REGISTRAR) == at("203.0.113.2:40000")
        newer = at("203.0.113.2:41000")
        assert phone.register(newer) == [Learned(newer, at("203.0.113.2:40000"), REGISTRAR)]

    def test_a_binding_that_was_lost_and_came_back_as_it_was_changes_nothing(self) -> None:
        phone = Phone()
        phone.register(SEEN)
        phone.binding.endpoint = None
        phone.rewriter.public_for(REGISTRAR)
        phone.binding.endpoint = at(str(PUBLIC))
        assert phone.rewriter.public_for(REGISTRAR) == SEEN


class TestWhoseWordIsNotTaken:
    @pytest.mark.parametrize(
        "inside", ["192.168.0.111:5060", "10.1.2.3:5060", "100.64.3.2:1234", "127.0.0.1:5060"]
    )
    def test_an_inside_address_seen_from_outside_is_an_algs(self, inside: str) -> None:
        phone = Phone()
        assert phone.register(at(inside)) == [AlgSuspected(at(inside), PUBLIC, REGISTRAR)]
        assert phone.rewriter.public_for(REGISTRAR) == PUBLIC
        assert phone.register(at(inside)) == []  # told once

    def test_an_algs_address_without_a_port_is_suspected_as_well(self) -> None:
        phone = Phone()
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.rewriter.incoming(answer(request, LOCAL, rport=False), REGISTRAR)
        assert events(phone.rewriter) == [
            AlgSuspected(at("192.168.0.111:40000"), PUBLIC, REGISTRAR),
        ]

    def test_a_sent_by_that_comes_back_as_it_was_inside_went_through_an_alg(self) -> None:
        phone = Phone()
        response = answer(phone.rewriter.outgoing(register(), REGISTRAR), LOCAL)
        as_by_nf_nat_sip = response.replace(b"203.0.113.1:40000", b"192.168.0.111:5060")
        heard = phone.rewriter.incoming(as_by_nf_nat_sip, REGISTRAR)
        assert b"Via: SIP/2.0/UDP 192.168.0.111:5060;rport=5060;received=192.168.0.111;branch" in heard
        assert events(phone.rewriter) == [AlgSuspected(LOCAL, PUBLIC, REGISTRAR)]
        phone.rewriter.incoming(as_by_nf_nat_sip, REGISTRAR)
        phone.rewriter.incoming(as_by_nf_nat_sip, OTHER)
        assert events(phone.rewriter) == []

    def test_a_sent_by_that_went_out_as_it_was_inside_comes_back_so(self) -> None:
        phone = Phone()
        phone.register(PUBLIC)
        phone.binding.endpoint = None
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.binding.endpoint = PUBLIC
        events(phone.rewriter)
        phone.rewriter.incoming(answer(request, PUBLIC), REGISTRAR)
        assert events(phone.rewriter) == []

    def test_a_server_on_the_inside_may_see_the_inside_address(self) -> None:
        phone, server = Phone(), at("192.168.0.7:5060")
        assert phone.register(LOCAL, server) == [Learned(LOCAL, PUBLIC, server)]
        assert b"Contact: <sip:alice@192.168.0.111:5060>" in phone.rewriter.outgoing(register(), server)

    def test_an_inside_address_by_nobody_knows_whom_is_neither_used_nor_suspected(self) -> None:
        assert Phone().register(LOCAL, None) == []

    def test_another_port_of_the_same_inside_address_is_not_used(self) -> None:
        phone, server = Phone(at("10.0.0.1:5060")), at("10.0.0.7:5060")
        assert phone.register(at("10.0.0.1:7777"), server) == []
        assert phone.register(at("10.0.0.2:7777"), server) == [
            Learned(at("10.0.0.2:7777"), at("10.0.0.1:5060"), server)
        ]

    def test_an_inside_binding_does_not_make_an_inside_sighting_from_outside_true(self) -> None:
        assert Phone(at("100.64.0.9:5060")).register(at("10.0.0.2:7777")) == []

    def test_a_server_behind_which_there_is_a_second_nat_is_believed(self) -> None:
        phone = Phone(at("100.64.0.9:5060"))
        assert phone.register(SEEN) == [Learned(SEEN, at("100.64.0.9:5060"), REGISTRAR)]

    def test_a_stranger_cannot_answer_for_the_server(self) -> None:
        phone = Phone()
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.rewriter.incoming(answer(request, SEEN), OTHER)
        assert events(phone.rewriter) == []

    def test_an_answer_to_what_was_never_asked_teaches_nothing(self) -> None:
        phone = Phone()
        request = phone.rewriter.outgoing(register(), REGISTRAR)
        phone.rewriter.incoming(answer(request, SEEN).replace(b"Call-ID: c1", b"Call-ID: c2"), REGISTRAR)
        assert events(phone.rewriter) == []


class TestMemoryIsBounded:
    def test_only_the_latest_chains_of_requests_are_known(self) -> None:
        phone = Phone()
        first = phone.rewriter.outgoing(register("first"), REGISTRAR)
        for number in range(MOST_CHAINS):
            phone.rewriter.outgoing(register(f"c{number}"), REGISTRAR)
        phone.rewriter.incoming(answer(first, SEEN), REGISTRAR)
        assert events(phone.rewriter) == []

    def test_only_the_latest_servers_are_known(self) -> None:
        phone = Phone()
        phone.register(SEEN, REGISTRAR, "first")
        servers = [at(f"198.51.100.{number}:5060") for number in range(1, MOST_SERVERS)]
        for number, server in enumerate(servers):
            phone.register(SEEN, server, f"c{number}")
        assert phone.rewriter.public_for(REGISTRAR) == SEEN
        phone.register(SEEN, at("198.51.100.200:5060"), "last")
        assert phone.rewriter.public_for(REGISTRAR) == PUBLIC
        assert phone.rewriter.public_for(servers[0]) == SEEN

    def test_suspicions_are_forgotten_in_their_order(self) -> None:
        phone = Phone()
        for number in range(MOST_SERVERS + 1):
            assert phone.register(LOCAL, at(f"198.51.100.{number + 1}:5060"))
        assert phone.register(LOCAL, at("198.51.100.65:5060")) == []
        assert phone.register(LOCAL, at("198.51.100.1:5060")) != []

    def test_long_hosts_of_strangers_are_not_remembered(self) -> None:
        phone = Phone()
        host = b"7" * 4000
        tracemalloc.start()
        for number in range(250):
            stranger = register().replace(b"192.168.0.111", host + b"%d" % number)
            phone.rewriter.incoming(answer(stranger, SEEN), REGISTRAR)
        kept_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept_bytes < 250 * len(host) / 2
