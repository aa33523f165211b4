"""A laboratory that stands: its hosts are network namespaces, and commands can be run on them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nattools.errors import LabError
from nattools.lab import holder
from nattools.lab.igd import Igd, RunningIgd
from nattools.lab.nat import NatKind
from nattools.lab.topology import ALTERNATE_SERVER, SERVER, SERVER_ENDPOINTS, SIP_PORT, Topology

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from nattools.endpoint import Endpoint

_SERVER_SECONDS = 30.0  # of a busy machine; one that ends before is noticed at once
_CLOSE_SECONDS = 5.0
_POLL_SECONDS = 0.005
_PACKAGES = {"ip": "iproute2", "nft": "nftables", "miniupnpd": "miniupnpd-nftables"}
_TCP_LISTEN = "0A"  # net/tcp_states.h, as /proc/net/tcp writes it

_File = int | IO[str] | IO[bytes] | None


class Process(subprocess.Popen[str]):
    """A command in a laboratory. Its status is the command's own, and signals reach the command."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, SIGKILL and SIGSTOP included, to the command.

        Other signals are passed on by the process between, which ends as the command ends. These two
        cannot be, and killing that process would leave the command's zombie to the machine's init, which may
        be slow to reap it.
        """
        if sig in (signal.SIGKILL, signal.SIGSTOP):
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                    os.kill(int(child), sig)
                    return
        super().send_signal(sig)


class Host:
    """One host of a laboratory: what is run here sees its network and nothing else.

    `network` is its network namespace, as setns(2) takes it from whoever may enter it.
    """

    def __init__(self, name: str, entry: Sequence[str], network: Path) -> None:
        self.name = name
        self.network = network
        self._entry = entry
        self._started: list[Process] = []

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: _File = None,
        stdout: _File = None,
        stderr: _File = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        foreground: bool = False,
    ) -> Process:
        """Start a command, as `subprocess.Popen` does, with streams of text.

        A command in the foreground stays in the caller's process group, so that the terminal's keys reach it,
        and has the caller's open files. Status 127 says that there is no such command, 126 that it cannot be
        run. It ends with the laboratory at the latest.
        """
        process = Process(
            [*self._entry, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            text=True,
            start_new_session=not foreground,
            close_fds=not foreground,
        )
        self._started = [*(other for other in self._started if other.poll() is None), process]
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        input: str = "",  # noqa: A002 - the name that subprocess.run has
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return what it said. Raises `subprocess.TimeoutExpired`."""
        pipe = subprocess.PIPE
        with self.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=cwd) as process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def reap(self, timeout: float) -> None:
        """Wait for the commands that the laboratory's end has ended."""
        for process in self._started:
            process.wait(timeout)


class Lab:
    """The network of a topology, as long as the `with` block lasts, and no longer than this process.

    The public side runs `stund` on both addresses unless `start_server` is false; with `sip_reflector` it
    reflects SIP, too, and serves UDP on port 5060 and the topology's `sip_alg_ports` as well. The router runs
    miniupnpd where the topology has an `igd`. Entering raises `LabError` when the network cannot be built or
    a server does not come up. The hosts are there inside the block only, `inner_router` where there is a
    `second_nat`.
    """

    client: Host
    router: Host
    public: Host
    inner_router: Host | None = None
    server: Process | None = None

    def __init__(self, topology: Topology, *, start_server: bool = True, sip_reflector: bool = False) -> None:
        self.topology = topology
        self._start_server = start_server
        self._sip_reflector = sip_reflector
        self._process: subprocess.Popen[str] | None = None
        self._holder = 0
        self._hosts: dict[str, Host] = {}
        self._igd: RunningIgd | None = None

    @property
    def igd(self) -> RunningIgd:
        """The daemon on the router that can be asked for mappings. Raises `LabError` where there is none."""
        if self._igd is None:
            raise LabError("nobody on this laboratory's router grants mappings: give its topology an Igd")
        return self._igd

    def __enter__(self) -> Lab:
        try:
            self._build()
            if self.topology.igd is not None:
                self._igd = RunningIgd(self.topology.igd, self.router, _find_tool)
                self._igd.start()
            if self._start_server:
                self._serve()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the laboratory, and the network with them."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._holder or process.pid, signal.SIGKILL)
            process.wait(_CLOSE_SECONDS)
        for host in self._hosts.values():
            host.reap(_CLOSE_SECONDS)
        if self._igd is not None:
            self._igd.close()

    def wait_until_bound(self, process: Process, endpoints: Iterable[Endpoint], *, tcp: bool = False) -> None:
        """Wait until a server on the public side has sockets on all the endpoints.

        Raises `LabError` when its process ends instead, or has not bound them all after 30 seconds.
        """
        wanted = {endpoint: _local_addresses(endpoint) for endpoint in endpoints}
        deadline = time.monotonic() + _SERVER_SECONDS
        while True:
            bound = self._bound(tcp)
            missing = [endpoint for endpoint, addresses in wanted.items() if not addresses & bound]
            if not missing:
                return
            if process.poll() is not None:
                raise LabError(f"the server on the public side ended with status {process.returncode}")
            if time.monotonic() > deadline:
                protocol = "TCP" if tcp else "UDP"
                raise LabError(f"no server on {protocol} {missing[0]} after {_SERVER_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _bound(self, tcp: bool) -> set[str]:
        # Lines of "slot local_address remote_address state ..."
        table = Path(f"/proc/{self._holder}/net/{'tcp' if tcp else 'udp'}").read_text()
        rows = [line.split() for line in table.splitlines()[1:]]
        return {row[1] for row in rows if not tcp or row[3] == _TCP_LISTEN}

    def _build(self) -> None:
        if sys.platform != "linux":
            raise LabError("the NAT laboratory needs Linux: it is made of network namespaces and nftables")
        plan = {
            **{tool: _find_tool(tool) for tool in ("ip", "nft")},
            "hosts": [dataclasses.asdict(host) for host in self.topology.hosts],
            "links": [dataclasses.asdict(link) for link in self.topology.links],
        }
        program = [sys.executable, "-I", "-S", holder.__file__]
        # In a session of its own, or the Ctrl-C that is meant for a command would end the laboratory, too.
        # The pipe to its stdin is its life: this process has the only other end, and no child inherits it.
        try:
            self._process = subprocess.Popen(
                [*program, "hold"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(plan) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise LabError(f"the laboratory's own process cannot be started: {error}") from error
        said = self._process.stdout.read()
        try:
            report = json.loads(said)
        except ValueError as error:
            raise LabError(f"the laboratory's own process failed: {' '.join(said.split())}") from error
        if "error" in report:
            raise LabError(f"the NAT laboratory cannot be built: {report['error']}")
        self._holder = report["holder"]
        self._hosts = {
            name: Host(
                name,
                [*program, "enter", str(self._holder), str(network)],
                Path(f"/proc/{self._holder}/fd/{network}"),
            )
            for name, network in report["networks"].items()
        }
        self.client, self.router, self.public = (self._hosts[name] for name in ("client", "router", "public"))
        self.inner_router = self._hosts.get("inner-router")

    def _serve(self) -> None:
        addresses = [str(endpoint.ip) for endpoint in (SERVER, ALTERNATE_SERVER)]
        options = []
        if self._sip_reflector:
            ports = dict.fromkeys((SIP_PORT, *self.topology.sip_alg_ports))
            options = ["--sip-reflector", *(f"--sip-port={port}" for port in ports)]
        with tempfile.TemporaryFile("w+") as log:
            self.server = self.public.popen(
                [sys.executable, "-P", "-m", "nattools.cli.stund", *options, *addresses],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                for tcp in (False, True):
                    self.wait_until_bound(self.server, SERVER_ENDPOINTS, tcp=tcp)
            except LabError as error:
                log.seek(0)
                said = log.read().strip() or "it said nothing"
                raise LabError(f"{error}: {said.splitlines()[-1]}") from error


def why_unavailable() -> str | None:
    """Say why no laboratory can be built on this machine, by trying; None when one can."""
    try:
        with Lab(Topology(NatKind.FULL_CONE), start_server=False):
            return None
    except LabError as error:
        return str(error)


def why_no_igd() -> str | None:
    """Say why no laboratory on this machine can have an `Igd`, by trying; None when one can."""
    try:
        with Lab(Topology(NatKind.PORT_RESTRICTED_CONE, igd=Igd()), start_server=False):
            return None
    except LabError as error:
        return str(error)


def _local_addresses(endpoint: Endpoint) -> set[str]:
    """How /proc/net writes the sockets that serve it: by its address, a number in host byte order, or any."""
    address = int.from_bytes(endpoint.ip.packed, sys.byteorder)
    return {f"{address:08X}:{endpoint.port:04X}", f"{0:08X}:{endpoint.port:04X}"}


def _find_tool(name: str) -> str:
    """Find a program, also in the directories that an ordinary user's PATH may leave out."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        package = _PACKAGES[name]
        raise LabError(
            f"the NAT laboratory needs the program {name}: install {package} (apt install {package})"
        )
    return found
