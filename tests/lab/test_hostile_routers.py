"""Hostile routers against the whole of natmap: each costs little, lures it nowhere, and hides no good one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any

import pytest

from nattools.lab.namespaces import Host
from tests.fakes.igd_hostile import HOSTILE
from tests.fakes.pcp_gateway import Fault
from tests.lab.conftest import PATIENCE_SECONDS, Lines
from tests.lab.fake_routers import GOOD, ROOT, ROUTER, FakeRouter
from tests.lab.hostile import BENIGN, MOST_MIB, MOST_SECONDS, HostileLab, Measured
from tests.lab.measured_program import KEPT_S

STATUS, LIST = ("status", "--json"), ("list", "--json")
ADD = ("add", "5060", "--lease", "120", "--json")
KEEP, REMOVE = (*ADD, "--keep"), ("remove", "5060", "--json")
PAGES = (("status",), ("list",), ADD[:-1])
DONE, NO_ROUTER, REFUSED, NOT_PUBLIC = 0, 3, 4, 5

LABORATORIES = 4
TRIES = 3  # a machine with other things to do may be slow, but not each time

USABLE = (
    "control-url-encoded-injection",
    "url-base-encoded-injection",
    "url-base-not-utf-8",
    "url-base-empty",
)
"""Of these nothing is left but a path that they serve."""
UNFINDABLE = [
    name
    for name in HOSTILE
    if name.startswith(("description-", "location-", "flood", "control-", "url-base-")) and name not in USABLE
]
"""That hide themselves well enough that nobody can use them."""

CROWDING = [
    name
    for name in UNFINDABLE
    if name.startswith(("description-", "flood")) or name.endswith(("-loopback", "-other-host", "-huge"))
]
"""Of these, those that cost most, and one of each kind of the others."""

Case = tuple[str, tuple[str, ...]]


def commands(name: str) -> Iterator[tuple[str, ...]]:
    """With which of the commands a behaviour shows."""
    if name in UNFINDABLE or name.startswith(("address-", "status-", "ssdp-")):
        yield STATUS
    if name.startswith(("events-", "sid-")):
        yield KEEP
    elif name not in UNFINDABLE:
        yield ADD
    if any(word in name for word in ("list", "entry", "terminal", "nothing-more", "slow")):
        yield LIST
    if name.startswith("delete-"):
        yield REMOVE


CASES: list[Case] = [(name, arguments) for name in HOSTILE for arguments in commands(name)]
MOST_REQUESTS = 60
"""In one run. A list is longer."""


@contextmanager
def laboratories() -> Iterator[SimpleQueue[HostileLab]]:
    """Some, to be used side by side: most of the time is spent in waiting for routers that say nothing."""
    with ExitStack() as stack:
        free: SimpleQueue[HostileLab] = SimpleQueue()
        for _ in range(LABORATORIES):
            free.put(stack.enter_context(HostileLab()))
        yield free


def costs(measured: Measured, extra_mib: float) -> bool:
    """Whether it is too much."""
    return measured.seconds > MOST_SECONDS + KEPT_S * measured.is_kept or extra_mib > MOST_MIB


class Measurements:
    """Those of every case that is going to be tested; each is taken before it is asked for."""

    def __init__(self, free: SimpleQueue[HostileLab], pool: ThreadPoolExecutor, cases: list[Case]) -> None:
        self._free = free
        self._taken: dict[Case, Future[tuple[Measured, float]]] = {
            case: pool.submit(self._measure, case) for case in cases
        }

    def __getitem__(self, case: Case) -> tuple[Measured, float]:
        return self._taken[case].result()

    def _measure(self, case: Case) -> tuple[Measured, float]:
        lab = self._free.get()
        try:
            for _ in range(TRIES):
                measured = lab.measure(case[0], *case[1])
                extra_mib = lab.extra_mib(measured, *case[1])
                if not costs(measured, extra_mib):
                    break
            return measured, extra_mib
        finally:
            self._free.put(lab)


@pytest.fixture(scope="module")
def measurements(request: pytest.FixtureRequest) -> Iterator[Measurements]:
    items: list[Any] = [item for item in request.session.items if item.path == request.path]
    wanted = [item.callspec.params["case"] for item in items if "case" in getattr(item, "fixturenames", ())]
    with laboratories() as free, ThreadPoolExecutor(LABORATORIES) as pool:
        try:
            yield Measurements(free, pool, wanted)
        finally:
            pool.shutdown(cancel_futures=True)


def harmless(measured: Measured) -> None:
    """Nobody else was asked, nothing broke, and nothing that steers a terminal came out."""
    assert measured.elsewhere == 0
    assert measured.lured == ()
    for request in measured.asked:
        assert request["what"] not in ("GET /secret", "POST /secret")
        assert not {"x-injected", "set-cookie"} & request["arguments"].keys()
    assert "Traceback" not in measured.stderr
    for text in (measured.stdout, measured.stderr):
        assert all(character == "\n" or character.isprintable() for character in text), ascii(text)


def name_of(case: Case) -> str:
    return f"{case[0]}-{'keep' if '--keep' in case[1] else case[1][0]}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_hostile_router_costs_little_and_harms_nothing(case: Case, measurements: Measurements) -> None:
    measured, extra_mib = measurements[case]
    print(f"{measured.seconds:6.2f} s {extra_mib:6.1f} MiB  {name_of(case)}")  # noqa: T201  for -s
    assert measured.status in (DONE, NO_ROUTER, REFUSED, NOT_PUBLIC), measured.stderr
    harmless(measured)
    assert not costs(measured, extra_mib)
    assert len(measured.asked) <= MOST_REQUESTS or LIST in case
    if case[0] in UNFINDABLE:
        assert measured.status == NO_ROUTER
        assert measured.document["protocols"]["upnp"]["found"] is False
    if KEEP in case:
        assert '"event": "removed"' in measured.stdout


@pytest.fixture(scope="module")
def lab() -> Iterator[HostileLab]:
    with HostileLab() as lab:
        yield lab


def test_the_canary_sings_when_something_is_sent_elsewhere(lab: HostileLab) -> None:
    """Or the tests above would prove nothing."""
    lab.run(*STATUS)
    lab.lab.client.run(["ip", "route", "get", "192.168.0.2"], timeout=PATIENCE_SECONDS)
    lab.packets_elsewhere()
    for address in ("127.0.0.1", "192.168.0.2", "203.0.113.10"):
        assert lab.packets_elsewhere() == 0
        script = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('{address}', 9))"
        done = lab.lab.client.run([sys.executable, "-c", script], timeout=PATIENCE_SECONDS)
        assert (done.returncode, lab.packets_elsewhere() > 0) == (0, True), address


@pytest.mark.parametrize("arguments", PAGES, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    "name", ["terminal-escapes", "fault-escapes", "ssdp-escapes", "address-scope-escapes"]
)
def test_nothing_that_a_router_writes_steers_a_terminal(
    name: str, arguments: tuple[str, ...], lab: HostileLab
) -> None:
    harmless(lab.measure(name, *arguments))
    harmless(lab.measure(name, *arguments, "--verbose"))


@contextmanager
def good_router_beside(lab: HostileLab) -> Iterator[FakeRouter]:
    with FakeRouter(lab.lab.router, "another", address=GOOD, other_address=None) as good:
        yield good


@pytest.fixture(scope="module")
def lab_with_a_good_one() -> Iterator[HostileLab]:
    with HostileLab() as lab, good_router_beside(lab):
        yield lab


@pytest.mark.parametrize("name", CROWDING)
def test_a_good_router_beside_a_hostile_one_is_found(name: str, lab_with_a_good_one: HostileLab) -> None:
    measured = lab_with_a_good_one.measure(name, *STATUS)
    upnp = measured.document["protocols"]["upnp"]
    assert (upnp["found"], upnp["gateway"]) == (True, GOOD)
    assert measured.document["external_address"] == "11.22.33.3"
    harmless(measured)


@pytest.mark.parametrize(
    "name", ["add-never-answers", "nothing-more-answers", "slow-refusals", "not-permitted"]
)
def test_a_good_router_beside_one_that_grants_nothing_is_used(
    name: str, lab_with_a_good_one: HostileLab
) -> None:
    measured = lab_with_a_good_one.measure(name, *ADD)
    assert measured.status == DONE, measured.stderr
    assert measured.document["mapping"]["gateway"] == GOOD
    harmless(measured)


@contextmanager
def pcp_gateway(host: Host, *faults: Fault) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.fakes.pcp_gateway", ROUTER]
    for fault in faults:
        command += ["--fault", fault.value]
    with host.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert Lines(process).next() == "listening"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_a_hostile_pcp_gateway_costs_little_and_harms_nothing(fault: Fault, lab: HostileLab) -> None:
    asked = ("--protocol", "pcp", "--protocol", "nat-pmp")
    runs = (STATUS, (*ADD, "--external", "6000"), ADD)
    lab.router.behave(BENIGN)
    with pcp_gateway(lab.lab.router):
        peaks = [lab.run(*arguments, *asked).peak_kib for arguments in runs]
    with pcp_gateway(lab.lab.router, fault):
        for arguments, peak in zip(runs, peaks, strict=True):
            measured = lab.run(*arguments, *asked)
            assert measured.status in (DONE, NO_ROUTER, REFUSED, NOT_PUBLIC), measured.stderr
            harmless(measured)
            assert measured.seconds <= MOST_SECONDS
            assert (measured.peak_kib - peak) / 1024 <= MOST_MIB
