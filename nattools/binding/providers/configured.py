"""Which methods for a public endpoint somebody's settings allow, and the providers that need nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from nattools.binding.model import Method, Provider, Source
from nattools.binding.providers.static import StaticProvider
from nattools.binding.providers.vpn import VpnProvider
from nattools.binding.settings import Settings
from nattools.errors import BindingError


def usable_methods(settings: Settings) -> tuple[Method, ...]:
    """The methods that have what they need. Raises `BindingError` where none does."""
    missing = {}
    if settings.static_host is None:
        missing[Method.STATIC] = "set static_host"
    if settings.vpn_interface is None and settings.vpn_peer is None:
        missing[Method.VPN] = "set vpn_interface or vpn_peer"
    usable = tuple(method for method in settings.methods if method not in missing)
    if not usable:
        refusals = {method.value: missing[method] for method in settings.methods}
        listed = "; ".join(f"{name}: {what}" for name, what in refusals.items())
        raise BindingError(f"no method for a public endpoint has what it needs. {listed}", refusals=refusals)
    return usable


def configured(settings: Settings, methods: Iterable[Method]) -> Iterable[tuple[Source, Provider]]:
    """The providers of those of `methods` that are all in the settings, by what they are asked for as."""
    if Method.STATIC in methods and settings.static_host is not None:
        yield Source.STATIC, StaticProvider(settings.static_host, settings.static_ports)
    if Method.VPN in methods:
        yield Source.VPN, VpnProvider(settings.vpn_interface, settings.vpn_peer)
