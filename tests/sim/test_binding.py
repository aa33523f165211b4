"""A binding's life on the simulated internet: found, believed, kept, changed, lost, and found again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattools.binding.machine import Ask, Failed, Release
from nattools.binding.model import BindingChange, ChangeKind, Claim, Method, Reach, Source
from nattools.binding.schedule import KeepaliveKind
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, NoRouterError, SymmetricNatError
from tests.sim.living import (
    INSIDE_IP,
    ROUTER_IP,
    SECOND_SERVER,
    SERVER,
    STRANGER,
    LivingSocket,
    told,
)

WEEK_S = 7 * 24 * 3600
LOCAL = Endpoint.of(INSIDE_IP, 5060)
MAPPED = Endpoint.of(ROUTER_IP, 5060)
ROUTER_CLAIM = Claim(Method.PCP, LOCAL, MAPPED, "192.168.0.1 granted it by PCP", lease_s=3600)
CONES = ["full-cone", "restricted-cone", "port-restricted-cone"]
ROUTED = ["open", "symmetric-firewall"]
ALL_METHODS = (Method.PCP, Method.OPEN, Method.STUN)


def failure(socket: LivingSocket) -> BindingError:
    errors = [event.error for _, event in socket.events if isinstance(event, Failed)]
    assert len(errors) == 1, socket.events
    return errors[0]


def forwarding(socket: LivingSocket, claim: Claim = ROUTER_CLAIM) -> LivingSocket:
    """A router that forwards the port when it is asked to."""

    def grant() -> Claim:
        socket.nat.forwards[claim.public.port] = socket.local
        return replace(claim, public=Endpoint(socket.nat.public_ip, claim.public.port))

    socket.providers[Source.ROUTER] = grant
    return socket


# Found, and no more claimed than is true


@pytest.mark.parametrize("servers", [(SERVER,), (SERVER, SECOND_SERVER)], ids=["one", "two"])
@pytest.mark.parametrize("kind", CONES + ROUTED)
def test_what_is_claimed_is_true_for_a_stranger(kind: str, servers: tuple[Endpoint, ...]) -> None:
    socket = LivingSocket(kind, servers=servers)
    socket.run_for(3)
    binding = socket.binding
    assert binding.method is (Method.OPEN if kind in ROUTED else Method.STUN)
    assert binding.outbound_matches is True
    if socket.reach() is Reach.ANYONE:
        assert socket.arrives(STRANGER, binding.public)
    else:
        assert socket.reach() is Reach.HOSTS_SENT_TO
        assert socket.send(STRANGER) == binding.public
        assert socket.arrives(STRANGER, binding.public)


@pytest.mark.parametrize("kind", ["full-cone", "open"])
@pytest.mark.parametrize(
    "settings",
    [{"fresh_port": True}, {"servers": (SERVER, SECOND_SERVER)}],
    ids=["a fresh port", "a second server"],
)
def test_a_nat_that_lets_anyone_in_is_known(kind: str, settings: dict[str, object]) -> None:
    socket = LivingSocket(kind, **settings)  # type: ignore[arg-type]  # one of its settings
    socket.run_for(3)
    assert socket.reach() is Reach.ANYONE


@pytest.mark.parametrize("kind", [*CONES, *ROUTED])
@pytest.mark.parametrize("seed", range(3))
def test_a_socket_on_the_port_of_an_earlier_one_is_not_fooled(kind: str, seed: int) -> None:
    socket = LivingSocket(kind, seed=seed)
    socket.run_for(3)
    for _ in range(3):
        socket.begin()
        socket.run_for(3)
        if socket.reach() is Reach.ANYONE:
            assert socket.arrives(STRANGER, socket.binding.public)


@pytest.mark.parametrize("servers", [(SERVER,), (SERVER, SECOND_SERVER)], ids=["one", "two"])
@pytest.mark.parametrize("kind", ["symmetric", "address-dependent"])
def test_a_symmetric_nat_is_refused_with_what_helps(kind: str, servers: tuple[Endpoint, ...]) -> None:
    socket = LivingSocket(kind, servers=servers)
    socket.run_for(10)
    error = failure(socket)
    assert isinstance(error, SymmetricNatError)
    assert "natgate" in str(error)
    assert "symmetric" in error.refusals["open, stun"]
    assert str(error).count("What helps") == 1


def test_one_plain_server_shows_only_what_it_saw() -> None:
    socket = LivingSocket(two_addresses=False)
    socket.run_for(5)
    assert socket.reach() is Reach.SERVER_ONLY


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["full-cone", "port-restricted-cone", "symmetric", "address-dependent"])
def test_loss_makes_no_wrong_claim(kind: str, seed: int) -> None:
    socket = LivingSocket(kind, servers=(SERVER, SECOND_SERVER), seed=seed, loss=0.2)
    socket.run_for(20)
    socket.loss = 0
    if socket.machine.binding is None:
        assert kind in ("symmetric", "address-dependent") or socket.events
        return
    reach = socket.reach()
    if kind in ("symmetric", "address-dependent"):
        assert reach is Reach.SERVER_ONLY
    elif reach is Reach.ANYONE:
        assert kind == "full-cone"


def test_without_any_answer_it_says_so() -> None:
    socket = LivingSocket()
    socket.cut = True
    socket.begin()
    socket.run_for(15)
    assert "stun" in failure(socket).refusals["open, stun"].lower()


# Routers, settings and tunnels


@pytest.mark.parametrize("kind", [*CONES, "symmetric"])
def test_a_routers_mapping_is_proven_by_a_stranger(kind: str) -> None:
    socket = forwarding(LivingSocket(kind, methods=ALL_METHODS))
    socket.begin()
    socket.run_for(3)
    binding = socket.binding
    assert (binding.method, socket.reach()) == (Method.PCP, Reach.ANYONE)
    assert socket.arrives(STRANGER, binding.public)
    # whether all leaves from there is not asked of the server's other address: a mapping does without
    assert binding.outbound_matches is (None if socket.send(SERVER) == binding.public else False)


@pytest.mark.parametrize("kind", CONES)
def test_a_mapping_that_does_nothing_is_not_believed(kind: str) -> None:
    """A router that says yes, and forwards nothing: the socket's own endpoint is what there is."""
    socket = LivingSocket(kind, methods=ALL_METHODS, begin=False)
    socket.providers[Source.ROUTER] = lambda: replace(ROUTER_CLAIM, public=MAPPED.with_port(6000))
    socket.begin()
    socket.run_for(10)
    assert socket.binding.method is Method.STUN
    assert Source.ROUTER in told(socket.events, Release)


@pytest.mark.parametrize("kind", ["restricted-cone", "port-restricted-cone"])
def test_a_port_that_nobody_forwards_is_not_open_to_anyone(kind: str) -> None:
    socket = LivingSocket(kind, methods=(Method.STATIC,), begin=False)
    socket.providers[Source.STATIC] = lambda: replace(ROUTER_CLAIM, method=Method.STATIC)
    for _ in range(2):
        socket.begin()
        socket.run_for(10)
        if socket.machine.binding is not None:
            assert socket.reach() is not Reach.ANYONE


def test_a_router_behind_another_nat_is_refused() -> None:
    socket = LivingSocket(methods=ALL_METHODS, begin=False)
    elsewhere = replace(ROUTER_CLAIM, public=Endpoint.of("11.22.33.44", 5060))
    socket.providers[Source.ROUTER] = lambda: elsewhere
    socket.begin()
    socket.run_for(3)
    assert socket.binding.method is Method.STUN


def test_without_a_router_the_search_does_not_wait_for_it_to_be_told() -> None:
    socket = LivingSocket(methods=ALL_METHODS, begin=False)
    socket.provider_delay_s = 5.0
    socket.providers[Source.ROUTER] = lambda: NoRouterError("no router answered")
    socket.begin()
    socket.run_for(1)
    assert socket.binding.method is Method.STUN
    assert socket.when(ChangeKind.ACQUIRED) < 1000 + 0.5
    assert told(socket.events, Release) == [Source.ROUTER]


def test_one_after_the_other_the_next_is_asked_when_the_first_refuses() -> None:
    socket = LivingSocket(methods=(Method.PCP, Method.STATIC), side_by_side=False, begin=False)
    socket.provider_delay_s = 5.0
    socket.providers[Source.ROUTER] = lambda: NoRouterError("no router answered")
    socket.providers[Source.STATIC] = lambda: BindingError("sip.example.org has no address")
    socket.begin()
    socket.run_for(4)
    assert len(socket.events) == 1
    socket.run_for(10)
    assert failure(socket).refusals == {
        "pcp": "no router answered",
        "static": "sip.example.org has no address",
    }


def test_a_claim_does_not_wait_for_servers_that_are_silent() -> None:
    socket = LivingSocket(methods=(Method.STATIC, Method.STUN), begin=False)
    socket.cut = True
    socket.providers[Source.STATIC] = lambda: replace(ROUTER_CLAIM, method=Method.STATIC)
    socket.begin()
    socket.run_for(0.4)
    assert socket.reach() is Reach.DECLARED
    socket.cut = False
    socket.nat.forwards[5060] = LOCAL
    socket.run_for(60)
    assert socket.reach() is Reach.ANYONE
    assert socket.kinds == [ChangeKind.ACQUIRED]


def test_a_tunnel_that_goes_away_is_lost_and_comes_back() -> None:
    tunnel = Claim(Method.VPN, LOCAL, Endpoint.of("10.8.0.2", 5060), "wg0 leads there", realm="wg0")
    socket = LivingSocket(methods=(Method.VPN,), begin=False)
    said: list[Claim | BindingError] = [tunnel]
    socket.providers[Source.VPN] = lambda: said[0]
    socket.begin()
    socket.run_for(10)
    assert socket.binding.realm == "wg0"
    said[0] = BindingError("wg0 is gone")
    socket.tell(lambda: socket.machine.network_changed(LOCAL, "a link was removed", now=socket.now))
    socket.run_for(2)
    assert socket.machine.binding is None
    assert socket.changes[-1].reason == "wg0 is gone"
    said[0] = tunnel
    socket.run_for(40)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.LOST, ChangeKind.RESTORED]


# Kept


@pytest.mark.parametrize(("lifetime_s", "interval_s"), [(16.0, 15.0), (120.0, 96.0)])
def test_a_week_of_keepalives(lifetime_s: float, interval_s: float) -> None:
    socket = LivingSocket(lifetime_s=lifetime_s, keepalive_s=interval_s)
    socket.run_for(3)
    for _ in range(7):
        socket.run_for(WEEK_S / 7)
        assert socket.arrives(SERVER, socket.binding.public)
    assert socket.kinds == [ChangeKind.ACQUIRED]
    assert WEEK_S / interval_s < socket.packets_sent < WEEK_S / (0.8 * interval_s) + 50


def test_a_keepalive_comes_as_often_as_it_is_set() -> None:
    socket = LivingSocket(lifetime_s=6.0, keepalive_s=4.0)
    socket.run_for(3)
    socket.send(STRANGER)
    socket.tell(lambda: socket.machine.keep_open(STRANGER, KeepaliveKind.EMPTY, now=socket.now))
    for _ in range(240):
        socket.run_for(0.5)
        assert socket.arrives(STRANGER, socket.binding.public)
    socket.tell(lambda: socket.machine.let_go(STRANGER))
    socket.run_for(7)
    assert not socket.arrives(STRANGER, socket.binding.public)


@pytest.mark.parametrize(
    ("kind", "by_router"),
    [*((kind, False) for kind in CONES), *((kind, True) for kind in [*CONES, "symmetric"])],
)
def test_another_public_address_is_told(kind: str, by_router: bool) -> None:
    socket = LivingSocket(kind, methods=ALL_METHODS if by_router else (Method.STUN,), begin=False)
    if by_router:
        forwarding(socket)
    socket.begin()
    socket.run_for(100)
    socket.nat.restart("203.0.113.99")
    changed_at = socket.now
    socket.run_for(30)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.CHANGED]
    assert str(socket.binding.public.ip) == "203.0.113.99"
    assert socket.when(ChangeKind.CHANGED) - changed_at < 15 + 2
    socket.send(STRANGER)
    assert socket.arrives(STRANGER, socket.binding.public)


def test_what_is_kept_open_is_opened_anew_with_another_public_address() -> None:
    socket = LivingSocket(keepalive_s=100.0, lifetime_s=300.0)
    socket.run_for(3)
    socket.tell(lambda: socket.machine.keep_open(STRANGER, KeepaliveKind.EMPTY, now=socket.now))
    socket.run_for(1)
    socket.nat.restart("203.0.113.99")
    socket.tell(
        lambda: socket.machine.network_changed(socket.local, "somebody wants to know", now=socket.now)
    )
    socket.run_for(1)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.CHANGED]
    assert socket.arrives(STRANGER, socket.binding.public)


def test_what_the_router_announces_is_told_at_once() -> None:
    socket = forwarding(LivingSocket(methods=ALL_METHODS))
    socket.begin()
    socket.run_for(100)
    socket.nat.restart("203.0.113.99")
    socket.nat.forwards[5060] = LOCAL
    changed_at = socket.now
    news = replace(ROUTER_CLAIM, public=Endpoint.of("203.0.113.99", 5060))
    socket.tell(lambda: socket.machine.claim(news, now=socket.now))
    socket.run_for(30)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.CHANGED]
    assert socket.when(ChangeKind.CHANGED) - changed_at < 0.5
    assert socket.reach() is Reach.ANYONE


def test_a_router_that_forgets_its_mapping_is_replaced_by_what_there_is() -> None:
    socket = forwarding(LivingSocket(methods=ALL_METHODS))
    socket.begin()
    socket.run_for(20)
    socket.providers[Source.ROUTER] = lambda: NoRouterError("no router answered")
    lost = BindingError("the router has restarted")
    socket.tell(lambda: socket.machine.refuse(Source.ROUTER, lost, now=socket.now))
    socket.run_for(3)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.LOST, ChangeKind.RESTORED]
    assert socket.binding.method is Method.STUN


def test_a_server_that_dies_takes_the_binding_with_it_until_it_is_back() -> None:
    socket = LivingSocket(methods=(Method.STUN,))
    socket.run_for(10)
    socket.stopped |= {str(SERVER.ip), "203.0.113.11"}
    socket.run_for(60)
    assert socket.machine.binding is None
    socket.stopped.clear()
    socket.run_for(60)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.LOST, ChangeKind.RESTORED]


def test_a_second_server_stands_in_for_the_first() -> None:
    socket = LivingSocket(methods=(Method.STUN,), servers=(SERVER, SECOND_SERVER))
    socket.run_for(10)
    socket.stopped |= {str(SERVER.ip), "203.0.113.11"}
    socket.run_for(120)
    assert socket.kinds == [ChangeKind.ACQUIRED]


def test_a_dead_server_takes_nothing_from_a_routers_mapping() -> None:
    socket = forwarding(LivingSocket(methods=ALL_METHODS))
    socket.begin()
    socket.run_for(10)
    socket.cut = True
    socket.run_for(100)
    assert socket.kinds == [ChangeKind.ACQUIRED]
    assert socket.reach() is Reach.DECLARED
    socket.cut = False
    socket.run_for(100)
    assert socket.reach() is Reach.ANYONE


def test_a_network_that_goes_and_comes_back() -> None:
    socket = LivingSocket()
    socket.run_for(10)
    socket.cut = True
    socket.tell(lambda: socket.machine.network_changed(None, "eth0 is down", now=socket.now))
    assert socket.changes[-1].reason == "eth0 is down"
    sent = socket.packets_sent
    socket.run_for(600)
    assert socket.packets_sent == sent
    socket.cut = False
    back_at = socket.now
    socket.tell(lambda: socket.machine.network_changed(LOCAL, "eth0 is up", now=socket.now))
    socket.run_for(30)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.LOST, ChangeKind.RESTORED]
    assert socket.when(ChangeKind.RESTORED) - back_at < 1


def test_another_address_of_the_machine_is_told() -> None:
    socket = LivingSocket()
    socket.run_for(10)
    socket.local = Endpoint.of("192.168.0.109", 5060)
    socket.nat.restart()
    socket.tell(lambda: socket.machine.network_changed(socket.local, "DHCP", now=socket.now))
    socket.run_for(5)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.CHANGED]
    assert socket.binding.local == socket.local


def test_after_a_sleep_everything_is_looked_at_again() -> None:
    socket = LivingSocket(lifetime_s=30)
    socket.run_for(10)
    socket.now += 3600  # nothing ran meanwhile
    socket.nat.restart("203.0.113.99")
    woken_at = socket.now
    socket.run_for(30)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.CHANGED]
    assert socket.when(ChangeKind.CHANGED) - woken_at < 2


def test_an_answer_that_waited_for_the_machine_to_wake_up_slows_nothing_down() -> None:
    socket = LivingSocket(methods=(Method.STATIC,), begin=False)
    socket.providers[Source.STATIC] = lambda: replace(ROUTER_CLAIM, method=Method.STATIC)
    socket.begin()
    socket.run_for(0.015)  # the request is at the server
    socket.now += 60
    woken_at = socket.now
    socket.run_for(60)
    told_at = [at for at, event in socket.events if isinstance(event, Failed | BindingChange)]
    assert min(told_at) < woken_at + 40


def test_servers_may_come_late() -> None:
    socket = LivingSocket(servers=None)
    socket.run_for(3)
    assert socket.machine.binding is None
    assert not socket.changes
    socket.tell(lambda: socket.machine.use_servers([SERVER], now=socket.now))
    socket.run_for(3)
    assert socket.kinds == [ChangeKind.ACQUIRED]


def test_what_is_the_programs_is_handed_on_untouched() -> None:
    socket = LivingSocket("full-cone", fresh_port=True)
    socket.run_for(3)
    datagrams = [
        b"",
        b"\r\n",
        b"INVITE sip:me SIP/2.0\r\n\r\n",
        b"\x80\x00" + bytes(10),
        bytes(20),
        b"\x00\x01",
    ]
    for data in datagrams:
        assert socket.arrives(STRANGER, socket.binding.public, data)
    assert socket.program == datagrams


# What is shown again, and what is no longer true


def test_a_port_that_is_forwarded_after_all_is_believed_then() -> None:
    socket = LivingSocket(methods=(Method.STATIC,), begin=False)
    setting = replace(ROUTER_CLAIM, method=Method.STATIC, public=MAPPED.with_port(6000))
    socket.providers[Source.STATIC] = lambda: setting
    socket.begin()
    socket.run_for(30)
    assert "nothing arrives there" in failure(socket).refusals["static"]
    socket.nat.forwards[6000] = LOCAL
    socket.tell(lambda: socket.machine.claim(setting, now=socket.now))
    socket.run_for(5)
    assert socket.reach() is Reach.ANYONE


def test_a_router_that_restarts_and_forgets_what_it_forwards_is_asked_again() -> None:
    """The servers see another port of the same address; the router says nothing."""
    socket = forwarding(LivingSocket("symmetric", methods=ALL_METHODS, begin=False))
    socket.begin()
    socket.run_for(100)
    assert socket.reach() is Reach.ANYONE
    socket.nat.restart()
    socket.nat.forwards.clear()
    socket.run_for(15 + 5)
    assert socket.arrives(STRANGER, socket.binding.public)
    assert socket.reach() is Reach.ANYONE
    assert socket.kinds == [ChangeKind.ACQUIRED]


def test_a_port_that_could_not_be_tried_is_tried_when_the_servers_are_back() -> None:
    socket = forwarding(LivingSocket("symmetric", methods=ALL_METHODS, begin=False))
    socket.begin()
    socket.run_for(0.065)
    socket.cut = True
    socket.run_for(60)
    assert socket.reach() is Reach.DECLARED
    socket.cut = False
    socket.run_for(60)
    assert socket.reach() is Reach.ANYONE


def test_a_stranger_who_came_in_by_the_routers_mapping_is_none_when_that_is_given_back() -> None:
    """STUN is preferred, and sees the port that the router has just mapped for nothing."""
    socket = LivingSocket(
        "port-restricted-cone",
        methods=(Method.STUN, Method.PCP),
        servers=(SERVER, SECOND_SERVER),
        begin=False,
    )
    socket.nat.forwards[5060] = LOCAL
    socket.provider_delay_s = 0.001
    socket.providers[Source.ROUTER] = lambda: ROUTER_CLAIM
    socket.begin()
    socket.run_for(1)
    assert told(socket.events, Release) == [Source.ROUTER]
    assert socket.binding.method is Method.STUN
    assert socket.reach() is Reach.HOSTS_SENT_TO
    socket.nat.forwards.clear()
    socket.run_for(60)
    assert socket.reach() is Reach.HOSTS_SENT_TO


def test_a_stranger_who_comes_in_without_the_routers_mapping_counts_again() -> None:
    socket = LivingSocket(
        "full-cone", methods=(Method.STUN, Method.PCP), servers=(SERVER, SECOND_SERVER), begin=False
    )
    socket.provider_delay_s = 0.001
    socket.providers[Source.ROUTER] = lambda: ROUTER_CLAIM
    socket.begin()
    socket.run_for(1)
    assert socket.reach() is Reach.HOSTS_SENT_TO
    socket.run_for(10)
    assert socket.reach() is Reach.ANYONE


def test_a_router_is_asked_again_however_often_the_servers_have_news() -> None:
    """The NAT forgets between keepalives, so that each of them is news."""
    socket = forwarding(
        LivingSocket("symmetric", methods=(Method.PCP, Method.STUN), lifetime_s=4, begin=False)
    )
    socket.begin()
    socket.run_for(10)
    grant = socket.providers[Source.ROUTER]
    socket.providers[Source.ROUTER] = lambda: NoRouterError("no router answered")
    lost = BindingError("the router has restarted")
    socket.nat.forwards.clear()
    socket.tell(lambda: socket.machine.refuse(Source.ROUTER, lost, now=socket.now))
    socket.run_for(300)
    assert socket.machine.binding is None
    socket.providers[Source.ROUTER] = grant
    socket.run_for(40)
    assert socket.kinds == [ChangeKind.ACQUIRED, ChangeKind.LOST, ChangeKind.RESTORED]


def test_servers_that_are_silent_and_providers_that_refuse_are_asked_at_the_same_time_and_not_twice() -> None:
    socket = forwarding(LivingSocket(methods=ALL_METHODS, begin=False))
    socket.begin()
    socket.run_for(10)
    socket.cut = True
    socket.providers[Source.ROUTER] = lambda: NoRouterError("no router answered")
    lost = BindingError("the router has restarted")
    socket.tell(lambda: socket.machine.refuse(Source.ROUTER, lost, now=socket.now))
    before, asked = socket.packets_sent, len(told(socket.events, Ask))
    socket.run_for(600)
    assert len(told(socket.events, Ask)) - asked < 600 / 30 + 10
    assert socket.packets_sent - before < 8 * (600 / 30 + 10)


def test_with_one_plain_server_nothing_is_waited_for() -> None:
    socket = LivingSocket(two_addresses=False)
    socket.run_for(5)
    assert socket.when(ChangeKind.ACQUIRED) < 1000 + 0.1


def test_what_is_just_given_back_proves_nothing_on_the_way_into_another_network_either() -> None:
    socket = LivingSocket(methods=(Method.STUN,), servers=(SERVER, SECOND_SERVER))
    socket.run_for(10)
    socket.nat.forwards[5060] = LOCAL
    socket.tell(lambda: socket.machine.claim(ROUTER_CLAIM, now=socket.now))
    socket.after(0.1, socket.nat.forwards.clear)
    socket.tell(lambda: socket.machine.network_changed(None, "eth0 is down", now=socket.now))
    socket.tell(lambda: socket.machine.network_changed(LOCAL, "eth0 is up", now=socket.now))
    socket.run_for(10)
    assert socket.reach() is Reach.HOSTS_SENT_TO


def test_a_router_that_maps_what_strangers_reach_already_is_believed_at_once() -> None:
    socket = forwarding(
        LivingSocket("full-cone", methods=ALL_METHODS, servers=(SERVER, SECOND_SERVER), begin=False)
    )
    socket.begin()
    socket.run_for(1)
    assert (socket.binding.method, socket.reach()) == (Method.PCP, Reach.ANYONE)
    assert socket.when(ChangeKind.ACQUIRED) < 1000 + 0.1


def test_where_there_is_neither_nat_nor_firewall_no_router_is_waited_for() -> None:
    socket = LivingSocket("open", methods=ALL_METHODS, servers=(SERVER, SECOND_SERVER))
    socket.run_for(1)
    assert (socket.binding.method, socket.reach()) == (Method.OPEN, Reach.ANYONE)
    assert socket.when(ChangeKind.ACQUIRED) < 1000 + 0.1


def test_a_network_change_has_silent_servers_asked_at_once() -> None:
    socket = LivingSocket()
    socket.run_for(10)
    socket.cut = True
    socket.run_for(300)
    assert socket.machine.binding is None
    socket.cut = False
    back_at = socket.now
    socket.tell(lambda: socket.machine.network_changed(LOCAL, "a route has come", now=socket.now))
    socket.run_for(60)
    assert socket.when(ChangeKind.RESTORED) - back_at < 1
