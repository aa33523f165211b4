"""A router that can be asked for mappings: miniupnpd beside the kernel's NAT (UPnP-IGD, NAT-PMP, PCP).

The daemon writes its rules into the router's own nftables table. It has no lease file and no pid file: what
it knows ends with it, and nothing of it is left on the machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from nattools.errors import LabError
from nattools.lab.nat import LAN_INTERFACE, WAN_INTERFACE, NatKind, chain, loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nattools.lab.namespaces import Host, Process

HTTP_PORT = 5000
SSDP_PORT = 1900
PCP_PORT = 5351

_ANNOUNCEMENT_PORT = 5350

_TABLE = "lab"
_CHAINS = ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd")
_UUID = "6e617474-6f6f-4c73-8c61-626f7261746f"
_LAN = IPv4Network("192.168.0.0/24")
_ROUTER = _LAN[1]
_PUBLIC = IPv4Network("203.0.113.0/24")

_READY_SECONDS = 10.0
_STOP_SECONDS = 10.0
_STOP_AGAIN_SECONDS = 0.2
_TOOL_SECONDS = 10.0
_POLL_SECONDS = 0.005
_TCP_LISTEN = "0A"  # net/tcp_states.h, as /proc/net/tcp writes it
_SSDP_GROUP = IPv4Address("239.255.255.250")

# It can neither be read nor written. Left out, it would be one of the machine; a real file would outlive a
# kill; and a device would be deleted when the daemon ends.
_NO_PID_FILE = "/proc/self/no-pid-file"

# A connection that conntrack knows goes on without its mapping, which no reboot would let it. This deletes
# them all: IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK without a tuple (linux/netfilter/nfnetlink*.h).
_FORGET_CONNECTIONS = """
import socket, struct
netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
netfilter.send(struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 1 | 4, 1, 0, 0, 0, 0))
raise SystemExit(-struct.unpack("=i", netfilter.recv(4096)[16:20])[0])
"""

# The daemon remembers its rules as it last read them, and would go on reporting and renewing what is gone. It
# reads a chain again after it wrote there. So the router makes a mapping for itself and deletes it (RFC 6886
# §3.3, §3.4); where mappings are refused, there was none to forget.
_READ_AGAIN = f"""
import socket, struct
daemon = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
daemon.settimeout(5)
daemon.connect(("{_ROUTER}", {PCP_PORT}))
for external, lifetime in ((65535, 60), (0, 0)):
    daemon.send(struct.pack("!BBHHHI", 0, 1, 0, 65535, external, lifetime))
    daemon.recv(1100)
"""


@dataclass(frozen=True, slots=True)
class Igd:
    """What the router of a laboratory says and grants when its client asks for mappings.

    `version` is that of its root description, InternetGatewayDevice:1 or :2. `external_address` is claimed
    instead of `wan_address`, as by a router with a second NAT before it that does not know. `secure` lets a
    host map ports to itself only. A lease that is asked for with NAT-PMP or PCP ends up between
    `min_lease_s` and `max_lease_s`. Raises `LabError` for a router that cannot be.
    """

    version: int = 2
    wan_address: str = "11.22.33.2"
    external_address: str | None = None
    secure: bool = True
    upnp: bool = True
    pcp: bool = True  # and NAT-PMP: the daemon has one switch for both
    min_lease_s: int = 120
    max_lease_s: int = 86400
    notify_interval_s: int = 60

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise LabError(f"there is no InternetGatewayDevice:{self.version}: it is 1 or 2")
        if not self.upnp and not self.pcp:
            raise LabError("a router that speaks neither UPnP nor PCP needs no Igd")
        if not 0 < self.min_lease_s <= self.max_lease_s:
            raise LabError(f"no lease is between {self.min_lease_s} and {self.max_lease_s} seconds")
        if self.external_address is not None:
            _address(self.external_address)
        self.check_wan_address(self.wan_address)

    @property
    def wan_network(self) -> IPv4Network:
        """The segment between the router and the public side."""
        return IPv4Network(f"{_address(self.wan_address)}/24", strict=False)

    @property
    def neighbour(self) -> str:
        """The router's next hop: the address of the public side on that segment."""
        return str(self.wan_network[1])

    def check_wan_address(self, address: str) -> None:
        """Raise `LabError` unless the router can have this address on its WAN interface."""
        network = self.wan_network
        if network in (_LAN, _PUBLIC):
            raise LabError(f"a WAN address in {network} is in use elsewhere in the laboratory")
        if _address(address) not in list(network.hosts())[1:]:
            raise LabError(f"{address} is no WAN address: it can be from {network[2]} to {network[-2]}")


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise LabError(f"{text!r} is no IPv4 address") from error


def igd_ruleset(igd: Igd, kind: NatKind, *, loss_percent: float = 0) -> str:
    """Write the ruleset of a router with an `Igd`, for `nft -f -`.

    The daemon fills the empty chains, and makes none itself. IPv6 is filtered and not translated.
    """
    mapping, prerouting, postrouting = _CHAINS
    masquerade = f"meta nfproto ipv4 oifname {WAN_INTERFACE}"
    source_nat = [f"jump {postrouting}", f"{masquerade} masquerade"]
    if kind is NatKind.SYMMETRIC:
        source_nat.insert(1, f"{masquerade} meta l4proto udp masquerade fully-random")
    forward = [
        *loss(loss_percent),
        "ct state established,related accept",
        f"iifname {LAN_INTERFACE} accept",
        f"jump {mapping}",
    ]
    # The router serves its LAN. For what comes from outside see the rulesets without a daemon.
    to_router = [f"iifname {WAN_INTERFACE} meta l4proto {{ tcp, udp }} drop"]
    from_router = []
    if not igd.pcp:
        # Told not to speak PCP, the daemon still does over IPv6. So it always speaks it, to the router alone.
        to_router.append(f"iifname {LAN_INTERFACE} udp dport {PCP_PORT} reject")
        from_router.append(f"oifname {LAN_INTERFACE} udp dport {_ANNOUNCEMENT_PORT} drop")
    chains = [
        *(f"chain {name} {{ }}" for name in _CHAINS),
        chain("forward", "filter hook forward", "filter", forward, "drop"),
        chain("input", "filter hook input", "filter", to_router),
        chain("output", "filter hook output", "filter", from_router),
        chain("prerouting", "nat hook prerouting", "dstnat", [f"jump {prerouting}"]),
        chain("postrouting", "nat hook postrouting", "srcnat", source_nat),
    ]
    return "\n".join([f"table inet {_TABLE} {{", *chains, "}", ""])


def configuration(igd: Igd) -> str:
    """Write the configuration of miniupnpd 2.2 and 2.3, which ends on a key that it does not know."""
    settings = {
        "ext_ifname": WAN_INTERFACE,
        **({} if igd.external_address is None else {"ext_ip": igd.external_address}),
        "listening_ip": LAN_INTERFACE,  # the interface: by address it would not serve IPv6
        "http_port": HTTP_PORT,
        "enable_upnp": _yes_or_no(igd.upnp),
        "enable_natpmp": "yes",
        "force_igd_desc_v1": _yes_or_no(igd.version == 1),
        "secure_mode": _yes_or_no(igd.secure),
        "min_lifetime": igd.min_lease_s,
        "max_lifetime": igd.max_lease_s,
        "notify_interval": igd.notify_interval_s,
        "uuid": _UUID,
        "upnp_table_name": _TABLE,
        "upnp_nat_table_name": _TABLE,
    }
    # Without these lines the daemon allows everything, the ports below 1024 included.
    rules = [f"allow 1024-65535 {_LAN} 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535"]
    return "\n".join([*(f"{key}={value}" for key, value in settings.items()), *rules, ""])


def _yes_or_no(flag: bool) -> str:
    return "yes" if flag else "no"


class RunningIgd:
    """The miniupnpd of a laboratory, and what can happen to a router. Every method may raise `LabError`."""

    def __init__(self, igd: Igd, router: Host, find_tool: Callable[[str], str]) -> None:
        self.wan_address = igd.wan_address
        self._igd = igd
        self._router = router
        self._find_tool = find_tool
        self._program = find_tool("miniupnpd")
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - open as long as the daemon may write
        self._process: Process | None = None
        self._starts = 0

    def start(self) -> None:
        """Start the daemon, as a router boots: without a mapping, at epoch 0, answering on return."""
        if self._process is not None and self._process.poll() is None:
            raise LabError("miniupnpd runs already")
        if self._starts > 0:
            self._clear()
        elif not _is_for_nftables(self._program):
            raise LabError(
                f"{self._program} is not built for nftables: install miniupnpd-nftables in its place"
                " (apt install miniupnpd-nftables)"
            )
        self._starts += 1
        with tempfile.TemporaryFile("w+") as conf:
            conf.write(configuration(self._igd))
            conf.seek(0)
            # BOOTID grows with every boot (UDA 2.0 §1.2.2). For 1 the daemon takes the time, in seconds.
            self._process = self._router.popen(
                [
                    self._program,
                    "-d",
                    "-f",
                    "/proc/self/fd/0",
                    "-P",
                    _NO_PID_FILE,
                    "-b",
                    str(1 + self._starts),
                ],
                stdin=conf.fileno(),
                stdout=self._log.fileno(),
                stderr=self._log.fileno(),
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                raise LabError(
                    f"miniupnpd ended with status {self._process.returncode}: {self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise LabError(
                    f"miniupnpd does not answer after {_READY_SECONDS:.0f} s: {self._last_words()}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End the daemon in order: it says farewell (ssdp:byebye). Its mappings stay: they are rules."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the daemon without a word."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Reboot: the daemon ends in order, mappings and connections are gone, and it starts at epoch 0."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """Lose all mappings, pinholes and connections, and announce nothing; the epoch goes on.

        Subscribers to events are told the number of mappings. The daemon still believes in what PEER made.
        """
        self._running()
        self._clear()
        self._run([sys.executable, "-I", "-S", "-c", _READ_AGAIN])

    def _clear(self) -> None:
        commands = [f"flush chain inet {_TABLE} {name}" for name in _CHAINS]
        self._run([self._find_tool("nft"), "-f", "-"], "\n".join([*commands, ""]))
        self._run([sys.executable, "-I", "-S", "-c", _FORGET_CONNECTIONS])

    def change_wan_address(self, address: str) -> None:
        """Give the router another address of the same network, and take away the one it has."""
        self._igd.check_wan_address(address)
        if address == self.wan_address:
            raise LabError(f"{address} is the WAN address already")
        changes = (f"addr add {address}/24", f"addr del {self.wan_address}/24")
        lines = [f"{change} dev {WAN_INTERFACE}\n" for change in changes]
        self._run([self._find_tool("ip"), "-batch", "-"], "".join(lines))
        self.wan_address = address

    def stall(self) -> None:
        """Make the daemon deaf and mute, as a busy router is; mappings go on."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stalled daemon go on; it answers what has come in meanwhile."""
        self._running().send_signal(signal.SIGCONT)

    @property
    def returncode(self) -> int | None:
        """How the daemon ended, as `subprocess` says it; None while it runs."""
        return None if self._process is None else self._process.poll()

    def log(self) -> str:
        """What the daemon has said since it first started."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def close(self) -> None:
        """Give up the log, when the laboratory has ended the daemon."""
        self._log.close()

    def _running(self) -> Process:
        if self._process is None or self._process.poll() is not None:
            raise LabError("miniupnpd does not run")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            # Again and again: the daemon looks for the signal and then waits for a datagram, for up to
            # notify_interval_s. One that comes in between is not seen until then.
            process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_AGAIN_SECONDS)
                return
        raise LabError(f"miniupnpd takes no notice of {how.name}")

    def _answers(self) -> bool:
        """Whether the daemon has all its sockets, from when on the kernel keeps for it what comes in."""
        assert self._process is not None
        wrapper = self._process.pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{wrapper}/task/{wrapper}/children").read_text().split():
                network = Path(f"/proc/{child}/net")
                return _is_bound(network, "udp", PCP_PORT) and (
                    not self._igd.upnp
                    or (
                        _is_bound(network, "udp", SSDP_PORT)
                        and _is_bound(network, "tcp", HTTP_PORT)
                        and f"{int.from_bytes(_SSDP_GROUP.packed, sys.byteorder):08X}"
                        in (network / "igmp").read_text()
                    )
                )
        return False

    def _last_words(self) -> str:
        lines = self.log().split("\n")
        said = [re.sub(r"^miniupnpd\[\d+\]: ", "", line) for line in lines if line.strip()]
        return said[-1] if said else "it said nothing"

    def _run(self, argv: Sequence[str], text: str = "") -> str:
        tool = os.path.basename(argv[0])
        try:
            done = self._router.run(argv, timeout=_TOOL_SECONDS, input=text)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{tool} hangs on the router") from error
        if done.returncode:
            said = done.stderr.splitlines()[-1:] or [f"status {done.returncode}"]
            raise LabError(f"{tool} failed on the router: {said[0]}")
        return done.stdout


def _is_for_nftables(program: str) -> bool:
    """Whether a miniupnpd keeps its mappings in nftables, as it says itself."""
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{program} does not tell its version: {error}") from error
    return b"nftables" in done.stdout


def _is_bound(network: Path, protocol: str, port: int) -> bool:
    """Whether a socket has `port` on any address, by lines of "slot local_address remote_address state"."""
    for table in (network / protocol, network / f"{protocol}6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            rows = [line.split() for line in table.read_text().splitlines()[1:]]
            if any(
                row[1].endswith(f":{port:04X}") and (protocol == "udp" or row[3] == _TCP_LISTEN)
                for row in rows
            ):
                return True
    return False
