"""A session controller inside one's own program: a registrar on loopback, asked once by a plain socket.

Run it: python examples/session_controller.py
"""

import asyncio
import socket
import tempfile
from pathlib import Path

from nattools.session.server import SessionServer
from nattools.session.settings import GateSettings, parse_listen

OPTIONS = """OPTIONS sip:127.0.0.1 SIP/2.0
Via: SIP/2.0/UDP 127.0.0.1;rport;branch=z9hG4bK1
From: <sip:me@127.0.0.1>;tag=1
To: <sip:127.0.0.1>
Call-ID: one
CSeq: 1 OPTIONS
Max-Forwards: 70
Content-Length: 0

"""


async def main(directory: Path) -> None:
    users = directory / "users.toml"
    users.write_text('[users]\nalice = "a password"\n')
    users.chmod(0o600)
    # The words are those of docs/natgate.md. Port 0 takes a free one.
    settings = GateSettings(listen=parse_listen("127.0.0.1:0"), registrar=True, users=users)
    async with await SessionServer.start(settings) as server:
        place = server.listeners[0].local
        print("serving", place)

        # Any phone will do; this one only asks whether somebody is there.
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
            phone.setblocking(False)
            await loop.sock_sendto(phone, OPTIONS.replace("\n", "\r\n").encode(), (str(place.ip), place.port))
            async with asyncio.timeout(5):
                answer, _source = await loop.sock_recvfrom(phone, 4096)
        print("it says", answer.decode().splitlines()[0])

        status = await server.status()
        print(len(status.calls), "calls,", len(status.registrations), "registrations")
        await server.drain(within_s=30)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))
