"""What one provider is asked to do for one socket: one thing after the other, and the last word counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from nattools.binding.model import Claim, Provider
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, NatToolsError

_LOG = logging.getLogger(__name__)

_RELEASE_S = 3.0
"""So long a provider may take to give something back; a router that is gone does not answer."""


class Errand:
    """Asks for a public endpoint of `local` when told to, renews what is held, and gives it back.

    `find_provider` is called for each. A provider that breaks is one that refuses: `on_refusal` gets a
    `BindingError`, and the log what happened.
    """

    def __init__(
        self,
        find_provider: Callable[[], Awaitable[Provider]],
        local: Endpoint,
        *,
        on_claim: Callable[[Claim], None],
        on_refusal: Callable[[NatToolsError], None],
    ) -> None:
        self._find_provider = find_provider
        self._local = local
        self._on_claim = on_claim
        self._on_refusal = on_refusal
        self._held: Claim | None = None
        self._holder: Provider | None = None
        self._is_good = False
        self._is_wanted = False
        self._is_unwanted = False
        self._asking: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None

    @property
    def is_holding(self) -> bool:
        """Whether there is something to renew."""
        return self._held is not None

    def ask(self) -> None:
        """Acquire, or renew what is held. Asked while it is asking, it will do so once more."""
        self._is_wanted = True
        self._work()

    def release(self) -> None:
        """Stop asking, and give back what is held."""
        self._is_wanted = False
        if self._asking is not None:
            self._asking.cancel()
        if self._asking is not None or self._held is not None:
            self._is_unwanted = True
            self._work()

    def told(self, news: Claim | NatToolsError) -> None:
        """The provider has something to say that nobody asked for."""
        if self._held is None:
            return  # it is given back already
        self._is_good = isinstance(news, Claim)
        if isinstance(news, Claim):
            self._held = news
            self._on_claim(news)
        else:
            self._on_refusal(news)

    async def end(self) -> None:
        """Give everything back, and wait until that is done."""
        self.release()
        while self._worker is not None:
            await asyncio.wait([self._worker])

    def _work(self) -> None:
        if self._worker is None:
            self._worker = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._is_wanted or self._is_unwanted:
                if self._is_unwanted:
                    self._is_unwanted = False
                    await self._give_back()
                    continue
                self._is_wanted = False
                self._asking = asyncio.create_task(self._ask())
                await asyncio.wait([self._asking])
                self._asking = None
        finally:
            self._worker = None

    async def _ask(self) -> None:
        try:
            provider = await self._find_provider()
            if self._held is not None and self._is_good:
                claim = await provider.renew(self._held)
            else:
                claim = await provider.acquire(self._local)
        except NatToolsError as error:
            self._is_good = False
            if not self._is_wanted:  # asked anew since, perhaps in another network: that answer counts
                self._on_refusal(error)
        except Exception as error:  # noqa: BLE001  a bug in one way must not take the others along
            _LOG.error("a provider for %s has a bug: %r", self._local, error, exc_info=error)
            self._is_good = False
            self._on_refusal(BindingError(f"this is a bug in nattools: {error!r}"))
        else:
            self._held, self._holder, self._is_good = claim, provider, True
            self._on_claim(claim)

    async def _give_back(self) -> None:
        claim, holder = self._held, self._holder
        if claim is None or holder is None:
            return
        self._held = self._holder = None
        try:
            async with asyncio.timeout(_RELEASE_S):
                await holder.release(claim)
        except (NatToolsError, TimeoutError) as error:
            _LOG.warning(
                "%s (%s) is not given back: %s", claim.public, claim.method.value, error or "no answer"
            )
        except Exception as error:  # noqa: BLE001  nor must a bug in giving back
            _LOG.error("a provider of %s has a bug: %r", claim.public, error, exc_info=error)
