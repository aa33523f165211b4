"""The library itself as a second client, against a fake router on loopback.

It never searches here, since it can do so by multicast only: it is given the router's URL.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import pytest

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import DisconnectedError, NatToolsError, NoResponseError, NoRouterError
from nattools.upnp import miniupnpc as miniupnpc_door
from nattools.upnp.faults import (
    ActionNotAuthorizedError,
    ConflictInMappingEntryError,
    NoSuchEntryInArrayError,
)
from nattools.upnp.miniupnpc import Binding, LibraryConnection
from tests.fakes.igd import FakeIgd
from tests.fakes.igd_descriptions import Behaviour, Conduct, Entry
from tests.fakes.igd_hostile import behaviour, hang_up, never_answer, respond
from tests.unit.upnp.library import Install, install, opened, run

__all__ = ["install"]

T = TypeVar("T")

UDP = TransportProtocol.UDP
PAGE = respond("404 Not Found", "<html>")


class Real:
    """The real binding, which is given the router instead of searching for it."""

    def __init__(self, url: str) -> None:
        self._binding = pytest.importorskip("miniupnpc", reason="the library miniupnpc is not here").UPnP()
        self._url = url

    def discover(self) -> int:
        return 1

    def selectigd(self) -> str:
        return cast(str, self._binding.selectigd(self._url))

    def __getattr__(self, name: str) -> object:
        return getattr(self._binding, name)


def asked(
    install: Install,
    conduct: Behaviour,
    work: Callable[[LibraryConnection, FakeIgd], Awaitable[T]],
) -> T:
    async def main() -> T:
        async with FakeIgd(conduct) as router:
            install(cast(Binding, Real(router.url)))
            async with opened() as connection:
                return await work(connection, router)

    return run(main())


@pytest.mark.parametrize("version", ["igd1", "igd2"])
def test_a_mapping_is_made_listed_and_removed(install: Install, version: str) -> None:
    async def work(connection: LibraryConnection, router: FakeIgd) -> None:
        assert connection.is_online
        internal = Endpoint(connection.local, 5060)
        done = await connection.acquire(
            internal, UDP, external_port=None, lease_s=600, description="a <phone> & more"
        )
        assert (done.external_port, done.lease_s, done.proven) == (5060, 600, True)
        [entry] = await connection.entries()
        assert (entry.external_port, entry.internal, entry.lease_s) == (5060, internal, 600)
        assert entry.description == "a ?phone? ? more"
        assert await connection.release(internal, UDP, 5060)
        assert await connection.entries() == []
        assert not await connection.release(internal, UDP, 5060)

    asked(install, behaviour(version), work)


def test_a_taken_port_is_passed_by(install: Install) -> None:
    async def work(connection: LibraryConnection, router: FakeIgd) -> None:
        internal = Endpoint(connection.local, 5060)
        done = await connection.acquire(internal, UDP, external_port=None, lease_s=600, description="phone")
        assert done.external_port >= 1024
        assert done.external_port != 5060
        assert done.proven
        assert not any(action == "AddAnyPortMapping" for action, _ in router.calls)
        with pytest.raises(ConflictInMappingEntryError, match=r"leads to 192\.168\.0\.77:5060 theirs"):
            await connection.acquire(internal, UDP, external_port=5060, lease_s=600, description="phone")
        assert not await connection.release(internal, UDP, 5060)

    asked(install, Behaviour(entries=(Entry(5060, "UDP", "192.168.0.77", 5060, 600, "theirs"),)), work)


def test_a_router_that_knows_no_leases_gets_none(install: Install) -> None:
    async def work(connection: LibraryConnection, router: FakeIgd) -> None:
        done = await connection.acquire(
            Endpoint(connection.local, 5060), UDP, external_port=None, lease_s=600, description=""
        )
        assert (done.lease_s, done.permanent_only) == (None, True)

    asked(install, behaviour("permanent-only"), work)


def test_a_refusal_has_its_code(install: Install) -> None:
    async def work(connection: LibraryConnection, router: FakeIgd) -> None:
        with pytest.raises(ActionNotAuthorizedError) as caught:
            await connection.acquire(
                Endpoint(connection.local, 5060), UDP, external_port=5060, lease_s=600, description=""
            )
        assert caught.value.code == 606

    asked(install, behaviour("not-permitted"), work)


@pytest.mark.parametrize(
    ("conduct", "error"), [(hang_up(), DisconnectedError), (PAGE, NoSuchEntryInArrayError)]
)
def test_success_without_a_mapping_is_not_believed(
    install: Install, conduct: Conduct, error: type[NatToolsError]
) -> None:
    """To the library, any page is a success."""

    async def work(connection: LibraryConnection, router: FakeIgd) -> None:
        with pytest.raises(error):
            await connection.acquire(
                Endpoint(connection.local, 5060), UDP, external_port=5060, lease_s=600, description=""
            )

    asked(install, Behaviour(conduct={"AddPortMapping": conduct}), work)


def test_a_page_is_no_router(install: Install) -> None:
    with pytest.raises(NoRouterError):
        asked(install, Behaviour(conduct={"description": PAGE, "control": PAGE}), _fail)


def test_a_router_that_does_not_answer_is_left(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniupnpc_door, "REQUEST_TIMEOUT_S", 0.2)
    with pytest.raises(NoResponseError, match=r"not done after 0\.2 s"):
        asked(install, Behaviour(conduct={"GetStatusInfo": never_answer()}), _fail)


async def _fail(connection: LibraryConnection, router: FakeIgd) -> None:
    raise AssertionError(f"{connection} was taken for a router")
