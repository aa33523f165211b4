"""Two hosts of one server: what each has the other send, and all that the link ignores."""

from __future__ import annotations

import hmac
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import CredentialError, TransportError
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    ERROR_CODE,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    SOURCE_ADDRESS,
    ChangeRequest,
)
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.peer import (
    LOST_AFTER_S,
    MOST_REPLY_BYTES,
    PING_INTERVAL_S,
    SEQUENCE_WINDOW,
    PeerDrop,
    PeerLink,
    PeerState,
    TwoHosts,
)
from nattools.stun.responder import Reply
from tests.unit.stun.two_hosts import IPV4, IPV6, KEY, LINK_PORT, PORTS, Host, Pair, numbers

CLIENT = Endpoint.of("203.0.113.7", 40_000)
CLIENT_IPV6 = Endpoint.of("2001:db8:7::7", 40_000)
MODERN, CLASSIC = bytes(range(12)), bytes(range(16))
CHANGES = [ChangeRequest(ip, port) for ip in (False, True) for port in (False, True)]
CHANGE_IP = ChangeRequest(change_ip=True, change_port=False)
NOTHING_WAS_DONE = Endpoint.of("192.0.2.9", LINK_PORT)


def request(change: ChangeRequest, transaction_id: bytes = MODERN) -> bytes:
    attributes = (CHANGE_REQUEST.of(change),)
    return Message(Method.BINDING, MessageClass.REQUEST, transaction_id, attributes).encode()


def response(size: int = 0) -> bytes:
    """A response as long as is wanted, or a little longer."""
    data = Message(Method.BINDING, MessageClass.SUCCESS, MODERN, ()).encode()
    if size <= len(data):
        return data
    body = size - len(data) - 4 & ~3
    return (
        data[:2]
        + (body + 4).to_bytes(2, "big")
        + data[4:]
        + b"\x80\x26"
        + body.to_bytes(2, "big")
        + bytes(body)
    )


def to_client(origin: Endpoint, data: bytes, destination: Endpoint = CLIENT) -> Reply:
    return Reply(data, origin, destination)


@pytest.fixture
def pair() -> Pair:
    """Two hosts that know each other."""
    made = Pair()
    made.run(0.1)
    assert made.up == (True, True)
    return made


def handed_over(pair: Pair, sender: int = 0) -> bytes:
    """One datagram by which a host has the other send a reply; it is still to be delivered."""
    assert pair.hosts[sender].ask(request(CHANGE_IP), CLIENT, PORTS[0], now=pair.now) is None
    (data,) = pair.take(sender)
    return data


@pytest.mark.parametrize("transaction_id", [MODERN, CLASSIC], ids=["modern", "classic"])
@pytest.mark.parametrize("change", CHANGES, ids=["-", "port", "ip", "both"])
@pytest.mark.parametrize("port", [0, 1], ids=["P1", "P2"])
@pytest.mark.parametrize("address", [0, 1], ids=["A1", "A2"])
@pytest.mark.parametrize(("addresses", "client"), [(IPV4, CLIENT), (IPV6, CLIENT_IPV6)], ids=["IPv4", "IPv6"])
def test_the_grid(
    addresses: tuple[IPAddress, IPAddress],
    client: Endpoint,
    address: int,
    port: int,
    change: ChangeRequest,
    transaction_id: bytes,
) -> None:
    pair = Pair(addresses)
    pair.run(0.1)
    asked = pair.hosts[address]
    assert asked.ask(request(change, transaction_id), client, PORTS[port], now=pair.now) is None
    pair.carry()

    sender = address ^ change.change_ip
    (sent,) = pair.hosts[sender].sent
    assert pair.hosts[1 - sender].sent == []
    origin = Endpoint(addresses[sender], PORTS[port ^ change.change_port])
    assert (sent.origin, sent.destination) == (origin, client)
    reply = Message.parse(sent.data)
    assert reply.mapped_address == client
    is_classic = transaction_id is CLASSIC
    assert reply.get(CHANGED_ADDRESS if is_classic else OTHER_ADDRESS) == Endpoint(
        addresses[1 - address], PORTS[1 - port]
    )
    if client.ip.version == 4:  # over IPv6 there is no room for it
        assert reply.get(SOURCE_ADDRESS if is_classic else RESPONSE_ORIGIN) == origin
    assert (asked.link.handed_over, pair.hosts[1 - address].link.taken_over) == (change.change_ip,) * 2


def test_each_host_may_stand_behind_a_1_to_1_nat() -> None:
    pair = Pair()
    inside = ip_address("10.0.0.5"), ip_address("10.1.0.5")
    for which, own in enumerate(inside):
        pair.hosts[which] = Host(own, IPV4[1 - which], 8 + which, advertise=IPV4[which])
    pair.run(0.1)
    pair.hosts[0].ask(
        request(ChangeRequest(change_ip=True, change_port=True)), CLIENT, PORTS[0], now=pair.now
    )
    pair.carry()
    (sent,) = pair.hosts[1].sent
    assert (sent.origin, sent.destination) == (Endpoint(inside[1], PORTS[1]), CLIENT)
    reply = Message.parse(sent.data)
    for codec in (RESPONSE_ORIGIN, OTHER_ADDRESS):
        assert reply.get(codec) == Endpoint(IPV4[1], PORTS[1])


def test_a_host_whose_peer_was_never_heard_is_a_server_of_one_address() -> None:
    pair = Pair()
    pair.lost = lambda _data: True
    pair.run(10)
    assert pair.up == (False, False)
    host = pair.hosts[0]
    host.ask(request(CHANGE_IP), CLIENT, PORTS[0], now=pair.now)
    (sent,) = host.sent
    error = Message.parse(sent.data).get(ERROR_CODE)
    assert error is not None
    assert error.code == 420


def test_a_peer_that_falls_silent_is_gone_after_a_while_and_comes_back(pair: Pair) -> None:
    pair.lost = lambda _data: True
    pair.run(LOST_AFTER_S - PING_INTERVAL_S - 0.2)
    assert pair.up == (True, True)
    pair.run(2 * PING_INTERVAL_S + 0.5)
    assert pair.up == (False, False)
    pair.lost = lambda _data: False
    assert [host.states[-1] for host in pair.hosts] == [PeerState.DOWN] * 2
    pair.run(2 * PING_INTERVAL_S + 0.2)
    assert pair.up == (True, True)
    states = [PeerState.UP, PeerState.DOWN, PeerState.UP]
    assert [host.states for host in pair.hosts] == [states] * 2


@pytest.mark.parametrize("which", [0, 1])
def test_a_host_that_leaves_is_gone_at_once(pair: Pair, which: int) -> None:
    pair.hosts[which].link.leave()
    pair.carry()
    assert not pair.hosts[1 - which].link.is_up(now=pair.now)
    assert pair.hosts[1 - which].states == [PeerState.UP, PeerState.DOWN]
    pair.restart(which)
    pair.run(0.1)
    assert pair.up == (True, True)


def test_a_host_that_leaves_before_it_met_the_other_does_no_harm() -> None:
    pair = Pair()
    pair.hosts[0].link.leave()
    pair.carry()
    pair.run(0.1)
    assert pair.up == (True, True)


def test_a_link_that_carries_one_way_only_is_down_at_both_ends(pair: Pair) -> None:
    carried = pair.deliver

    def one_way(to: int, data: bytes) -> None:
        if to == 0:
            carried(to, data)

    pair.deliver = one_way  # type: ignore[method-assign]  # the wire is cut in one direction
    pair.run(LOST_AFTER_S + 2 * PING_INTERVAL_S)
    assert pair.up == (False, False)


@pytest.mark.parametrize("which", [0, 1])
def test_a_host_that_restarts_is_known_again_at_its_first_ping(pair: Pair, which: int) -> None:
    for _ in range(3):
        pair.restart(which)
        pair.run(0.1)
        assert pair.up == (True, True)
        pair.deliver(1, handed_over(pair))
        assert len(pair.hosts[1].sent) == 1
        pair.hosts[1].sent.clear()


def test_both_hosts_may_restart_at_once(pair: Pair) -> None:
    pair.restart(0)
    pair.restart(1)
    pair.run(0.1)
    assert pair.up == (True, True)


def test_a_datagram_counts_once(pair: Pair) -> None:
    data = handed_over(pair)
    for _ in range(3):
        pair.deliver(1, data)
    assert len(pair.hosts[1].sent) == 1
    assert pair.hosts[1].link.dropped == {PeerDrop.REPLAYED: 2}


def test_no_datagram_counts_again_after_others_came(pair: Pair) -> None:
    many = [handed_over(pair) for _ in range(10)]
    for _ in range(2):
        for data in many:
            pair.deliver(1, data)
    assert len(pair.hosts[1].sent) == 10


def test_a_host_that_knows_no_peer_yet_sends_for_nobody_and_says_nothing(pair: Pair) -> None:
    data = handed_over(pair)
    pair.restart(1)
    pair.deliver(1, data)
    assert pair.hosts[1].sent == []
    assert pair.take(1) == []
    assert pair.hosts[1].link.dropped == {PeerDrop.STALE: 1}


def test_datagrams_may_overtake_each_other_but_not_by_too_much(pair: Pair) -> None:
    many = [handed_over(pair) for _ in range(SEQUENCE_WINDOW + 1)]
    host = pair.hosts[1]
    pair.deliver(1, many[-1])
    for data in many[1:-1]:
        pair.deliver(1, data)
    assert len(host.sent) == SEQUENCE_WINDOW
    pair.deliver(1, many[0])
    for data in many:
        pair.deliver(1, data)
    assert len(host.sent) == SEQUENCE_WINDOW
    assert host.link.dropped == {PeerDrop.REPLAYED: SEQUENCE_WINDOW + 2}


def test_a_gap_of_any_length_costs_only_what_is_in_it(pair: Pair) -> None:
    for _ in range(5 * SEQUENCE_WINDOW):
        handed_over(pair)
    late = [handed_over(pair), handed_over(pair)]
    for data in reversed(late):
        pair.deliver(1, data)
    assert len(pair.hosts[1].sent) == 2


@pytest.mark.parametrize("restarted", [(0,), (1,), (0, 1)], ids=["sender", "receiver", "both"])
@pytest.mark.parametrize("is_known_again", [False, True], ids=["at once", "later"])
def test_what_was_recorded_before_a_restart_is_worth_nothing(
    pair: Pair, restarted: tuple[int, ...], is_known_again: bool
) -> None:
    recorded = [*pair.wire, (1, handed_over(pair)), (0, handed_over(pair, 1))]
    pair.deliver(*recorded[-2])
    for which in restarted:
        pair.restart(which)
    if is_known_again:
        pair.run(0.1)
    for host in pair.hosts:
        host.sent.clear()
    for _ in range(2):
        for to, data in recorded:
            pair.deliver(to, data)
            pair.carry()
    assert [host.sent for host in pair.hosts] == [[], []]
    pair.run(2 * PING_INTERVAL_S)
    assert pair.up == (True, True)


def test_no_byte_can_be_changed(pair: Pair) -> None:
    data = handed_over(pair)
    for position in range(len(data)):
        forged = bytearray(data)
        forged[position] ^= 1
        pair.deliver(1, bytes(forged))
        pair.deliver(1, data[:position])
    assert pair.hosts[1].sent == []
    assert pair.hosts[1].link.dropped == {PeerDrop.FORGED: 2 * len(data)}
    pair.deliver(1, data)
    assert len(pair.hosts[1].sent) == 1


def test_another_key_opens_nothing() -> None:
    pair = Pair()
    pair.hosts[1] = Host(IPV4[1], IPV4[0], 9, key=KEY + b"!")
    pair.run(5)
    assert pair.up == (False, False)
    assert set(pair.hosts[0].link.dropped) == {PeerDrop.FORGED}


def test_only_the_peer_is_listened_to(pair: Pair) -> None:
    data = handed_over(pair)
    host = pair.hosts[1]
    for source in (NOTHING_WAS_DONE, pair.hosts[0].address.with_port(1)):
        host.receive(data, source, now=pair.now)
    assert host.sent == []
    assert host.link.dropped == {PeerDrop.STRANGER: 2}


def test_what_a_host_sent_itself_is_nothing_to_it(pair: Pair) -> None:
    pair.deliver(0, handed_over(pair))
    for to, data in list(pair.wire):
        pair.deliver(1 - to, data)
    assert pair.hosts[0].sent == pair.hosts[1].sent == []
    assert set(pair.hosts[0].link.dropped) == set(pair.hosts[1].link.dropped) == {PeerDrop.REPLAYED}
    assert pair.take(0) == pair.take(1) == []


@pytest.mark.parametrize(
    "reply",
    [
        to_client(Endpoint(IPV4[1], 53), response()),
        to_client(Endpoint(IPV4[1], PORTS[0]), b"no STUN at all"),
        to_client(Endpoint(IPV4[1], PORTS[0]), request(CHANGE_IP)),
        to_client(Endpoint(IPV4[1], PORTS[0]), response(), CLIENT.with_port(0)),
        to_client(Endpoint(IPV4[1], PORTS[0]), response(), Endpoint.of("224.0.0.1", 5)),
        to_client(Endpoint(IPV4[1], PORTS[0]), response(), Endpoint(IPV4[0], PORTS[1])),
        to_client(Endpoint(IPV4[1], PORTS[0]), b"", Endpoint.of("0.0.0.1", 5)),
    ],
    ids=["port", "not STUN", "request", "port 0", "multicast", "own socket", "nothing"],
)
def test_even_the_peer_can_have_only_responses_to_clients_sent(pair: Pair, reply: Reply) -> None:
    assert pair.hosts[0].link.hand_over(reply, now=pair.now)
    pair.carry()
    assert pair.hosts[1].sent == []
    assert pair.hosts[1].link.dropped == {PeerDrop.UNFIT: 1}


def test_a_body_that_ends_too_early_is_unfit(pair: Pair) -> None:
    whole = handed_over(pair)[:-32]
    for sequence in range(1, 20):
        start = whole[:37] + (10_000 + sequence).to_bytes(8, "big")
        data = start + whole[45 : 45 + sequence - 1]
        pair.deliver(1, data + hmac.digest(KEY, data, "sha256"))
    assert pair.hosts[1].sent == []
    assert pair.hosts[1].link.dropped == {PeerDrop.UNFIT: 19}


@pytest.mark.parametrize("kind", [0, 1, 3, 255])
@pytest.mark.parametrize("size", [0, 15, 16, 18, 40])
def test_what_no_host_sends_is_not_read_even_under_the_key(pair: Pair, kind: int, size: int) -> None:
    data = handed_over(pair)[:-32]
    data = data[:4] + bytes((kind,)) + data[5:45] + bytes(size)
    pair.deliver(1, data + hmac.digest(KEY, data, "sha256"))
    assert pair.hosts[1].sent == []
    assert pair.take(1) == []
    assert pair.hosts[1].link.dropped == {PeerDrop.FORGED: 1}


def test_a_long_reply_is_carried_and_one_that_is_too_long_is_not(pair: Pair) -> None:
    origin = Endpoint(IPV4[1], PORTS[1])
    longest = response(MOST_REPLY_BYTES)
    assert len(longest) == MOST_REPLY_BYTES
    assert pair.hosts[0].link.hand_over(to_client(origin, longest), now=pair.now)
    assert not pair.hosts[0].link.hand_over(to_client(origin, longest + bytes(4)), now=pair.now)
    pair.carry()
    assert pair.hosts[1].sent == [to_client(origin, longest)]


def test_nothing_is_handed_over_while_the_peer_is_away(pair: Pair) -> None:
    pair.now += LOST_AFTER_S
    reply = to_client(Endpoint(IPV4[1], PORTS[1]), response())
    assert not pair.hosts[0].link.hand_over(reply, now=pair.now)
    assert pair.take(0) == []


def test_a_replay_is_answered_by_no_more_than_itself(pair: Pair) -> None:
    recorded = list(pair.wire)
    for which in (0, 1):
        pair.restart(which)
    pair.run(0.1)
    before = len(pair.wire)
    for to, data in recorded:
        pair.deliver(to, data)
        pair.carry()
    assert len(pair.wire) - before <= len(recorded)
    assert all(len(data) <= len(recorded[0][1]) for _, data in pair.wire[before:])
    assert pair.up == (True, True)
    pair.deliver(1, handed_over(pair))
    assert len(pair.hosts[1].sent) == 1


def test_a_short_key_is_refused() -> None:
    hosts = TwoHosts(*IPV4)
    with pytest.raises(CredentialError, match=r"key of 15 bytes for the peer 192\.0\.2\.2:3480"):
        PeerLink(hosts, Endpoint(IPV4[1], LINK_PORT), key=KEY[:15], entropy=numbers(1))


@pytest.mark.parametrize(
    ("own", "other", "ports"),
    [
        ("192.0.2.1", "192.0.2.1", PORTS),
        ("192.0.2.1", "2001:db8::1", PORTS),
        ("0.0.0.0", "192.0.2.2", PORTS),
        ("192.0.2.1", "192.0.2.2", (3478, 3478)),
        ("192.0.2.1", "192.0.2.2", (0, 3479)),
        ("192.0.2.1", "192.0.2.2", (3478, 0)),
    ],
)
def test_hosts_that_cannot_be_a_pair(own: str, other: str, ports: tuple[int, int]) -> None:
    with pytest.raises(TransportError):
        TwoHosts(ip_address(own), ip_address(other), *ports)


def test_what_each_host_listens_on_is_its_own() -> None:
    hosts = TwoHosts(*IPV4)
    assert hosts.alone.endpoints == tuple(Endpoint(IPV4[0], port) for port in PORTS)
    assert len(hosts.whole.endpoints) == 4
