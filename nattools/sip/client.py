"""The door of the search for SIP ALGs: one socket around an `AlgProbe`."""

from __future__ import annotations

import asyncio
import os
import secrets

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import TransportError
from nattools.net.runner import MachineRunner
from nattools.net.udp import UdpSocket, local_address_towards
from nattools.sip.alg import AlgObservations, AlgVerdict, judge
from nattools.sip.alg_probe import AlgProbe

DEFAULT_CONTROL_PORT = 3478
"""The other port of the server that is asked, to compare with: there a reflector serves STUN."""


async def detect_alg(
    server: Endpoint,
    *,
    control_port: int | None = DEFAULT_CONTROL_PORT,
    local_address: IPAddress | None = None,
    local_port: int = 0,
    timeout_s: float = 5.0,
) -> AlgVerdict:
    """Find out whether something between this machine and the SIP port `server` rewrites SIP over UDP.

    Any SIP server that answers STUN on its SIP port will do for a proof that there is an ALG, a reflector
    (`stund --sip-reflector`) for naming the fields that it touches, and for a proof that there is none.
    `control_port` of the same server is asked the same, to compare with; None or the SIP port itself for
    none. `timeout_s` is how long the first answer may take. Raises `TransportError` where there is no route
    to the server, or the local address or port cannot be had.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[AlgObservations] = loop.create_future()
    local_ip = local_address_towards(server, local_address=local_address)

    def on_datagram(data: bytes, source: Endpoint) -> None:
        runner.receive("", data, source)

    def on_error(destination: Endpoint | None, error: OSError) -> None:
        if destination is not None:
            reason = f"it cannot be reached: {os.strerror(error.errno or 0).lower()} (ICMP)"
            machine.undeliverable(destination, reason, now=loop.time())
            runner.pump()

    def on_unsendable(_socket: str, destination: Endpoint, error: TransportError) -> None:
        machine.undeliverable(destination, str(error), now=loop.time(), is_final=True)

    def on_event(seen: AlgObservations) -> None:
        if not finished.done():
            finished.set_result(seen)

    socket = await UdpSocket.open(
        ipv6=local_ip.version == 6,
        local_address=local_ip,
        local_port=local_port,
        on_datagram=on_datagram,
        on_error=on_error,
    )
    machine = AlgProbe(
        server,
        local=socket.local,
        control_port=control_port,
        entropy=secrets.token_bytes,
        now=loop.time(),
        timeout_s=timeout_s,
    )
    runner = MachineRunner(machine, {"": socket}, on_event=on_event, on_unsendable=on_unsendable)
    try:
        runner.pump()
        return judge(await finished)
    finally:
        runner.close()
        socket.close()
