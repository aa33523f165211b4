"""Every code with which a router can refuse, and what comes of it to the caller: class, code and advice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingProtocol, MappingRequest, PortMapping
from nattools.mapping.registry import Registry
from nattools.upnp.client import discover
from nattools.upnp.faults import CONNECTION_FAULTS, FIREWALL_FAULTS, RefusedError, fault_name
from nattools.upnp.igd import AddPinhole
from tests.fakes.igd import FakeIgd
from tests.fakes.igd_descriptions import ROOT1, Behaviour, Refusal
from tests.unit.fakes import on_a_loop

PATIENCE_S = 10.0
PORT = 5060
ADDING = ("AddPortMapping", "AddAnyPortMapping")

UNKNOWN_CODES = (0, 499, 700, 717, 799, 899)
CODES: dict[int, type[RefusedError]] = {**CONNECTION_FAULTS, **dict.fromkeys(UNKNOWN_CODES, RefusedError)}
OF_THE_LEASE = {402, 725}
"""After which the other lease is asked for."""
OF_THE_PORT = {501, 600, 601, 714, 718, 729, *UNKNOWN_CODES}
"""After which other ports are asked for, where any will do."""
OF_THE_HOST = {403, 606}
"""After which one other port is."""
MOST_PORTS = 5


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one router, so nobody need wait for a better one once it has answered."""
    assert discover.__kwdefaults__ is not None
    monkeypatch.setitem(discover.__kwdefaults__, "grace_s", 0.005)


@asynccontextmanager
async def client_of(router: FakeIgd, state: Path) -> AsyncIterator[MappingClient]:
    async with (
        asyncio.timeout(4 * PATIENCE_S),
        MappingClient.open(
            protocols=[MappingProtocol.UPNP],
            gateway=ip_address(router.address),
            state_directory=state,
            timeout_s=PATIENCE_S,
        ) as client,
    ):
        yield client


async def mapped(router: FakeIgd, state: Path, external_port: int | None = None) -> PortMapping:
    async with client_of(router, state) as client:
        return await client.acquire(
            MappingRequest(Endpoint(IPv4Address(0), PORT), external_port=external_port)
        )


def asked(router: FakeIgd) -> list[tuple[int, bool]]:
    """The external ports that were asked for, and whether with a lease."""
    return [
        (int(arguments["NewExternalPort"]), arguments["NewLeaseDuration"] != "0")
        for action, arguments in router.calls
        if action in ADDING
    ]


def refusing(code: int, times: int | None = None) -> Behaviour:
    return Behaviour(fault_on=dict.fromkeys(ADDING, Refusal(code, times)))


@pytest.mark.parametrize("code", CODES)
@on_a_loop
async def test_a_refusal_of_the_one_port_that_will_do_comes_to_the_caller(code: int, tmp_path: Path) -> None:
    async with FakeIgd(refusing(code)) as router:
        with pytest.raises(RefusedError) as caught:
            await mapped(router, tmp_path, PORT)
        tried = [(PORT, True), (PORT, False)] if code in OF_THE_LEASE else [(PORT, True)]
        assert asked(router) == tried
        assert router.table.entries == []
    error = caught.value
    assert (type(error), error.code) == (CODES[code], code)
    text = str(error)
    assert text.startswith(f"nattools Fake IGD 1 at {router.address}: AddPortMapping was refused: ")
    assert CODES[code].advice in text
    if code not in UNKNOWN_CODES:
        assert f": {code} {fault_name(CODES[code])} (Refused {code}): " in text
    assert Registry(tmp_path).records() == []  # nothing is left to be tidied


@pytest.mark.parametrize("code", CODES)
@on_a_loop
async def test_a_refusal_of_every_port_comes_to_the_caller_after_what_else_may_help(
    code: int, tmp_path: Path
) -> None:
    async with FakeIgd(refusing(code)) as router:
        with pytest.raises(RefusedError) as caught:
            await mapped(router, tmp_path)
        tried = asked(router)
    assert (type(caught.value), caught.value.code) == (CODES[code], code)
    number = MOST_PORTS if code in OF_THE_PORT else 2 if code in OF_THE_HOST | OF_THE_LEASE else 1
    assert len(tried) == number
    ports = [port for port, _ in tried]
    assert ports[0] == PORT
    assert len(set(ports)) == (1 if code in OF_THE_LEASE else number)
    assert all(port >= 1024 for port in ports)
    if code == 718:  # and no mapping is shown that could be the reason
        assert "check that this is this machine's address" in str(caught.value)
    else:
        assert CODES[code].advice in str(caught.value)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("code", sorted(OF_THE_PORT | OF_THE_HOST))
@on_a_loop
async def test_a_refusal_of_one_port_is_helped_by_another(code: int, version: int, tmp_path: Path) -> None:
    once = Behaviour(fault_on={"AddPortMapping": Refusal(code, times=1)})
    if version == 1:
        once = Behaviour(roots=(ROOT1,), fault_on=once.fault_on)
    async with FakeIgd(once) as router:
        mapping = await mapped(router, tmp_path)
        assert [port for port, _ in asked(router)] == [PORT, mapping.external_port]
    assert mapping.external_port != PORT
    assert mapping.proven


@pytest.mark.parametrize("code", sorted(OF_THE_LEASE))
@on_a_loop
async def test_a_refusal_of_a_lease_is_helped_by_none(code: int, tmp_path: Path) -> None:
    async with FakeIgd(Behaviour(roots=(ROOT1,), lease_code=code)) as router:
        mapping = await mapped(router, tmp_path)
        assert asked(router) == [(PORT, True), (PORT, False)]
    assert (mapping.external_port, mapping.lease_s) == (PORT, None)


@pytest.mark.parametrize("code", FIREWALL_FAULTS)
@on_a_loop
async def test_a_refusal_of_a_pinhole_comes_to_the_caller(code: int) -> None:
    """Codes from 701 to 709 mean other things there than for port mappings."""
    async with FakeIgd(Behaviour(fault_on={"AddPinhole": code})) as router:
        [igd] = await discover(gateway=ip_address(router.address), timeout_s=PATIENCE_S)
        with pytest.raises(RefusedError) as caught:
            await igd.call(AddPinhole(IPv6Address("2001:db8::1"), PORT, TransportProtocol.UDP, 600))
    assert (type(caught.value), caught.value.code) == (FIREWALL_FAULTS[code], code)
    assert f": {code} {fault_name(FIREWALL_FAULTS[code])} (Refused {code}): " in str(caught.value)
    assert str(caught.value).endswith(FIREWALL_FAULTS[code].advice)


@pytest.mark.parametrize("code", CONNECTION_FAULTS)
@on_a_loop
async def test_a_router_that_refuses_to_say_how_it_is_is_found(code: int) -> None:
    refusing_to_say = Behaviour(fault_on=dict.fromkeys(("GetStatusInfo", "GetExternalIPAddress"), code))
    async with FakeIgd(refusing_to_say) as router:
        [igd] = await discover(gateway=ip_address(router.address), timeout_s=PATIENCE_S)
    assert (igd.status, igd.external_address) == (None, None)


@pytest.mark.parametrize("code", sorted(CONNECTION_FAULTS.keys() - {714}))
@on_a_loop
async def test_a_mapping_that_a_router_refuses_to_show_is_not_proven(code: int, tmp_path: Path) -> None:
    async with FakeIgd(Behaviour(fault_on={"GetSpecificPortMappingEntry": code})) as router:
        mapping = await mapped(router, tmp_path)
        assert len(asked(router)) == 1
    assert (mapping.external_port, mapping.proven) == (PORT, False)
