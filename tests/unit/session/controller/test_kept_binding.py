"""A binding is held, followed and let go, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nattools.binding.client import LiveBinding
from nattools.binding.keeper import open_binding
from nattools.binding.model import BindingChange, ChangeKind, PublicBinding
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, LocalAddressError, TransportError
from nattools.session.controller.kept_binding import KeptBinding
from tests.unit.binding.on_loopback import eventually, run
from tests.unit.session.controller.outsides import FORWARDED, NEW, PUBLIC, move


def forget(_kept: KeptBinding, _former: PublicBinding) -> None:
    """Nobody wants to know."""


def test_it_follows_changes_and_keeps_the_last_endpoint_while_it_is_lost() -> None:
    async def scenario() -> None:
        told: list[tuple[KeptBinding, PublicBinding]] = []
        kept = KeptBinding(
            lambda: open_binding("127.0.0.1:0", settings=FORWARDED),
            on_change=lambda kept, former: told.append((kept, former)),
        )
        first = await kept.acquired()
        assert first.public == Endpoint.of(PUBLIC, first.local.port)
        assert kept.live is not None
        kept.live._report(BindingChange(ChangeKind.LOST, None, first, "no network"))
        move(kept)
        await eventually(lambda: bool(told))
        assert told == [(kept, first)]
        assert kept.binding is not None
        assert kept.binding.public == Endpoint.of(NEW, first.local.port)
        await kept.close()
        await kept.close()

    run(scenario())


def test_what_cannot_be_had_is_told_to_who_waits() -> None:
    async def scenario() -> None:
        kept = KeptBinding(lambda: open_binding("198.51.100.9:0", settings=FORWARDED), on_change=forget)
        with pytest.raises(LocalAddressError):
            await kept.acquired()
        await kept.close()

    run(scenario())


def test_what_ends_later_ends_the_holding_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def breaking() -> AsyncIterator[LiveBinding]:
        async with open_binding("127.0.0.1:0", settings=FORWARDED) as live:
            yield live
        raise TransportError("the socket has gone")

    async def scenario() -> None:
        kept = KeptBinding(breaking, on_change=forget)
        await kept.acquired()
        await kept.close()
        assert "the socket has gone" in caplog.text

    run(scenario())


def test_let_go_while_it_is_looked_for_it_is_none() -> None:
    async def scenario() -> None:
        async def wait() -> None:
            with pytest.raises(BindingError, match="let go"):
                await kept.acquired()

        @asynccontextmanager
        async def never() -> AsyncIterator[LiveBinding]:
            yield await asyncio.get_running_loop().create_future()

        kept = KeptBinding(never, on_change=forget)
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        await kept.close()
        await waiting
        await kept.close()

    run(scenario())
