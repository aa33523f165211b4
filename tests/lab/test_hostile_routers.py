"""Hostile routers against the whole of natmap: each costs little, lures it nowhere, and hides no good one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

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
PCP_ALONE = ("--protocol", "pcp", "--protocol", "nat-pmp")
PCP_RUNS = (STATUS, (*ADD, "--external", "6000"), ADD)
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
KeyT = TypeVar("KeyT")
ResultT = TypeVar("ResultT")


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


def costs(measured: Measured, extra_mib: float) -> bool:
    """Whether it is too much."""
    return measured.seconds > MOST_SECONDS + KEPT_S * measured.is_kept or extra_mib > MOST_MIB


class SideBySide(Generic[KeyT, ResultT]):
    """What comes of every key that is going to be tested, in several laboratories at once.

    Most of the time is spent in waiting for silent routers, so each is begun before it is asked for.
    """

    def __init__(
        self,
        labs: Sequence[HostileLab],
        pool: ThreadPoolExecutor,
        take: Callable[[HostileLab, KeyT], ResultT],
        keys: Sequence[KeyT],
    ) -> None:
        self._take = take
        self._free: SimpleQueue[HostileLab] = SimpleQueue()
        for lab in labs:
            self._free.put(lab)
        self._taken = {key: pool.submit(self._in_a_lab, key) for key in keys}

    def __getitem__(self, key: KeyT) -> ResultT:
        return self._taken[key].result()

    def _in_a_lab(self, key: KeyT) -> ResultT:
        lab = self._free.get()
        try:
            return self._take(lab, key)
        finally:
            self._free.put(lab)


def wanted(request: pytest.FixtureRequest, parameter: str) -> list[Any]:
    """The values of a parameter that tests of this file have."""
    items: list[Any] = [item for item in request.session.items if item.path == request.path]
    parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
    return [values[parameter] for values in parameters if parameter in values]


@pytest.fixture(scope="module")
def labs() -> Iterator[list[HostileLab]]:
    with ExitStack() as stack:
        yield [stack.enter_context(HostileLab()) for _ in range(LABORATORIES)]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(LABORATORIES) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


def measure(lab: HostileLab, case: Case) -> tuple[Measured, float]:
    for _ in range(TRIES):
        measured = lab.measure(case[0], *case[1])
        extra_mib = lab.extra_mib(measured, *case[1])
        if not costs(measured, extra_mib):
            break
    return measured, extra_mib


@pytest.fixture(scope="module")
def measurements(
    labs: list[HostileLab], pool: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> SideBySide[Case, tuple[Measured, float]]:
    return SideBySide(labs, pool, measure, wanted(request, "case"))


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
def test_a_hostile_router_costs_little_and_harms_nothing(
    case: Case, measurements: SideBySide[Case, tuple[Measured, float]]
) -> None:
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
def lab(labs: list[HostileLab]) -> HostileLab:
    """One of them, for tests that come after all that are side by side."""
    return labs[0]


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


def measure_fault(lab: HostileLab, fault: Fault) -> list[tuple[Measured, float]]:
    """Each of the runs, and what it took above what it takes with a gateway that means well."""
    lab.router.behave(BENIGN)
    with pcp_gateway(lab.lab.router):
        peaks = [lab.run(*arguments, *PCP_ALONE).peak_kib for arguments in PCP_RUNS]
    with pcp_gateway(lab.lab.router, fault):
        return [
            measure_run(lab, (*arguments, *PCP_ALONE), peak)
            for arguments, peak in zip(PCP_RUNS, peaks, strict=True)
        ]


def measure_run(lab: HostileLab, arguments: tuple[str, ...], peak_kib: int) -> tuple[Measured, float]:
    for _ in range(TRIES):
        measured = lab.run(*arguments)
        extra_mib = (measured.peak_kib - peak_kib) / 1024
        if not costs(measured, extra_mib):
            break
    return measured, extra_mib


@pytest.fixture(scope="module")
def faults(
    labs: list[HostileLab], pool: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> SideBySide[Fault, list[tuple[Measured, float]]]:
    return SideBySide(labs, pool, measure_fault, wanted(request, "fault"))


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_a_hostile_pcp_gateway_costs_little_and_harms_nothing(
    fault: Fault, faults: SideBySide[Fault, list[tuple[Measured, float]]]
) -> None:
    for measured, extra_mib in faults[fault]:
        assert measured.status in (DONE, NO_ROUTER, REFUSED, NOT_PUBLIC), measured.stderr
        harmless(measured)
        assert not costs(measured, extra_mib)


@contextmanager
def good_router_beside(lab: HostileLab) -> Iterator[FakeRouter]:
    with FakeRouter(lab.lab.router, "another", address=GOOD, other_address=None) as good:
        yield good


@pytest.fixture(scope="module")
def beside(
    labs: list[HostileLab], pool: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> Iterator[SideBySide[Case, Measured]]:
    """From the first test on that asks for it, each laboratory has a good router as well."""

    def measure(lab: HostileLab, case: Case) -> Measured:
        return lab.measure(case[0], *case[1])

    cases: list[Case] = [(name, STATUS) for name in wanted(request, "crowding")]
    cases += [(name, ADD) for name in wanted(request, "granting")]
    with ExitStack() as stack:
        for lab in labs:
            stack.enter_context(good_router_beside(lab))
        yield SideBySide(labs, pool, measure, cases)


@pytest.mark.parametrize("crowding", CROWDING)
def test_a_good_router_beside_a_hostile_one_is_found(
    crowding: str, beside: SideBySide[Case, Measured]
) -> None:
    measured = beside[crowding, STATUS]
    upnp = measured.document["protocols"]["upnp"]
    assert (upnp["found"], upnp["gateway"]) == (True, GOOD)
    assert measured.document["external_address"] == "11.22.33.3"
    harmless(measured)


@pytest.mark.parametrize(
    "granting", ["add-never-answers", "nothing-more-answers", "slow-refusals", "not-permitted"]
)
def test_a_good_router_beside_one_that_grants_nothing_is_used(
    granting: str, beside: SideBySide[Case, Measured]
) -> None:
    measured = beside[granting, ADD]
    assert measured.status == DONE, measured.stderr
    assert measured.document["mapping"]["gateway"] == GOOD
    harmless(measured)
