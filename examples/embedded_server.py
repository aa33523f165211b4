"""A STUN server inside one's own program: start it on loopback, ask it once, stop it.

Run it: python examples/embedded_server.py
"""

import asyncio
import socket
from ipaddress import ip_address

from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import StunServer


async def main() -> None:
    # Port 0 takes a free one. With a second address and port it would serve NAT behaviour tests, too.
    addresses = ServerAddresses(ip_address("127.0.0.1"), port=0)
    async with await StunServer.start(addresses) as server:
        print("serving", *server.addresses.endpoints)

        # Any STUN client will do; this one is a plain socket.
        request = Message(Method.BINDING, MessageClass.REQUEST, transaction_id=b"twelve bytes")
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            await loop.sock_sendto(client, request.encode(), ("127.0.0.1", server.addresses.port))
            async with asyncio.timeout(5):
                data, _source = await loop.sock_recvfrom(client, 2048)
        print("I am seen as", Message.parse(data).mapped_address)

    print(server.summary())


if __name__ == "__main__":
    asyncio.run(main())
