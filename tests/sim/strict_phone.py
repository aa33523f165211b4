"""A strict telephone (RFC 3261, 3262, 3311): what it does at random, and what it says to others."""

from __future__ import annotations

import asyncio
from functools import partial

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.dialog import Dialog
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.sdp import Direction
from tests.sim.strict_leg import Leg
from tests.sim.strict_line import Client, Server, World
from tests.sim.strict_registrant import Registrant

_REFUSALS = ((486, "Busy Here"), (480, "Temporarily Unavailable"), (603, "Decline"), (500, "Oh"), (404, "No"))
_CHANGES: list[list[Direction | None]] = [
    [Direction.SENDRECV],
    [Direction.SENDONLY],
    [Direction.INACTIVE],
    [Direction.SENDRECV, Direction.SENDRECV],
    [Direction.SENDRECV, None],
    [Direction.SENDRECV, Direction.SENDONLY],
]


class Phone(Registrant):
    """One telephone of a user."""

    def __init__(
        self,
        world: World,
        user: str,
        number: int,
        gate: Endpoint,
        domain: str,
        *,
        is_stream: bool = False,
        is_natted: bool = False,
    ) -> None:
        super().__init__(world, user, number, gate, domain, is_stream=is_stream, is_natted=is_natted)
        self.line.on_request = self._asked
        self.line.on_ack = self._acknowledged

    # --- a call that we begin ---

    def call(self, user: str, *, is_delayed: bool = False) -> None:
        """Call a user."""
        leg = Leg(self, self.world.token(), is_caller=True)
        self.calling[leg.call_id] = leg
        self.world.counters["calls"] += 1
        body = b"" if is_delayed else leg.offer(directions=self.world.random.choice(_CHANGES[::3]))

        def number() -> int:
            leg.cseq += 1
            return leg.cseq

        fields: list[tuple[str, str | bytes]] = [
            ("From", f"<sip:{self.user}@{self.domain}>;tag={leg.local_tag}"),
            ("To", f"<sip:{user}@{self.domain}>"),
            ("Call-ID", leg.call_id),
            ("Supported", "100rel"),
            ("Allow", "INVITE, ACK, CANCEL, BYE, PRACK, UPDATE, INFO"),
        ]
        responded = partial(self._call_responded, leg, not is_delayed)
        self.ask("INVITE", f"sip:{user}@{self.domain}", fields, number, responded, body)
        if self.world.chance(0.3):
            after = self.world.random.choice((0.0, 0.01, 0.3, 1.0, 3.0, 10.0))
            self.world.loop.call_later(after, self._cancel, leg)
        else:
            self.world.loop.call_later(self.world.random.uniform(20, 90), self._cancel, leg)

    def _cancel(self, leg: Leg) -> None:
        client = self.latest_of(leg)
        if leg.is_over or leg.is_answered or client is None or client.final is not None or self.line.is_gone:
            return
        if not client.has_rung and self.world.chance(0.5):
            self.world.loop.call_later(0.3, self._cancel, leg)
            return
        self.world.counters["cancelled"] += 1
        request = client.request
        assert request.cseq is not None
        assert request.request_uri is not None
        names = ("via", "from", "to", "call-id", "max-forwards")
        fields: list[tuple[str, str | bytes]] = [
            (name, request.value(request.header(name))) for name in names
        ]
        fields.append(("CSeq", f"{request.cseq[0]} CANCEL"))
        data = compose_request("CANCEL", request.data[slice(*request.request_uri)].decode(), fields)
        self.line.ask(data, lambda response: None)

    def latest_of(self, leg: Leg) -> Client | None:
        """The INVITE of a call as it was sent last."""
        found = [
            it
            for it in self.line.clients.values()
            if it.method == "INVITE" and it.request.call_id.decode() == leg.call_id
        ]
        return found[-1] if found else None

    def _call_responded(self, leg: Leg, had_offer: bool, client: Client, response: SipMessage) -> None:
        code = response.status_code or 0
        tag = response.to_tag
        if code >= 300:
            self.world.counters[f"INVITE {code}"] += 1
            self.calling.pop(leg.call_id, None)
            leg.end()
            return
        if code == 100 or tag is None:
            if code != 100:
                leg.wrong(f"a {code} without a To tag")
            return
        if self.line.is_gone:
            return
        assert client.request.cseq is not None
        number = client.request.cseq[0]
        try:
            dialog = Dialog.of_caller(client.request, response)
        except DecodeError as error:
            leg.wrong(f"a {code} that makes no dialog: {error}")
            return
        if code < 200:
            if response.body and had_offer and not leg.is_answered:
                leg.early[tag] = response.body
                leg.answered(response.body)
            if b"100rel" in response.first_value("require"):
                self._prack(leg, dialog, client, response, had_offer)
            return
        self._answered(leg, had_offer, dialog, number, tag, response)

    def _prack(self, leg: Leg, dialog: Dialog, client: Client, response: SipMessage, had_offer: bool) -> None:
        rseq = int(response.first_value("rseq") or 0)
        assert client.request.cseq is not None
        key = (response.to_tag or b"", rseq)
        if key in leg.pracks or leg.is_answered:
            return
        leg.pracks.add(key)
        leg.cseq += 1
        body = None
        if response.body and not had_offer:
            leg.early[key[0]] = response.body
            body = leg.body(leg.answer(response.body))
        data = dialog.compose(
            "PRACK",
            cseq=leg.cseq,
            via=self.via(),
            headers=[("RAck", f"{rseq} {client.request.cseq[0]} INVITE")],
            body=body,
        )
        self.world.counters["PRACK"] += 1
        self.line.ask(data, lambda response: None)

    def _answered(
        self, leg: Leg, had_offer: bool, dialog: Dialog, number: int, tag: bytes, response: SipMessage
    ) -> None:
        """A 2xx: the first makes the call, another phone's is hung up, the same again gets its ACK again."""
        known = leg.answers
        if tag in known:
            self.line.send(known[tag])
            return
        is_first = leg.remote_tag == b""
        body = None
        if is_first and not leg.is_over:
            leg.remote_tag, leg.dialog = tag, dialog
            dialog.is_early = False
            leg.is_answered = True
            leg.answered_at = self.world.now()
            self.calling.pop(leg.call_id, None)
            self.legs[leg.call_id, leg.local_tag, tag] = leg
            if had_offer and (answer := response.body or leg.early.get(tag)):
                leg.answered(answer)
            elif tag in leg.early:
                leg.answer(leg.early[tag])
            elif response.body:
                body = leg.body(leg.answer(response.body))
            self.world.counters["answered"] += 1
        elif not had_offer and response.body:
            spare = Leg(self, leg.call_id, is_caller=True, local_tag=leg.local_tag)
            body = leg.body(spare.answer(response.body))
            spare.end()
        ack = dialog.compose("ACK", cseq=number, via=self.via(), body=body)
        known[tag] = ack
        self.line.send(ack)
        if is_first and not leg.is_over:
            self.world.loop.create_task(self._converse(leg))
            return
        self.world.counters["answered twice"] += 1
        leg.cseq += 1
        leg.others[tag] = float("inf")

        def over(response: SipMessage | None = None) -> None:
            leg.others[tag] = self.world.now()
            if response is not None:
                self._bye_responded(response)

        self.line.ask(dialog.compose("BYE", cseq=leg.cseq, via=self.via()), over, over)

    def _bye_responded(self, response: SipMessage) -> None:
        self.world.counters[f"BYE {response.status_code}"] += 1

    # --- a call that we get ---

    def _asked(self, server: Server) -> None:
        request = server.request
        if self.is_silent:
            return
        assert request.request_uri is not None
        uri = request.data[slice(*request.request_uri)].decode()
        if uri != self.contact.strip("<>") and self.world.now() - self.line.rebound_at > 120:
            self.wrong(f"{request.method} to {uri} at {self.contact}")
        if request.method == "CANCEL":
            self._cancelled(server)
        elif request.to_tag is None:
            if request.method == "INVITE":
                self._called(server)
            else:
                self.say(server, 200)
        else:
            self._asked_within(server)

    def say(
        self,
        server: Server,
        code: int,
        reason: str = "Word",
        *,
        tag: str = "",
        body: bytes = b"",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Answer a request."""
        if self.line.is_gone:
            return
        fields: list[tuple[str, str | bytes]] = list(headers)
        if server.request.method in ("INVITE", "UPDATE") and 100 < code < 300:
            fields.append(("Contact", self.contact))
        if body:
            fields.append(("Content-Type", "application/sdp"))
        data = compose_response(
            server.request,
            code,
            reason,
            fields,
            body,
            to_tag=tag or (self.world.token() if code > 100 else ""),
        )
        server.respond(data)

    def _cancelled(self, server: Server) -> None:
        invite = self.line.servers.get((server.request.branch or b"", "INVITE"))
        if invite is None:
            self.say(server, 481)
            return
        self.say(server, 200)
        if invite.code < 200:
            leg = invite.leg
            self.say(invite, 487, tag="" if leg is None else leg.local_tag)
            if leg is not None:
                leg.end()

    def _called(self, server: Server) -> None:
        request = server.request
        call_id = request.call_id.decode()
        if len(self.legs) > 6:
            self.say(server, 486)
            return
        same = [
            it
            for (branch, method), it in self.line.servers.items()
            if method == "INVITE"
            and it is not server
            and it.request.to_tag is None
            and (it.request.call_id, it.request.cseq, it.request.from_tag)
            == (request.call_id, request.cseq, request.from_tag)
        ]
        if same:  # RFC 3261 §8.2.2.2
            self.world.counters["merged"] += 1
            self.say(server, 482)
            return
        leg = Leg(self, call_id, is_caller=False)
        leg.remote_tag = request.from_tag or b""
        leg.remote_cseq = 0 if request.cseq is None else request.cseq[0]
        server.leg = leg
        self.world.counters["rung"] += 1
        self.world.loop.create_task(self._ring(server, leg))

    async def _ring(self, server: Server, leg: Leg) -> None:
        """Ring, perhaps with early media, perhaps reliably; then answer, refuse, or never."""
        random = self.world.random
        request = server.request
        has_described = False

        def is_open() -> bool:
            return server.code < 200 and not leg.is_over and not self.line.is_gone and not self.is_silent

        await asyncio.sleep(random.choice((0.0, 0.05, 0.5, 2.0)))
        if is_open() and random.random() < 0.8:
            is_reliable = b"100rel" in request.first_value("supported") and random.random() < 0.3
            if is_reliable:
                body = leg.answer(request.body) if request.body else leg.offer()
                has_described = True
                self._begin_early(leg, server)
                rel = (("Require", "100rel"), ("RSeq", "1"))
                interval_s = 0.5
                while is_open() and not leg.is_pracked and interval_s < 32:
                    self.say(server, 183, tag=leg.local_tag, body=body, headers=rel)
                    await asyncio.sleep(interval_s)
                    interval_s *= 2
            elif request.body and random.random() < 0.4:
                body = leg.answer(request.body)
                has_described = True
                self.say(server, 183, tag=leg.local_tag, body=body)
            else:
                self.say(server, 180, tag=leg.local_tag)
        await asyncio.sleep(random.choice((0.0, 0.1, 1.0, 1.0, 5.0, 20.0)))
        if not is_open():
            leg.end()
            return
        if random.random() < 0.2:
            code, reason = random.choice(_REFUSALS)
            self.say(server, code, reason, tag=leg.local_tag)
            leg.end()
            return
        if random.random() < 0.05:
            return  # rings until it is cancelled
        is_waiting = bool(leg.has_offered)
        if is_waiting and not leg.is_pracked:
            self.say(server, 500, tag=leg.local_tag)
            leg.end()
            return
        if has_described and leg.is_reliable:
            body = b""
        elif has_described:
            body = leg.described()
        else:
            body = leg.answer(request.body) if request.body else leg.offer()
        self.say(server, 200, tag=leg.local_tag, body=body)
        leg.dialog = Dialog.of_callee(request, SipMessage.parse(server.last))
        leg.is_answered = True
        leg.answered_at = self.world.now()
        self.legs[leg.call_id, leg.local_tag, leg.remote_tag] = leg
        assert request.cseq is not None
        await self._until_acknowledged(leg, server, request.cseq[0])
        if not leg.is_over and not self.line.is_gone:
            await self._converse(leg)

    def _begin_early(self, leg: Leg, server: Server) -> None:
        leg.is_reliable = True
        early = compose_response(
            server.request, 183, "Word", [("Contact", self.contact)], to_tag=leg.local_tag
        )
        leg.dialog = Dialog.of_callee(server.request, SipMessage.parse(early))
        self.legs[leg.call_id, leg.local_tag, leg.remote_tag] = leg

    async def _until_acknowledged(self, leg: Leg, server: Server, number: int) -> None:
        """Send a 2xx again until its ACK is here (RFC 3261 §13.3.1.4)."""
        interval_s, began = 0.5, self.world.now()
        while number not in leg.acks and not leg.is_over and not self.line.is_gone:
            await asyncio.sleep(interval_s)
            if self.world.now() - began >= 32:
                if not leg.is_over and not self.line.is_gone and number not in leg.acks:
                    leg.wrong(f"no ACK of its 2xx to {number}")
                    self.bye(leg)
                return
            if number not in leg.acks and not leg.is_over:
                self.line.send(server.last)
            interval_s = min(2 * interval_s, 4.0)

    def _acknowledged(self, ack: SipMessage) -> None:
        leg = self._leg_of(ack)
        if leg is None or ack.cseq is None:
            if not self.is_silent and (ack.call_id.decode(), (ack.to_tag or b"").decode()) not in self.ended:
                self.wrong(f"an ACK of no call: {ack.data[:300]!r}")
            return
        if ack.cseq[0] in leg.acks:
            return
        leg.acks[ack.cseq[0]] = ack.data
        if leg.has_offered and ack.body and not leg.is_changing:
            leg.answered(ack.body)

    # --- within calls ---

    def _leg_of(self, message: SipMessage) -> Leg | None:
        return self.legs.get(
            (message.call_id.decode(), (message.to_tag or b"").decode(), message.from_tag or b"")
        )

    def _asked_within(self, server: Server) -> None:
        request = server.request
        leg = self._leg_of(request)
        if leg is None or leg.is_over or request.cseq is None:
            key = request.call_id.decode(), (request.to_tag or b"").decode()
            if key not in self.ended and leg is None:
                is_known = key in {(it.call_id, it.local_tag) for it in self.legs.values()}
                if not (
                    is_known or key[0] in self.calling or key[0] in self.world.broken
                ):  # another one of a fork, else
                    self.wrong(f"{request.method} of no call: {request.data[:300]!r}")
            self.say(server, 481)
            return
        if request.cseq[0] < leg.remote_cseq:
            self.world.counters["late"] += 1
            self.say(server, 500, headers=(("Retry-After", "1"),))
            return
        leg.remote_cseq = request.cseq[0]
        method = request.method
        if method == "BYE":
            self.say(server, 200)
            self.finish(leg)
        elif method == "PRACK":
            leg.is_pracked = True
            if leg.has_offered and request.body:
                leg.answered(request.body)
            self.say(server, 200)
        elif method in ("INVITE", "UPDATE"):
            self._changed(leg, server)
        else:
            self.say(server, 200)

    def _changed(self, leg: Leg, server: Server) -> None:
        request = server.request
        is_pending = leg.is_answering
        if leg.is_changing or leg.has_offered or is_pending or not leg.is_answered:
            self.world.counters["glare"] += 1
            self.say(server, 491)
            return
        if self.world.chance(0.1):
            self.say(server, 488)
            return
        leg.refresh(request)
        body = b""
        if request.body:
            body = leg.answer(request.body)
        elif request.method == "INVITE":
            body = leg.offer()
        if request.method == "INVITE" and self.world.chance(0.3):
            leg.is_answering = True
            self.world.loop.call_later(2.0, self._answer_change, leg, server, body)
            return
        self._answer_change(leg, server, body)

    def _answer_change(self, leg: Leg, server: Server, body: bytes) -> None:
        leg.is_answering = False
        if leg.is_over:
            self.say(server, 487)
            return
        self.say(server, 200, body=body)
        if server.request.method == "INVITE":
            assert server.request.cseq is not None
            leg.changed_at = self.world.now()
            self.world.loop.create_task(self._until_acknowledged(leg, server, server.request.cseq[0]))

    async def _converse(self, leg: Leg) -> None:
        """Talk, change what is sent, and hang up at last."""
        random = self.world.random
        await asyncio.sleep(random.choice((0.0, 0.2, 2.0, 6.0, 12.0)))
        for _ in range(random.choice((0, 0, 1, 2, 3))):
            if leg.is_over or self.line.is_gone or self.is_silent:
                return
            if not leg.is_changing and not leg.has_offered and not leg.is_answering:
                self._change(leg)
            await asyncio.sleep(random.choice((0.0, 0.5, 7.0, 7.0, 9.0)))
        await asyncio.sleep(random.choice((0.0, 3.0, 8.0, 15.0)))
        if not leg.is_over and not self.line.is_gone and not self.is_silent:
            self.bye(leg)

    def _change(self, leg: Leg) -> None:
        random = self.world.random
        method = random.choice(("INVITE", "INVITE", "UPDATE", "INFO", "REFER"))
        if method in ("INFO", "REFER"):
            headers = (("Refer-To", f"<sip:{self.user}@{self.domain}>"),) if method == "REFER" else ()
            self.line.ask(leg.request(method, headers=headers), lambda response: None)
            return
        before = [it.ours for it in leg.streams]
        is_delayed = method == "INVITE" and random.random() < 0.2
        wanted = list(random.choice(_CHANGES))
        wanted += [None] * (len(leg.streams) - len(wanted))
        body = b"" if is_delayed else leg.offer(directions=wanted)
        leg.is_changing = True
        self.world.counters[f"re-{method}"] += 1
        data = leg.request(method, body)
        responded = partial(self._change_responded, leg, before, leg.cseq, is_delayed, {})
        self.line.ask(data, responded, partial(self._change_over, leg))

    def _change_over(self, leg: Leg) -> None:
        leg.is_changing = leg.has_offered = False

    def _change_responded(
        self,
        leg: Leg,
        before: list[Direction | None],
        number: int,
        is_delayed: bool,
        sent: dict[str, bytes],
        response: SipMessage,
    ) -> None:
        code = response.status_code or 0
        if code < 200:
            return
        is_invite = response.method == "INVITE"
        self.world.counters[f"re-{response.method} {code}"] += 1
        if code >= 300:
            self._change_over(leg)
            leg.go_back(before)
            if code in (481, 408) and not leg.is_over and not leg.is_ending:
                self.bye(leg)
            return
        if "ack" in sent:
            self.line.send(sent["ack"])
            return
        body = b""
        if not leg.is_over:
            leg.refresh(response)
            if response.body and not is_delayed:
                leg.answered(response.body)
            elif response.body:
                body = leg.answer(response.body)
        leg.is_changing = False
        if is_invite:
            assert leg.dialog is not None
            sent["ack"] = leg.dialog.compose(
                "ACK", cseq=number, via=self.via(), body=leg.body(body) if body else None
            )
            self.line.send(sent["ack"])

    def bye(self, leg: Leg) -> None:
        """Hang up."""
        if leg.dialog is None or leg.is_ending:
            return
        leg.is_ending = True
        self.line.ask(leg.request("BYE"), self._bye_responded)
        self.finish(leg)

    def finish(self, leg: Leg) -> None:
        """Forget a call."""
        leg.end()

    def forget(self, leg: Leg) -> None:
        """Know a call no more, but that it was there."""
        self.ended.add((leg.call_id, leg.local_tag))
        self.legs.pop((leg.call_id, leg.local_tag, leg.remote_tag), None)

    # --- what breaks ---

    def crash(self) -> None:
        """Be gone without a word."""
        self.is_silent = True
        self.line.close()
        self._break_calls()
        for leg in [*self.legs.values(), *self.calling.values()]:
            leg.end()
        self.legs.clear()
        self.calling.clear()

    def _break_calls(self) -> None:
        ringing = [server.leg for server in self.line.servers.values() if server.leg is not None]
        legs = [*self.legs.values(), *self.calling.values(), *ringing]
        self.world.broken |= {leg.call_id for leg in legs}

    def rebind(self) -> None:
        """Come from other ports, and say so to the registrar."""
        self._break_calls()
        self.line.rebind()
        for leg in [*self.legs.values(), *self.calling.values()]:
            leg.rebind()
        self.register()
