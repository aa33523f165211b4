"""What holds for any bytes, any PCP or NAT-PMP message, any clock and any gateway."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.machine import Transmit
from nattools.pcp import natpmp, pcp
from nattools.pcp.epoch import EpochTracker, natpmp_state_lost, pcp_state_lost
from nattools.pcp.request import Answered, Failed, GatewayRequest, PcpQuestion
from tests.fakes.pcp_gateway import Gateway
from tests.fuzz.mutator import run
from tests.fuzz.pcp_codec import TARGET, check

SEEDS = TARGET.seeds()
GATEWAY = Endpoint.of("192.168.77.1", pcp.SERVER_PORT)
CLIENT = Endpoint.of("192.168.77.10", 40000)


def as_on_the_wire(address: IPAddress) -> IPAddress:
    """An IPv4-mapped IPv6 address is an IPv4 one there, and a scope stays at home."""
    return pcp.parse_address(pcp.encode_address(address))


seconds = st.integers(0, 0xFFFFFFFF)
ports = st.integers(0, 0xFFFF)
addresses = st.ip_addresses().map(as_on_the_wire)
endpoints = st.builds(Endpoint, addresses, ports)
nonces = st.binary(min_size=12, max_size=12)
bodies = st.one_of(
    st.just(pcp.Announce()),
    st.builds(pcp.Map, nonces, st.integers(0, 255), ports, endpoints),
    st.builds(pcp.Peer, nonces, st.integers(0, 255), ports, endpoints, endpoints),
)
networks = st.builds(
    lambda address, bits: ip_network((address, min(bits, address.max_prefixlen)), strict=False),
    addresses,
    st.integers(0, 128),
).filter(lambda network: network != IPv6Network("::/0"))
filters = st.builds(pcp.Filter, st.none() | networks, ports)
options = st.one_of(
    st.builds(pcp.Option, st.integers(0, 255).map(pcp.OptionCode), st.binary(max_size=30)),
    st.just(pcp.PREFER_FAILURE),
    filters.map(pcp.Filter.option),
    addresses.map(pcp.third_party),
)
several_options = st.lists(options, max_size=6).map(tuple)
requests = st.builds(pcp.Request, bodies, seconds, addresses, several_options)
responses = st.builds(
    pcp.Response, st.integers(0, 255).map(pcp.ResultCode), bodies, seconds, seconds, several_options
)
transports = st.sampled_from(TransportProtocol)


class TestAnyBytes:
    @given(st.binary(max_size=200))
    def test_are_a_message_or_a_decode_error(self, data: bytes) -> None:
        check(data)

    @given(
        st.sampled_from((0, 1, 2)),
        st.integers(0, 2) | st.integers(0, 255),
        st.booleans(),
        st.integers(0, 275).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)),
    )
    def test_behind_a_header_that_fits_too(
        self, version: int, opcode: int, response: bool, rest: bytes
    ) -> None:
        check(bytes((version, opcode | (0x80 if response else 0), 0, 0)) + rest)

    @given(st.sampled_from(SEEDS), st.data())
    def test_and_what_is_nearly_a_message(self, seed: bytes, data: st.DataObject) -> None:
        changed = bytearray(seed)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        check(bytes(changed))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_and_every_beginning_of_a_message(self, seed: bytes) -> None:
        for size in range(len(seed)):
            check(seed[:size])

    @given(st.binary(max_size=1200))
    def test_never_stop_a_gateway_of_ours(self, data: bytes) -> None:
        for answer in Gateway().answers(data, CLIENT):
            check(answer)


class TestAnyMessage:
    @given(requests)
    def test_a_request_survives_the_wire(self, request: pcp.Request) -> None:
        wire = request.encode(allow_third_party=True)
        assert pcp.Request.parse(wire) == request
        assert pcp.Request.parse(wire).encode(allow_third_party=True) == wire

    @given(responses)
    def test_a_response_survives_the_wire(self, response: pcp.Response) -> None:
        assert pcp.Response.parse(response.encode()) == response

    @given(filters)
    def test_a_filter_survives_the_wire(self, filter_: pcp.Filter) -> None:
        expected = filter_
        if isinstance(filter_.network, IPv6Network):  # ::ffff:0:0/96 and below are IPv4
            expected = pcp.Filter.parse(filter_.option())
        assert pcp.Filter.parse(expected.option()) == expected

    @given(transports, ports, ports, seconds)
    def test_a_nat_pmp_request_survives_the_wire(
        self, transport: TransportProtocol, internal: int, external: int, lifetime_s: int
    ) -> None:
        request = natpmp.MappingRequest(transport, internal, external, lifetime_s)
        assert natpmp.parse_request(request.encode()) == request

    @given(transports, seconds, ports, ports, seconds)
    def test_a_nat_pmp_response_survives_the_wire(
        self, transport: TransportProtocol, epoch_s: int, internal: int, external: int, lifetime_s: int
    ) -> None:
        response = natpmp.MappingResponse(transport, epoch_s, internal, external, lifetime_s)
        assert natpmp.parse_response(response.encode()) == response

    @given(seconds, st.ip_addresses(v=4))
    def test_an_external_address_survives_the_wire(self, epoch_s: int, address: IPv4Address) -> None:
        response = natpmp.ExternalAddressResponse(epoch_s, address)
        assert natpmp.parse_response(response.encode()) == response

    @given(st.ip_addresses())
    def test_an_address_survives_the_wire(self, address: IPAddress) -> None:
        expected: IPAddress = address
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            expected = address.ipv4_mapped
        assert as_on_the_wire(address) == expected


class TestAnyClock:
    @given(seconds, st.lists(st.floats(0, 1e6), max_size=20), st.sampled_from((15 / 16 + 0.01, 1, 1.05)))
    def test_a_router_that_runs_on_never_lost_its_state(
        self, start: int, pauses: list[float], rate: float
    ) -> None:
        """Its clock may be a twentieth off, and it tells whole seconds only."""
        trackers = EpochTracker(pcp_state_lost), EpochTracker(natpmp_state_lost)
        elapsed_s = 0.0
        for pause in [0.0, *pauses]:
            elapsed_s += pause
            for tracker in trackers:
                assert not tracker.update(start + int(elapsed_s * rate), now=elapsed_s)

    @given(st.integers(10, 0xFFFFFFFF), st.floats(0, 1e6))
    def test_a_router_that_begins_again_did(self, epoch_s: int, pause: float) -> None:
        for rule in (pcp_state_lost, natpmp_state_lost):
            tracker = EpochTracker(rule)
            tracker.update(epoch_s, now=0)
            assert tracker.update(0, now=pause)


class TestAnyGateway:
    ASKED = pcp.Map(bytes(12), 17, 5060, Endpoint.of("0.0.0.0", 5060))

    @given(
        st.lists(st.tuples(st.binary(max_size=64) | st.sampled_from(SEEDS), st.floats(0, 5)), max_size=12),
        st.floats(0, 5),
    )
    def test_a_request_ends_in_time_and_once(
        self, received: list[tuple[bytes, float]], timeout_s: float
    ) -> None:
        question = PcpQuestion(pcp.Request(self.ASKED, 3600, IPv4Address("192.168.77.10")), "request")
        request: GatewayRequest[pcp.Response] = GatewayRequest(
            question, GATEWAY, now=0.0, entropy=bytes, timeout_s=timeout_s
        )
        sent: list[Transmit] = []
        events: list[Answered[pcp.Response] | Failed] = []
        arrivals = sorted(received, key=lambda each: each[1])
        while (due := request.timeout_at()) is not None:
            assert due <= timeout_s
            if arrivals and arrivals[0][1] < due:
                data, now = arrivals.pop(0)
                request.receive(data, GATEWAY, now=now)
            else:
                request.handle_timeout(now=due)
            sent += request.transmits()
            while (event := request.next_event()) is not None:
                events.append(event)
        assert len(events) == 1
        assert 1 <= len(sent) <= 6
        assert set(sent) == {Transmit(question.data, GATEWAY)}


def test_the_mutator_finds_nothing_in_a_few_thousand_messages() -> None:
    report = run(TARGET, count=5000, seed=1)
    assert report.failure is None, report.failure
    assert {"request", "response", "natpmp_request", "natpmp_response", "DecodeError"} <= set(report.outcomes)
