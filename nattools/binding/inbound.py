"""Whether strangers get in at a public port: the server is asked to send there from elsewhere.

A request with CHANGE-REQUEST and RESPONSE-PORT is answered from A2:P2, or from A1:P2, to the port that it
names (RFC 5780 §7.2, §7.5). Both verdicts need care:

- What comes in from A2:P2 shows an open port if nothing was sent to A2, and if the server heeds
  RESPONSE-PORT: asked to answer to a port that is not ours (the decoy) it must not be heard.
- Silence shows a closed port if the server lives, and if it does send from elsewhere to a port that it is
  given. To see that, the NAT must be opened for that address, and it remembers this for minutes. So it is not
  A2 that is opened, which would spoil the next test, but A1:P2: if what comes from there, too, is let in
  once the way is open and not before, then the port is closed to others.

What neither shows stays None.
"""

from __future__ import annotations

from nattools.binding.probes import CHANGE_BOTH, CHANGE_PORT, Answer, Probe, Probes, Purpose
from nattools.endpoint import Endpoint
from nattools.stun.attributes import RESPONSE_PORT, Attribute
from nattools.stun.discovery import FEARED_LOSS, probes_needed

_KNOCK_GAP_S = 0.05
_DECOY_GAP_S = 0.02
_GAPS_PER_RTT = 4
_GRACE_S = 0.05
_PLAIN_WAIT_S = 0.1
_PLAIN_GROWTH = (1, 1, 2, 2, 4, 4)
_MOST_PROBES = probes_needed(FEARED_LOSS)
_DISCARD_PORT = 9

_KNOCKS = (Purpose.KNOCK, Purpose.SIDE_KNOCK, Purpose.DECOY)
_CHANGES: dict[Purpose, tuple[Attribute, ...]] = {
    Purpose.KNOCK: (CHANGE_BOTH,),
    Purpose.SIDE_KNOCK: (CHANGE_PORT,),
    Purpose.CONTROL: (CHANGE_PORT,),
}


class InboundTest:
    """One test of `public`, an endpoint by somebody's word, from the socket that `server` sees at `mapped`.

    Over once `is_over`: then `arrived` is the verdict, and `reason` says in words what it rests on.
    """

    def __init__(
        self,
        public: Endpoint,
        *,
        mapped: Endpoint,
        server: Endpoint,
        alternate: Endpoint,
        rtt_s: float,
        leftover: str,
        probes: Probes,
        now: float,
    ) -> None:
        """Begin at once.

        `leftover` says why an answer from `alternate` may come in through what the NAT remembers, empty where
        it cannot.
        """
        self.public = public
        self.is_over = False
        self.arrived: bool | None = None
        self.reason = ""
        self._mapped = mapped
        self._server = server
        self._alternate = alternate
        self._side = server.with_port(alternate.port)
        self._rtt_s = rtt_s
        self._leftover = leftover
        self._probes = probes
        self._has_decoy = public.port != mapped.port
        self._has_arrived = False
        self._side_arrived = False
        self._concludes_at: float | None = None
        self._burst(Purpose.KNOCK, public.port, now)
        self._burst(Purpose.SIDE_KNOCK, public.port, now)
        if self._has_decoy:
            self._burst(Purpose.DECOY, _DISCARD_PORT, now)

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called, apart from what its probes want."""
        return self._concludes_at

    def handle_timeout(self, *, now: float) -> None:
        """Conclude from silence, if that has lasted long enough."""
        if self._concludes_at is None or now < self._concludes_at:
            return
        self._concludes_at = None
        if self._has_arrived:
            self._end_arrived()
        elif self._side_arrived:
            self._end_half_open()
        else:
            self._ask_plainly(Purpose.OPENING, self._side, now)

    def answered(self, answer: Answer, *, now: float) -> None:
        """Take an answer to a probe of this test; it is believed from where it must come from alone."""
        purpose, source = answer.probe.purpose, answer.source
        elsewhere = self._alternate if purpose is Purpose.KNOCK else self._side
        # Linux gives a stranger another source port where it remembers a flow of the router's former address
        is_from_there = source.ip == elsewhere.ip and source.port != answer.probe.destination.port
        is_elsewhere = purpose in _CHANGES and is_from_there
        if self.is_over or not (is_elsewhere or source == answer.probe.destination):
            return
        if answer.view is None and purpose is Purpose.DECOY:
            self._probes.stop(Purpose.DECOY)  # it heeds RESPONSE-PORT so well that it refuses that port
            self._see_whether_all_is_quiet(now)
        elif answer.view is None:
            self._end(None, f"{source} cannot be asked to send there: {answer.fault}")
        elif purpose in _CHANGES and not is_elsewhere:
            self._end(None, f"{source} does not heed CHANGE-REQUEST: it answers from where it was asked")
        elif purpose is Purpose.KNOCK:
            self._knocked(now)
        elif purpose is Purpose.SIDE_KNOCK:
            self._side_arrived = True
            self._probes.stop(Purpose.SIDE_KNOCK)
            self._see_whether_all_is_quiet(now)
        elif purpose is Purpose.DECOY:
            self._end(
                None, f"{source} does not heed RESPONSE-PORT: it answers to where the request came from"
            )
        elif purpose is Purpose.STILL_THERE:
            self._probes.stop(Purpose.STILL_THERE)  # what was on its way before may still come in
            self._concludes_at = now + max(_GRACE_S, self._rtt_s)
        elif purpose is Purpose.OPENING:
            self._opened(answer.view.mapped, now)
        elif self._side_arrived:  # late
            self._end_half_open()
        else:
            shown = f"{self._server} does send from elsewhere, but nothing of it came in at {self.public}"
            self._end(False, shown)

    def over(self, probe: Probe, *, now: float) -> None:
        """One of its probes was given up."""
        if self.is_over:
            return
        if probe.is_undeliverable:
            self._end(None, f"nothing can be sent to {probe.destination}: {probe.fault}")
        elif probe.purpose in _KNOCKS:
            self._see_whether_all_is_quiet(now)
        elif probe.purpose is Purpose.STILL_THERE:
            self._end(None, f"{self._server} stopped answering")
        elif probe.purpose is Purpose.OPENING:
            self._end(None, f"nothing came in at {self.public}, but {self._side} does not answer at all")
        else:
            self._end(
                None,
                f"nothing came in at {self.public}, but {self._server} sends from nowhere else when asked to",
            )

    def _knocked(self, now: float) -> None:
        if self._leftover:
            self._end(None, f"an answer from {self._alternate} came in, but {self._leftover}")
        elif not self._has_decoy:
            self._end_arrived()
        else:
            self._has_arrived = True
            self._probes.stop(Purpose.KNOCK, Purpose.SIDE_KNOCK, Purpose.OPENING, Purpose.CONTROL)
            self._see_whether_all_is_quiet(now)

    def _see_whether_all_is_quiet(self, now: float) -> None:
        """Once nobody is waited for any more: is the server there at all?"""
        if self._concludes_at is None and not any(self._probes.under_way(*_KNOCKS, Purpose.STILL_THERE)):
            self._ask_plainly(Purpose.STILL_THERE, self._server, now)

    def _opened(self, mapped: Endpoint, now: float) -> None:
        """The NAT lets A1:P2 in where that sees the socket."""
        if any(self._probes.under_way(Purpose.CONTROL)):
            return
        self._probes.stop(Purpose.OPENING)
        if mapped.ip != self._mapped.ip:
            self._end(None, f"{self._side} sees the socket at {mapped}, {self._server} at {self._mapped}")
        else:
            self._burst(Purpose.CONTROL, mapped.port, now)

    def _burst(self, purpose: Purpose, port: int, now: float) -> None:
        least_s = _DECOY_GAP_S if purpose is Purpose.DECOY else _KNOCK_GAP_S
        gap_s = max(least_s, self._rtt_s / _GAPS_PER_RTT)
        last_s = max(_PLAIN_WAIT_S, 1.5 * self._rtt_s) if purpose is Purpose.CONTROL else gap_s
        waits_s = (*(gap_s,) * (_MOST_PROBES - 1), last_s)
        attributes = (*_CHANGES.get(purpose, ()), RESPONSE_PORT.of(port))
        self._probes.ask(Probe(purpose, self._server, waits_s, self, attributes), now=now)

    def _ask_plainly(self, purpose: Purpose, destination: Endpoint, now: float) -> None:
        wait_s = max(_PLAIN_WAIT_S, 1.5 * self._rtt_s)
        waits_s = tuple(wait_s * times for times in _PLAIN_GROWTH)
        self._probes.ask(Probe(purpose, destination, waits_s, self), now=now)

    def _end_arrived(self) -> None:
        self._end(True, f"an answer from {self._alternate} came in at {self.public}")

    def _end_half_open(self) -> None:
        self._end(None, f"{self._side} gets in at {self.public}, but nothing from {self._alternate} did")

    def _end(self, arrived: bool | None, reason: str) -> None:
        self.is_over, self.arrived, self.reason = True, arrived, reason
        self._concludes_at = None
        self._probes.stop(*_KNOCKS, Purpose.STILL_THERE, Purpose.OPENING, Purpose.CONTROL)
