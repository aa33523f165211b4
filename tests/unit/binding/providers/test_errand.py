"""What is asked of one provider for one socket: in order, once at a time, and given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from nattools.binding.model import Claim, Method, Source
from nattools.binding.providers.errand import Errand
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, MappingError, NatToolsError

LOCAL = Endpoint.parse("0.0.0.0:5060")
CLAIM = Claim(
    Method.UPNP, Endpoint.parse("192.168.0.108:5060"), Endpoint.parse("140.113.131.89:5060"), "it says so"
)
TIME_LIMIT_S = 10


class FakeProvider:
    """Answers as it is told; `gate` holds it up."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answer: Claim | Exception = CLAIM
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def source(self) -> Source:
        return Source.ROUTER

    async def acquire(self, local: Endpoint) -> Claim:
        return await self._answer(f"acquire {local}")

    async def renew(self, claim: Claim) -> Claim:
        return await self._answer(f"renew {claim.public}")

    async def release(self, claim: Claim) -> None:
        await self._answer(f"release {claim.public}")

    async def _answer(self, call: str) -> Claim:
        self.calls.append(call)
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


News = list[Claim | NatToolsError]


def running(scenario: Callable[[Errand, FakeProvider, News], Awaitable[None]]) -> None:
    """Run it, end the errand, and see that no task is left."""

    async def work() -> None:
        provider, news = FakeProvider(), News()

        async def find() -> FakeProvider:
            return provider

        errand = Errand(find, LOCAL, on_claim=news.append, on_refusal=news.append)
        async with asyncio.timeout(TIME_LIMIT_S):
            await scenario(errand, provider, news)
            provider.gate.set()
            await errand.end()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  the fakes have no events
        await asyncio.sleep(0)


def test_what_was_acquired_is_renewed_and_given_back() -> None:
    seen: list[str] = []

    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        for asked in (1, 2):
            errand.ask()
            await until(lambda asked=asked: len(news) == asked)  # type: ignore[misc]  # mypy knows no defaults of lambdas
            assert errand.is_holding
        await errand.end()
        assert not errand.is_holding
        seen.extend(provider.calls)

    running(scenario)
    assert seen == ["acquire 0.0.0.0:5060", "renew 140.113.131.89:5060", "release 140.113.131.89:5060"]


def test_asked_twice_before_it_begins_it_asks_once() -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        errand.ask()
        errand.ask()
        await until(lambda: bool(news))
        await asyncio.sleep(0)
        assert len(provider.calls) == 1

    running(scenario)


def test_asked_while_it_is_asking_it_asks_once_more() -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        provider.gate.clear()
        errand.ask()
        await until(lambda: len(provider.calls) == 1)
        errand.ask()
        provider.gate.set()
        await until(lambda: len(news) == 2)
        assert provider.calls == ["acquire 0.0.0.0:5060", "renew 140.113.131.89:5060"]

    running(scenario)


def test_refused_while_it_is_asked_once_more_only_the_last_answer_counts() -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        provider.gate.clear()
        provider.answer = MappingError("it is the router of another network")
        errand.ask()
        await until(lambda: len(provider.calls) == 1)
        errand.ask()
        provider.gate.set()
        await until(lambda: len(provider.calls) == 2 and bool(news))
        for _ in range(9):
            await asyncio.sleep(0)
        assert len(news) == 1

    running(scenario)


def test_released_while_it_is_asking_nothing_is_said_and_nothing_given_back() -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        provider.gate.clear()
        errand.ask()
        await until(lambda: bool(provider.calls))
        await errand.end()
        assert (news, provider.calls) == ([], ["acquire 0.0.0.0:5060"])

    running(scenario)


def test_released_and_asked_again_it_is_given_back_first() -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        errand.ask()
        await until(lambda: len(news) == 1)
        errand.release()
        errand.ask()
        await until(lambda: len(news) == 2)
        assert [call.split()[0] for call in provider.calls] == ["acquire", "release", "acquire"]

    running(scenario)


def test_after_a_refusal_it_is_acquired_anew_and_still_given_back() -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        errand.ask()
        await until(lambda: len(news) == 1)
        provider.answer = MappingError("the router is gone")
        errand.ask()
        await until(lambda: len(news) == 2)
        provider.answer = CLAIM
        errand.ask()
        await until(lambda: len(news) == 3)
        assert [call.split()[0] for call in provider.calls] == ["acquire", "renew", "acquire"]
        assert [str(said) for said in news[1:2]] == ["the router is gone"]
        await errand.end()
        assert provider.calls[-1] == "release 140.113.131.89:5060"

    running(scenario)


def test_a_provider_that_breaks_is_one_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        provider.answer = ZeroDivisionError("oh")
        errand.ask()
        await until(lambda: bool(news))
        (refusal,) = news
        assert isinstance(refusal, BindingError)
        assert "ZeroDivisionError" in str(refusal)
        provider.answer = CLAIM
        errand.ask()
        await until(lambda: len(news) == 2)

    running(scenario)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize("error", [MappingError("it does not answer"), ZeroDivisionError("oh")])
def test_what_cannot_be_given_back_is_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        errand.ask()
        await until(lambda: bool(news))
        provider.answer = error
        await errand.end()
        assert not errand.is_holding

    running(scenario)
    assert any("140.113.131.89:5060" in record.getMessage() for record in caplog.records)


def test_news_is_passed_on_while_something_is_held() -> None:
    elsewhere = replace(CLAIM, public=Endpoint.parse("140.113.131.90:5060"))
    lost = MappingError("the router forgot it")

    async def scenario(errand: Errand, provider: FakeProvider, news: News) -> None:
        errand.told(elsewhere)
        assert news == []
        errand.ask()
        await until(lambda: bool(news))
        errand.told(elsewhere)
        errand.told(lost)
        assert news == [CLAIM, elsewhere, lost]
        await errand.end()
        assert provider.calls[-1] == "release 140.113.131.90:5060"
        errand.told(elsewhere)
        assert len(news) == 3

    running(scenario)
