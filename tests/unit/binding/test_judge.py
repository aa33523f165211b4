"""What is left of a claim beside what STUN servers see, and what the socket has by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nattools.binding.judge import judge_claim, judge_socket
from nattools.binding.model import Claim, Method, PublicBinding, Reach, Reflection
from nattools.binding.observer import Inbound
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, SymmetricNatError
from nattools.stun.classifier import Mapping

LOCAL = Endpoint.of("192.168.0.108", 5060)
PUBLIC_LOCAL = Endpoint.of("8.8.4.4", 5060)
PUBLIC = Endpoint.of("203.0.113.1", 5060)
SERVER = Endpoint.of("203.0.113.10", 3478)
CLAIM = Claim(Method.UPNP, LOCAL, PUBLIC, "192.168.0.1 granted 203.0.113.1:5060 by UPnP", lease_s=3600)
SEEN = Reflection(LOCAL, PUBLIC, SERVER, Mapping.ENDPOINT_INDEPENDENT, evidence=("two servers see the same",))
BOTH = (Method.OPEN, Method.STUN)


def bound(verdict: PublicBinding | BindingError | None) -> PublicBinding:
    assert isinstance(verdict, PublicBinding), verdict
    return verdict


def refused(verdict: PublicBinding | BindingError | None) -> BindingError:
    assert isinstance(verdict, BindingError), verdict
    return verdict


def test_without_a_server_a_claim_is_somebodys_word() -> None:
    binding = bound(judge_claim(CLAIM, None, "no STUN server is given", None))
    assert binding.reachability.reach is Reach.DECLARED
    assert binding.reachability.evidence == (CLAIM.word, "no STUN server is given")
    assert (binding.public, binding.lease_s, binding.outbound_matches) == (PUBLIC, 3600, None)


def test_a_router_that_names_another_address_than_the_servers_see_is_behind_a_second_nat() -> None:
    seen = replace(SEEN, mapped=Endpoint.of("198.51.100.7", 5060))
    error = refused(judge_claim(CLAIM, seen, "", None))
    assert "another NAT" in str(error)
    assert "198.51.100.7" in str(error)


def test_a_setting_that_differs_from_what_the_servers_see_is_kept_and_said() -> None:
    seen = replace(SEEN, mapped=Endpoint.of("198.51.100.7", 5060))
    binding = bound(judge_claim(replace(CLAIM, method=Method.STATIC), seen, "", None))
    assert binding.reachability.reach is Reach.DECLARED
    assert "198.51.100.7" in binding.reachability.evidence[1]
    assert binding.outbound_matches is False


def test_a_server_that_can_send_from_elsewhere_must_try() -> None:
    assert judge_claim(CLAIM, replace(SEEN, can_test_inbound=True), "", None) is None


@pytest.mark.parametrize(
    ("arrived", "reach"), [(True, Reach.ANYONE), (None, Reach.DECLARED)], ids=["arrived", "not known"]
)
def test_what_the_server_sent_tells_who_can_reach(arrived: bool | None, reach: Reach) -> None:
    seen = replace(SEEN, can_test_inbound=True)
    binding = bound(judge_claim(CLAIM, seen, "", Inbound(PUBLIC, arrived, "so it was")))
    assert binding.reachability.reach is reach
    assert "so it was" in binding.reachability.evidence


def test_a_mapping_through_which_nothing_arrives_is_refused() -> None:
    seen = replace(SEEN, can_test_inbound=True)
    error = refused(judge_claim(CLAIM, seen, "", Inbound(PUBLIC, False, "12 probes")))
    assert "forward UDP port 5060" in str(error)


@pytest.mark.parametrize(
    ("mapped_port", "mapping", "matches"),
    [
        (5060, Mapping.ENDPOINT_INDEPENDENT, True),
        (5060, Mapping.NONE, True),
        (5060, Mapping.UNKNOWN, None),
        (5060, Mapping.ADDRESS_DEPENDENT, False),
        (61000, Mapping.ENDPOINT_INDEPENDENT, False),
    ],
)
def test_whether_packets_leave_from_the_mapped_port(
    mapped_port: int, mapping: Mapping, matches: bool | None
) -> None:
    seen = replace(SEEN, mapped=PUBLIC.with_port(mapped_port), mapping=mapping)
    assert bound(judge_claim(CLAIM, seen, "", None)).outbound_matches is matches


def test_a_stranger_who_came_in_counts_for_the_port_that_he_came_through() -> None:
    seen = replace(SEEN, reached_by_stranger=True)
    assert bound(judge_claim(CLAIM, seen, "", None)).reachability.reach is Reach.ANYONE
    other = replace(seen, mapped=PUBLIC.with_port(61000))
    assert bound(judge_claim(CLAIM, other, "", None)).reachability.reach is Reach.DECLARED


def test_a_tunnels_address_is_good_behind_the_tunnel_whatever_servers_see() -> None:
    claim = Claim(Method.VPN, LOCAL, Endpoint.of("10.8.0.2", 5060), "wg0 leads to 10.8.0.1", realm="wg0")
    for seen in (None, SEEN):
        binding = bound(judge_claim(claim, seen, "", None))
        assert (binding.realm, binding.reachability.reach) == ("wg0", Reach.HOSTS_SENT_TO)


@pytest.mark.parametrize(
    ("seen", "reach", "matches"),
    [
        (SEEN, Reach.HOSTS_SENT_TO, True),
        (replace(SEEN, reached_by_stranger=True), Reach.ANYONE, True),
        (replace(SEEN, mapping=Mapping.UNKNOWN), Reach.SERVER_ONLY, None),
    ],
    ids=["filtered", "full cone", "one server"],
)
def test_what_servers_see_is_claimed_as_far_as_it_was_shown(
    seen: Reflection, reach: Reach, matches: bool | None
) -> None:
    binding = bound(judge_socket(LOCAL, BOTH, seen, ""))
    assert (binding.method, binding.public, binding.reachability.reach) == (Method.STUN, PUBLIC, reach)
    assert binding.outbound_matches is matches


def test_a_symmetric_nat_is_refused_with_what_helps() -> None:
    error = judge_socket(LOCAL, BOTH, replace(SEEN, mapping=Mapping.ADDRESS_DEPENDENT), "")
    assert isinstance(error, SymmetricNatError)
    assert "session controller" in str(error)


def test_nothing_is_claimed_before_the_servers_have_shown_it() -> None:
    assert judge_socket(LOCAL, BOTH, None, "") is None
    assert judge_socket(LOCAL, BOTH, replace(SEEN, is_settled=False), "") is None


@pytest.mark.parametrize(
    ("local", "mapping", "reach"),
    [
        (LOCAL, Mapping.NONE, Reach.HOSTS_SENT_TO),
        (LOCAL, Mapping.UNKNOWN, Reach.SERVER_ONLY),
        (PUBLIC_LOCAL, Mapping.UNKNOWN, Reach.HOSTS_SENT_TO),
    ],
)
def test_without_a_nat_it_is_open_by_whatever_method(local: Endpoint, mapping: Mapping, reach: Reach) -> None:
    seen = replace(SEEN, local=local, mapped=local, mapping=mapping)
    binding = bound(judge_socket(local, [Method.STUN], seen, ""))
    assert (binding.method, binding.public, binding.reachability.reach) == (Method.OPEN, local, reach)


def test_a_public_address_says_so_without_a_server() -> None:
    binding = bound(judge_socket(PUBLIC_LOCAL, BOTH, None, "no STUN server is given"))
    assert (binding.method, binding.reachability.reach) == (Method.OPEN, Reach.DECLARED)
    assert "public" in binding.reachability.evidence[0]


def test_a_private_address_without_a_server_is_nothing() -> None:
    assert "no STUN" in str(refused(judge_socket(LOCAL, BOTH, None, "no STUN server is given")))
    assert "not a public" in str(refused(judge_socket(LOCAL, [Method.OPEN], None, "no STUN server")))


def test_open_alone_is_refused_behind_a_nat() -> None:
    assert "There is a NAT" in str(refused(judge_socket(LOCAL, [Method.OPEN], SEEN, "")))
