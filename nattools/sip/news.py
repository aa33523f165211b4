"""What happened to a phone's SIP, for people, and whether it is trouble."""

from __future__ import annotations

from nattools.sip.learning import AlgSuspected, Learned
from nattools.sip.renewal import CallMoved, NeedsPhone, NotRenewed, Registered, RenewalEvent
from nattools.sip.rewriter import MediaUnbound, RewriterEvent, TooLarge, Unedited

_TROUBLES = (AlgSuspected, MediaUnbound, NeedsPhone, NotRenewed)


def is_trouble(event: RewriterEvent | RenewalEvent) -> bool:
    """Whether something will not work."""
    return isinstance(event, _TROUBLES)


def in_words(event: RewriterEvent | RenewalEvent) -> str:
    """The event in a sentence, with what can be done about it."""
    match event:
        case Learned(endpoint, previous, server):
            return f"{server or 'the server'} sees the phone at {endpoint}, not at {previous}: it is told so"
        case AlgSuspected(seen, _, server):
            return (
                f"{server} says that requests come from {seen}, an inside address, as where a SIP ALG "
                "rewrites them: switch that off in the router, or use another port than 5060"
            )
        case MediaUnbound(ports):
            local = ", ".join(str(port.local) for port in ports)
            return f"media will not arrive at {local}: open that socket by the same SipSockets"
        case Unedited(reason):
            return reason
        case TooLarge(size):
            return f"a message of {size} bytes may be lost on its way over UDP: offer fewer codecs"
        case Registered(address_of_record, server):
            return f"{address_of_record} is registered at {server} with the new endpoint"
        case CallMoved(call_id, has_peer_moved):
            other = (
                "; the other side has moved as well, which the phone does not know" if has_peer_moved else ""
            )
            return f"the call {call_id.decode(errors='replace')} goes on at the new endpoint{other}"
        case NeedsPhone(method, _, server, reason):
            return f"{server} is not told of the new endpoint: {method}: {reason}. Set credentials"
        case NotRenewed(method, _, server, reason, _):
            return f"{server} is not told of the new endpoint: {method}: {reason}"
