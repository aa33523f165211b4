"""Several natgates with one store of registrations: which of them a phone is at, and how the others reach it.

A NAT lets only that address in to which the phone has registered. So each binding is kept with a URI of the
natgate that has the phone's flow, with a `Ticket` which nobody knows but who reads the store; another one
sends requests there, and they need no password.
"""

from __future__ import annotations

from nattools.errors import DecodeError
from nattools.machine import Entropy
from nattools.session.flows import Flow, Flows, endpoint_of, transport_of
from nattools.session.forking import Target
from nattools.session.location import ContactBinding
from nattools.session.upstream import Ticket
from nattools.sip.uri import SipUri

_ORDER = ("UDP", "TCP", "TLS")  # a peer needs no certificate for the first two


def home_uri(address_of_record: str, socket: str, flows: Flows, *, entropy: Entropy) -> bytes:
    """A URI, never used before, that leads here and then to who has registered by `socket`."""
    heard = flows.listener(socket)
    if heard is None:
        return b""
    here = [it for it in flows.listeners if it.local.ip == heard.local.ip]
    best = min(here, key=lambda it: _ORDER.index(it.transport))
    return Ticket.new(address_of_record, entropy).uri(best.public, best.transport)


def is_elsewhere(binding: ContactBinding, flows: Flows) -> bool:
    """Whether it was made at another natgate than this one."""
    uri = _home(binding)
    return uri is not None and not flows.is_own(uri.host, uri.port)


def target_elsewhere(binding: ContactBinding, flows: Flows) -> Target | None:
    """How to have the other natgate send a request to the phone of a binding; None where it cannot be had."""
    uri = _home(binding)
    endpoint = None if uri is None else endpoint_of(uri)
    flow: Flow | None = None
    if uri is not None and endpoint is not None:
        flow = flows.towards(endpoint, transport_of(uri))
    return None if flow is None else Target(binding.outside, flow, q=binding.q)


def _home(binding: ContactBinding) -> SipUri | None:
    try:
        return SipUri.parse(binding.outside) if binding.outside else None
    except DecodeError:
        return None
