"""A telephone that registers, and calls when it is told to, for a host of a laboratory.

Run it as `python -m tests.lab.telephone_program NAME ADDRESS SERVER`: it registers and writes `registered`.
A line on its stdin names whom to call; it writes what both messages of the call say: the first Record-Route
and the address of the media, of the response that it got, or of the INVITE that it was called by.
"""

from __future__ import annotations

import asyncio
import json
import sys

from nattools.endpoint import Endpoint
from nattools.sip.message import SipMessage
from tests.unit.session.telephone import Telephone


def shown(message: SipMessage) -> str:
    """What a message of a call says of where to send."""
    route = message.data[slice(*message.values("record-route")[0])].decode()
    media = next(line for line in message.body.splitlines() if line.startswith(b"c=")).decode()
    return json.dumps({"route": route, "media": media, "via": str(message.top_via and message.top_via.host)})


def tell(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def run(name: str, address: str, server: str) -> None:
    """Register, then call, or be called until the other side hangs up."""
    phone = Telephone(name, Endpoint.parse(server))
    await phone.open(address=address)
    response = await phone.register()
    tell("registered" if response.status_code == 200 else f"refused: {response.status_code}")
    callee = (await asyncio.to_thread(sys.stdin.readline)).strip()
    if callee:
        tell(shown(await phone.call(callee)))
        await phone.within("BYE")
    else:
        await phone.until(lambda: phone.requests_of("BYE"))
        tell(shown(phone.requests_of("INVITE")[0]))
    await phone.close()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
