"""One request that goes to several phones, and the one response that goes back (RFC 3261 §16.6, §16.7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from nattools.session.flows import Flow
from nattools.sip.message import SipMessage
from nattools.sip.transaction import ClientTransaction

_ASKS_FOR_MORE = frozenset({401, 407, 415, 420, 484})


@dataclass(frozen=True, slots=True)
class Target:
    """A place that a request may go to: the Request-URI there, and the flow, None where the URI says it.

    `route` is put before the Route that is there (a Path, RFC 3327). Targets of the highest `q` are tried
    first, all of one q at once. One that `is_spare` is tried only where none before it could be reached: it
    is another address of the same server (RFC 3263 §4.3).
    """

    uri: bytes
    flow: Flow | None = None
    route: tuple[bytes, ...] = ()
    q: float = 1.0
    is_spare: bool = False


def by_flows(uri: bytes, flows: Sequence[Flow]) -> list[Target]:
    """A server of several addresses: by the first of these flows, and where it leads nowhere by the next."""
    return [Target(uri, flow, q=1 / (1 + place), is_spare=place > 0) for place, flow in enumerate(flows)]


@dataclass(frozen=True, slots=True)
class Final:
    """The final response of a branch; without a message it is one of this proxy."""

    status_code: int
    message: SipMessage | None = None


@dataclass(slots=True, eq=False)
class Branch:
    """A request as it was sent on to one target, and what came back."""

    target: Target
    flow: Flow
    transaction: ClientTransaction
    has_rung: bool = False
    is_unwanted: bool = False
    """Whether it is to be cancelled, as soon as it has rung (RFC 3261 §9.1)."""
    is_cancelled: bool = False
    final: Final | None = None

    @property
    def is_unheard(self) -> bool:
        """Whether nothing has come back, and it was not given up."""
        return self.final is None and not self.has_rung


@dataclass(slots=True)
class Fork:
    """The branches of one request, and the targets that wait for their turn."""

    waiting: list[list[Target]] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    failed: list[Final] = field(default_factory=list)
    """Targets that could not be sent to at all."""
    reason: bytes = b""
    """Why branches are cancelled, as a value of Reason."""

    def add(self, targets: Iterable[Target], breadth: int) -> None:
        """Line targets up by their q, at most `breadth` at once."""
        ordered = sorted(targets, key=lambda target: -target.q)
        for _, same in groupby(ordered, key=lambda target: target.q):
            group = list(same)
            self.waiting.extend(group[start : start + breadth] for start in range(0, len(group), breadth))

    def take(self) -> list[Target]:
        """Take those whose turn it is; none once nobody is left."""
        while self.waiting:
            group = self.waiting.pop(0)
            finals = [it for it in (*self.failed, *(branch.final for branch in self.branches)) if it]
            if any(it.status_code != 503 for it in finals):
                group = [target for target in group if not target.is_spare]
            if group:
                return group
        return []

    @property
    def pending(self) -> list[Branch]:
        """Branches without a final response."""
        return [branch for branch in self.branches if branch.final is None]

    def settle(self) -> None:
        """Want no more of it: nobody else is tried, and who still rings is to be cancelled."""
        self.waiting.clear()
        for branch in self.pending:
            branch.is_unwanted = True

    def condense(self) -> None:
        """Keep of the responses their codes alone: one of them was passed on."""
        for branch in self.branches:
            if branch.final is not None and branch.final.message is not None:
                branch.final = Final(branch.final.status_code)

    def best(self) -> Final | None:
        """The response to pass on where no branch has had a 2xx; None where nobody has answered.

        6xx before all; then the lowest class, where what asks the caller for more precedes, and what only
        says that nobody was reached comes last.
        """
        finals = self.failed + [branch.final for branch in self.branches if branch.final is not None]
        return min(finals, key=_rank, default=None)

    def challenges(self, best: Final) -> list[SipMessage]:
        """What else asks for credentials where the best response does."""
        if best.status_code not in (401, 407):
            return []
        return [
            branch.final.message
            for branch in self.branches
            if branch.final is not None
            and branch.final is not best
            and branch.final.message is not None
            and branch.final.status_code in (401, 407)
        ]


def _rank(final: Final) -> tuple[int, ...]:
    code = final.status_code
    if code >= 600:
        return (0, code)
    if code in (408, 503):
        return (code // 100, 2, code)
    return (code // 100, 0 if code in _ASKS_FOR_MORE else 1, code)
