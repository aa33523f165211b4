"""A real VPN in a laboratory: wireguard-go between the client, through its NAT, and the public side.

::

    client ----------- NAT ----------- public side, 203.0.113.10:51820
    10.8.0.2  ===== the tunnel =====   10.8.0.1   the VPN's server
                                       10.8.1.20  a stranger, in the network behind it

A host beyond the tunnel sees the client as 10.8.0.2, and nobody else can reach that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from nattools.lab.topology import SERVER
from tests.lab.conftest import PATIENCE_SECONDS, Lines
from tests.lab.network_changes import configure, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nattools.lab.namespaces import Host, Lab, Process

INTERFACE = "wg0"
CLIENT_ADDRESS = IPv4Address("10.8.0.2")
SERVER_ADDRESS = IPv4Address("10.8.0.1")
STRANGER_ADDRESS = IPv4Address("10.8.1.20")

_PORT = 51820

# Becomes wireguard-go, once something beside it waits to configure it. Its control socket is a file of
# /var/run; in a mount namespace with another one, laboratories side by side do not meet, and none is left.
_START = """
mount -t tmpfs none "$(realpath /var/run)" || exit
mkdir /var/run/wireguard
(
    # its socket is there a moment before it listens, and wg would turn to the kernel
    until [ -S "/var/run/wireguard/$1.sock" ] && wg show "$1" >/dev/null 2>&1; do
        kill -0 $$ || exit
        sleep 0.01
    done
    printf '%s' "$2" | wg setconf "$1" /dev/stdin && echo ready
) &
exec wireguard-go --foreground "$1" </dev/null
"""

# Nobody listens on that port, and the other end says so: a packet went through the tunnel each way.
_ROUND_TRIP = """
import socket, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.settimeout(0.1)
probe.connect((sys.argv[1], 9))
for _ in range(int(sys.argv[2])):
    try:
        probe.send(b"?")
        probe.recv(1)
    except TimeoutError:
        continue
    except ConnectionRefusedError:
        raise SystemExit
raise SystemExit("nothing comes through the tunnel")
"""


def why_no_vpn() -> str | None:
    """Say why no laboratory on this machine can have a VPN; None when one can."""
    for program in ("wireguard-go", "wg"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt install wireguard-go wireguard-tools)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened: a tunnel needs root, and a kernel with tun"
    return None


@dataclass(frozen=True, slots=True)
class Vpn:
    """A tunnel that stands."""

    lab: Lab
    client: Process
    server: Process

    def unplug(self) -> None:
        """Take the client's end of the tunnel down; it keeps its address."""
        configure(self.lab.client, f"link set {INTERFACE} down")

    def plug_in(self) -> None:
        """Bring the client's end up again, with its route."""
        configure(self.lab.client, f"link set {INTERFACE} up", _route_to_stranger())

    def delete(self) -> None:
        """Make the client's end of the tunnel vanish, as when its program ends."""
        configure(self.lab.client, f"link del {INTERFACE}")

    def change_address(self, address: str) -> None:
        """Give the client another address of 10.8.0.0/24 in the tunnel."""
        configure(
            self.lab.client,
            f"addr del {CLIENT_ADDRESS}/24 dev {INTERFACE}",
            f"addr add {address}/24 dev {INTERFACE}",
            _route_to_stranger(),
        )


@contextmanager
def wireguard(lab: Lab, *, attempts: int = 50) -> Iterator[Vpn]:
    """Dig a tunnel through the NAT of a laboratory. It has carried packets both ways when this returns.

    Where it has not after so many attempts, 0.1 s each, that is an `AssertionError`.
    """
    keys = [_wg("genkey") for _ in range(2)]
    to_client, to_server = (_wg("pubkey", key).strip() for key in keys)
    # The server takes whatever address of the tunnel the client has.
    at_server = f"ListenPort = {_PORT}\n[Peer]\nPublicKey = {to_client}\nAllowedIPs = 10.8.0.0/24\n"
    at_client = (
        f"[Peer]\nPublicKey = {to_server}\nAllowedIPs = 10.8.0.0/16\n"
        f"Endpoint = {SERVER.with_port(_PORT)}\nPersistentKeepalive = 5\n"
    )
    with (
        _interface(lab.public, f"[Interface]\nPrivateKey = {keys[1]}{at_server}") as server,
        _interface(lab.client, f"[Interface]\nPrivateKey = {keys[0]}{at_client}") as client,
    ):
        configure(
            lab.public,
            f"addr add {SERVER_ADDRESS}/24 dev {INTERFACE}",
            f"addr replace {STRANGER_ADDRESS}/32 dev lo",  # an earlier tunnel may have left it
            f"link set {INTERFACE} up",
        )
        configure(
            lab.client,
            f"addr add {CLIENT_ADDRESS}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            _route_to_stranger(),
        )
        run(lab.client, [sys.executable, "-I", "-S", "-c", _ROUND_TRIP, str(SERVER_ADDRESS), str(attempts)])
        yield Vpn(lab, client, server)


def _wg(command: str, text: str = "") -> str:
    """Have `wg` compute something, for which it needs no network."""
    return subprocess.run(["wg", command], input=text, capture_output=True, text=True, check=True).stdout


def _route_to_stranger() -> str:
    return f"route replace {STRANGER_ADDRESS}/32 dev {INTERFACE}"


@contextmanager
def _interface(host: Host, configuration: str) -> Iterator[Process]:
    with tempfile.TemporaryFile("w+") as log:
        process = host.popen(
            ["unshare", "--mount", "sh", "-c", _START, "sh", INTERFACE, configuration],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            said = Lines(process).next()
            log.seek(0)
            assert said == "ready", f"no tunnel on the {host.name}: {log.read()}"
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE_SECONDS)
            assert process.stdout is not None
            process.stdout.close()
