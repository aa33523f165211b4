"""The floors of the house and the rules of its rooms, read off the imports and calls of every file.

The picture is in ARCHITECTURE.md. A rule is a function from one file to what breaks it there. Each rule
is tried on sources that do break it as well, so that a rule that never fails would be noticed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest

PACKAGE = Path(__file__).parents[1] / "nattools"

GROUND = frozenset({"machine", "endpoint", "wire", "errors", "words", "files"})
ROOMS = frozenset({"stun", "upnp", "pcp", "sip"})
ROOMS_BELOW = {"sip": frozenset({"stun"})}  # RFC 5626 has STUN on the SIP port
DOOR_OF_A_ROOM = 2
FLOORS = {  # each imports only from below; two on one floor do not know each other
    **dict.fromkeys(GROUND, 0),
    "net": 1,
    **dict.fromkeys(ROOMS, 1),
    "mapping": 3,
    "binding": 4,
    "blocking": 5,
    "session": 5,
    "lab": 5,
    "cli": 6,
}
DOORS = (  # the files that may open sockets, await, read clocks and log
    "net/*.py",
    "*/client.py",
    "*/server.py",
    "lab/*.py",
    "cli/*.py",
    "mapping/registry.py",
    "mapping/ways/*.py",
    "blocking/*.py",
    "binding/background.py",
    "binding/keeper.py",
    "binding/settling.py",
    "binding/providers/*.py",
    "session/controller/*.py",
    "session/engines/*.py",
    "session/stores/*.py",
    "stun/streams.py",
    "upnp/miniupnpc.py",
    "upnp/wan_connection.py",
)
IMPURE = frozenset(
    {"asyncio", "socket", "ssl", "threading", "subprocess", "time", "random", "secrets", "logging"}
)
SOCKET_MAKERS = frozenset(
    {
        "socket.socket",
        "socketpair",
        "fromfd",
        "create_connection",
        "create_server",
        "create_datagram_endpoint",
        "create_unix_connection",
        "create_unix_server",
        "open_connection",
        "open_unix_connection",
        "start_server",
        "start_unix_server",
    }
)
DRAWERS = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"})
MOST_LINES = 600


@dataclass(frozen=True)
class File:
    """One source file: its path inside the package, and its text."""

    path: str
    source: str

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(ast.parse(self.source, self.path)))

    @property
    def package(self) -> tuple[str, ...]:
        return ("nattools", *PurePosixPath(self.path).parts[:-1])


def is_door(path: str) -> bool:
    """Whether the file at `path` may do I/O."""
    parts = PurePosixPath(path).parts
    patterns = (PurePosixPath(pattern).parts for pattern in DOORS)
    return any(len(p) == len(parts) and all(map(fnmatchcase, parts, p)) for p in patterns)


def imports(file: File) -> Iterator[tuple[str, ...]]:
    """Every name that the file imports, whole: `from a import b` is `a.b`, wherever it stands."""
    for node in file.nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = file.package[: len(file.package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield (*base, *module, alias.name)


def own_imports(file: File) -> Iterator[str]:
    """What it imports of this package, as the path of a file that may be there: `stun/client.py`."""
    for first, *rest in imports(file):
        if first == "nattools":
            path = "/".join(rest)
            parent = "/".join(rest[:-1])
            yield f"{parent}.py" if is_door(f"{parent}.py") and not is_door(f"{path}.py") else f"{path}.py"


def calls(file: File) -> Iterator[str]:
    """What it calls, with the name before the last dot."""
    for node in file.nodes:
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def place(path: str) -> tuple[str, int | None]:
    """The room of a file and its floor; no floor for a room that the picture does not know."""
    room = PurePosixPath(path).with_suffix("").parts[0]
    floor = FLOORS.get(room)
    return room, DOOR_OF_A_ROOM if room in ROOMS and is_door(path) else floor


Rule = Callable[[File], Iterator[str]]


def imports_only_from_below(file: File) -> Iterator[str]:
    """`cli -> session | lab -> binding -> mapping -> doors -> net`, and apart from net: rooms -> ground."""
    if file.path == "__init__.py":  # only names: whatever a program uses, but no program
        yield from (path for path in own_imports(file) if place(path)[0] in ("cli", "lab"))
        return
    room, floor = place(file.path)
    if floor is None:
        yield f"{room}: no floor of that name"
        return
    for path in own_imports(file):
        target, below = place(path)
        known = target == room or (room in GROUND and target in GROUND)
        public_name = room == "cli" and "/" not in path
        allowed = public_name if below is None else (below < floor or known)
        if room in ROOMS and target in ROOMS and target != room:
            allowed = target in ROOMS_BELOW.get(room, ()) and not is_door(path)
        if not allowed:
            yield f"{file.path} imports {path}"


def is_pure_unless_a_door(file: File) -> Iterator[str]:
    """A file that is no door imports no I/O, no clock, no chance, no log, and no door."""
    if is_door(file.path):
        return
    yield from (".".join(name) for name in imports(file) if name[0] in IMPURE)
    if file.path != "__init__.py":
        yield from (path for path in own_imports(file) if is_door(path))


def makes_no_socket_outside_net(file: File) -> Iterator[str]:
    """Only `net` creates sockets."""
    if place(file.path)[0] == "net":
        return
    renamed = {name[-1] for name in imports(file) if ".".join(name) == "socket.socket"}
    for call in calls(file):
        if call in SOCKET_MAKERS or call.rpartition(".")[2] in SOCKET_MAKERS or call in renamed:
            yield call


def prints_only_in_cli(file: File) -> Iterator[str]:
    """Results are printed by programs alone."""
    if place(file.path)[0] != "cli":
        yield from (call for call in calls(file) if call == "print")


def is_no_drawer(file: File) -> Iterator[str]:
    """A file or folder is named after what it is about."""
    parts = PurePosixPath(file.path).with_suffix("").parts
    yield from (part for part in parts if part.strip("_") in DRAWERS)


def fits_one_room(file: File) -> Iterator[str]:
    """Past 600 lines a file is two."""
    lines = len(file.source.splitlines())
    if lines > MOST_LINES:
        yield f"{lines} lines"


RULES: tuple[Rule, ...] = (
    imports_only_from_below,
    is_pure_unless_a_door,
    makes_no_socket_outside_net,
    prints_only_in_cli,
    is_no_drawer,
    fits_one_room,
)
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_house_stands(path: Path) -> None:
    file = File(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    assert {rule.__doc__: found for rule in RULES if (found := list(rule(file)))} == {}


BROKEN = [
    (imports_only_from_below, "errors.py", "import nattools.stun.message"),
    (imports_only_from_below, "endpoint.py", "from nattools.net.udp import UdpSocket"),
    (imports_only_from_below, "net/udp.py", "from nattools.stun.message import Message"),
    (imports_only_from_below, "net/udp.py", "from nattools import stun"),
    (imports_only_from_below, "stun/message.py", "from nattools.net.udp import UdpSocket"),
    (imports_only_from_below, "stun/message.py", "from nattools.net import udp"),
    (imports_only_from_below, "stun/message.py", "from ..net import udp"),
    (imports_only_from_below, "stun/message.py", "from .. import net"),
    (imports_only_from_below, "stun/message.py", "from nattools.pcp.pcp import Map"),
    (imports_only_from_below, "stun/client.py", "from nattools.upnp.client import Igd"),
    (imports_only_from_below, "stun/message.py", "from nattools.sip.message import SipMessage"),
    (imports_only_from_below, "sip/client.py", "from nattools.stun.client import StunClient"),
    (imports_only_from_below, "sip/alg.py", "from nattools.pcp.pcp import Map"),
    (imports_only_from_below, "stun/client.py", "from nattools.upnp import ssdp"),
    (imports_only_from_below, "stun/client.py", "from nattools.mapping.race import Race"),
    (imports_only_from_below, "stun/client.py", "def f():\n    import nattools.cli.output"),
    (imports_only_from_below, "mapping/client.py", "from nattools.binding.model import PublicBinding"),
    (imports_only_from_below, "binding/keeper.py", "from nattools.session.server import run"),
    (imports_only_from_below, "binding/keeper.py", "from nattools.blocking import PublicSocket"),
    (imports_only_from_below, "blocking/public_socket.py", "from nattools.session.server import run"),
    (imports_only_from_below, "session/server.py", "from nattools.lab.nat import NatKind"),
    (imports_only_from_below, "lab/nat.py", "from nattools.session.ports import Ports"),
    (imports_only_from_below, "lab/nat.py", "from nattools.cli import output"),
    (imports_only_from_below, "stun/uri.py", "import nattools"),
    (imports_only_from_below, "cellar/wine.py", ""),
    (imports_only_from_below, "stun/message.py", "from nattools.cellar import wine"),
    (imports_only_from_below, "__init__.py", "from nattools.cli.natcheck import main"),
    (imports_only_from_below, "__init__.py", "from nattools.lab.namespaces import Lab"),
    *((is_pure_unless_a_door, "stun/message.py", f"import {name}") for name in sorted(IMPURE)),
    (is_pure_unless_a_door, "endpoint.py", "from time import monotonic"),
    (is_pure_unless_a_door, "stun/__init__.py", "import asyncio.events as events"),
    (is_pure_unless_a_door, "sip/uri.py", "def f():\n    from random import choice"),
    (is_pure_unless_a_door, "binding/model.py", "import logging"),
    (is_pure_unless_a_door, "session/proxy.py", "import asyncio"),
    (is_pure_unless_a_door, "stun/deep/client.py", "import asyncio"),
    (is_pure_unless_a_door, "stun/discovery.py", "from nattools.stun.client import StunClient"),
    (is_pure_unless_a_door, "stun/discovery.py", "from nattools.stun import client"),
    (is_pure_unless_a_door, "stun/discovery.py", "from . import client"),
    (is_pure_unless_a_door, "mapping/race.py", "from nattools.upnp.client import Igd"),
    (makes_no_socket_outside_net, "stun/client.py", "socket.socket(socket.AF_INET)"),
    (makes_no_socket_outside_net, "cli/stund.py", "from socket import socket\nsocket()"),
    (makes_no_socket_outside_net, "stun/client.py", "await asyncio.open_connection('::1', 1)"),
    (makes_no_socket_outside_net, "stun/server.py", "await loop.create_datagram_endpoint(f)"),
    (makes_no_socket_outside_net, "stun/server.py", "await get_running_loop().create_server(f)"),
    (
        makes_no_socket_outside_net,
        "stun/server.py",
        "from asyncio import start_server\nawait start_server(f)",
    ),
    (makes_no_socket_outside_net, "lab/holder.py", "a, b = socket.socketpair()"),
    (makes_no_socket_outside_net, "blocking/public_socket.py", "socket.socket(AF_INET, SOCK_DGRAM)"),
    (prints_only_in_cli, "stun/server.py", "def f():\n    print('started')"),
    (prints_only_in_cli, "lab/nat.py", "print()"),
    (is_no_drawer, "stun/utils.py", ""),
    (is_no_drawer, "helpers/dns.py", ""),
    (is_no_drawer, "binding/_manager.py", ""),
    (fits_one_room, "stun/message.py", "\n" * 601),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_a_broken_rule_is_noticed(rule: Rule, path: str, source: str) -> None:
    assert list(rule(File(path, source)))


KEPT = [
    (imports_only_from_below, "machine.py", "from nattools.endpoint import Endpoint"),
    (imports_only_from_below, "net/runner.py", "from nattools.machine import Machine\nfrom . import udp"),
    (imports_only_from_below, "stun/client.py", "from nattools.net.udp import UdpSocket"),
    (imports_only_from_below, "stun/client.py", "from nattools.stun import message\nfrom .uri import Uri"),
    (imports_only_from_below, "mapping/client.py", "from nattools.upnp.client import Igd"),
    (imports_only_from_below, "binding/providers/stun.py", "from nattools.stun.client import StunClient"),
    (imports_only_from_below, "sip/keepalive.py", "from nattools.stun.message import Message"),
    (imports_only_from_below, "session/proxy.py", "from nattools.sip import message"),
    (imports_only_from_below, "session/server.py", "from nattools.binding.keeper import Keeper"),
    (imports_only_from_below, "blocking/public_socket.py", "from nattools.binding.keeper import Keeper"),
    (imports_only_from_below, "lab/topology.py", "from nattools.errors import LabError"),
    (imports_only_from_below, "cli/natlab.py", "from nattools.lab.nat import NatKind"),
    (imports_only_from_below, "cli/natcheck.py", "from nattools import __version__"),
    (imports_only_from_below, "__init__.py", "from nattools.stun.client import StunClient"),
    (is_pure_unless_a_door, "stun/message.py", "import struct, zlib\nfrom nattools.stun import uri"),
    (is_pure_unless_a_door, "session/proxy.py", "from nattools.binding.model import PublicBinding"),
    *((is_pure_unless_a_door, door.replace("*", "stun"), "import asyncio, logging") for door in DOORS),
    (makes_no_socket_outside_net, "net/udp.py", "socket.socket()"),
    (makes_no_socket_outside_net, "stun/client.py", "self.socket(); UdpSocket.open()"),
    (prints_only_in_cli, "cli/output.py", "print('verdict')"),
    (prints_only_in_cli, "lab/nat.py", "console.print('verdict'); pprint()"),
    (is_no_drawer, "stun/commonplace.py", ""),
    (fits_one_room, "stun/message.py", "\n" * 600),
]


@pytest.mark.parametrize(("rule", "path", "source"), KEPT)
def test_a_kept_rule_is_no_alarm(rule: Rule, path: str, source: str) -> None:
    assert not list(rule(File(path, source)))
