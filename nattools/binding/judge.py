"""What a public endpoint is worth: somebody's claim beside what STUN servers see of the socket."""

from __future__ import annotations

from collections.abc import Collection

from nattools.binding.model import Claim, Method, PublicBinding, Reach, Reachability, Reflection
from nattools.binding.observer import Inbound
from nattools.endpoint import AddressClass, Endpoint
from nattools.errors import BindingError, SymmetricNatError
from nattools.stun.classifier import Mapping

WHAT_HELPS = (
    ". What helps: UPnP or PCP turned on in the router, the port forwarded there by hand (static), or a "
    "relay or session controller on a public host (natgate)"
)
"""The end of what is said where no public endpoint can be had."""


def judge_claim(
    claim: Claim, reflection: Reflection | None, silence: str, inbound: Inbound | None
) -> PublicBinding | BindingError | None:
    """What is left of a claim; None while the server must first try to send to it (`Observer.try_inbound`).

    Without a `reflection`, `silence` says why there is none. The interval of keepalives is not filled in.
    """
    if claim.realm:
        seen = f"hosts behind {claim.realm} that were sent to may answer; whether others may was not tested"
        return _binding(claim, Reach.HOSTS_SENT_TO, True, seen)
    if reflection is None:
        return _binding(claim, Reach.DECLARED, None, silence)
    sees = f"{reflection.server} sees this socket at {reflection.mapped}"
    if reflection.mapped.ip != claim.public.ip:
        if claim.method is Method.STATIC:
            return _binding(claim, Reach.DECLARED, False, f"but {sees}: the setting may be out of date")
        return BindingError(
            f"{claim.word}, but {sees}: there is another NAT in front of the router, or it does not know its "
            "own address: forward the port in that NAT as well"
        )
    is_mapped_there = reflection.mapped == claim.public
    matches = _leaves_from(reflection) if is_mapped_there else False
    if not reflection.can_test_inbound:
        if is_mapped_there and reflection.reached_by_stranger:
            return _binding(claim, Reach.ANYONE, matches, sees, *reflection.evidence)
        return _binding(claim, Reach.DECLARED, matches, sees, "it cannot send from another address")
    if inbound is None:
        return None
    if inbound.arrived is False:
        return BindingError(
            f"{claim.word}, but nothing arrives there ({inbound.reason}): forward UDP port "
            f"{claim.public.port} to {claim.local} in the router, and let it through the firewall"
        )
    reach = Reach.ANYONE if inbound.arrived else Reach.DECLARED
    return _binding(claim, reach, matches, sees, inbound.reason)


def judge_socket(
    local: Endpoint, methods: Collection[Method], reflection: Reflection | None, silence: str
) -> PublicBinding | BindingError | None:
    """What the socket has without anybody's help; None until the servers have shown it.

    `silence` says why no server shows anything, empty while they are still asked.
    """
    if reflection is None:
        if not silence:
            return None
        if Method.OPEN in methods and local.address_class is AddressClass.PUBLIC:
            evidence = (f"{local.ip} is a public address", silence)
            return PublicBinding(local, local, Method.OPEN, Reachability(Reach.DECLARED, evidence))
        if Method.STUN not in methods:
            return BindingError(f"{local.ip} is not a public address, and {silence}")
        return BindingError(silence)
    is_open = reflection.mapped == reflection.local
    if not is_open and Method.STUN not in methods:
        return BindingError(
            f"{local.ip} is not what others see: {reflection.server} sees {reflection.mapped}. There is a "
            "NAT: let STUN or the router be asked"
        )
    if not reflection.is_settled:
        return None
    if reflection.mapping is Mapping.ADDRESS_DEPENDENT:
        return SymmetricNatError(
            "the NAT is symmetric, what one server sees is wrong for everybody else "
            f"({'; '.join(reflection.evidence)}){WHAT_HELPS}"
        )
    reach = Reach.HOSTS_SENT_TO
    if reflection.reached_by_stranger:
        reach = Reach.ANYONE
    elif reflection.mapping is Mapping.UNKNOWN and not (
        is_open and local.address_class is AddressClass.PUBLIC
    ):
        reach = Reach.SERVER_ONLY
    return PublicBinding(
        reflection.local,
        reflection.mapped,
        Method.OPEN if is_open else Method.STUN,
        Reachability(reach, reflection.evidence),
        outbound_matches=_leaves_from(reflection),
    )


def _leaves_from(reflection: Reflection) -> bool | None:
    """Whether everything leaves from the endpoint that the server sees; what goes to the server does."""
    if reflection.mapping is Mapping.UNKNOWN:
        return None
    return reflection.mapping is not Mapping.ADDRESS_DEPENDENT


def _binding(claim: Claim, reach: Reach, matches: bool | None, *seen: str) -> PublicBinding:
    return PublicBinding(
        claim.local,
        claim.public,
        claim.method,
        Reachability(reach, (claim.word, *filter(None, seen))),
        lease_s=claim.lease_s,
        outbound_matches=matches,
        realm=claim.realm,
    )
