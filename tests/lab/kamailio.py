"""Kamailio on the public side of a laboratory: a registrar and proxy that knows nothing of NATs.

It sends where Contact and Via say, as RFC 3261 has it. So what comes through it was right when it was sent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from nattools.errors import LabError
from nattools.lab.topology import PUBLIC_INTERFACE, STRANGER
from tests.lab.conftest import PATIENCE_SECONDS, endpoint_of, next_datagram, opened_sockets
from tests.lab.network_changes import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nattools.lab.namespaces import Lab

REGISTRAR = STRANGER.with_port(5060)

# An ordinary user's PATH may leave out where Debian puts it.
_PROGRAM = shutil.which("kamailio", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
# Asked to end, it waits for its children, now and then for a minute. In a PID namespace they go with it.
_ALL_AT_ONCE = ("unshare", "--pid", "--fork", "--kill-child")
_MODULES = (
    *("tm", "sl", "rr", "pv", "maxfwd", "siputils", "textops"),
    *("usrloc", "registrar", "auth", "stun"),
)
_MODULE_PATHS = (
    *Path("/usr/lib").glob("*-linux-gnu*/kamailio/modules"),
    *Path("/usr/lib").glob("kamailio/modules"),
    *Path("/usr/lib64").glob("kamailio/modules"),
)

# Nothing here fixes anything: no nathelper, no force_rport, and nobody's address is rewritten.
_ROUTES = """
request_route {
    if (!mf_process_maxfwd_header("10")) { sl_send_reply("483", "Too Many Hops"); exit; }
    if (is_method("CANCEL")) { if (t_check_trans()) t_relay(); exit; }
    if (has_totag()) {
        if (loose_route()) { route(GRUU); t_relay(); exit; }
        if (is_method("ACK")) { if (t_check_trans()) t_relay(); exit; }
        sl_send_reply("404", "Not here"); exit;
    }
    t_check_trans();
    if (is_method("OPTIONS") && $hdr(Subject) == "where") {
        lookup("location"); sl_send_reply("200", "$ru"); exit;
    }
    route(CHALLENGE);
    remove_hf("Route");
    if (is_method("INVITE|SUBSCRIBE")) record_route();
    if (is_method("REGISTER")) { if (!save("location")) sl_reply_error(); exit; }
    if (uri != myself) { t_relay(); exit; }
    if (is_method("OPTIONS") && $rU == $null) { sl_send_reply("200", "OK"); exit; }
    if (!lookup("location")) { sl_send_reply("404", "Not Found"); exit; }
    if (!t_relay()) sl_reply_error();
}
"""
# A phone may have its GRUU for its Contact, and whoever gave it knows where that leads (RFC 5627 §3.4).
_RESOLVE_GRUU = 'if (uri == myself && !lookup("location")) { sl_send_reply("404", "Not Found"); exit; }'
_CHALLENGE_REGISTER = """
    if (is_method("REGISTER") && !pv_www_authenticate("REALM", "PASSWORD", "0")) {
        www_challenge("REALM", "1"); exit;
    }
"""
_CHALLENGE_INVITE = {
    401: _CHALLENGE_REGISTER.replace("REGISTER", "INVITE"),
    407: """
    if (is_method("INVITE") && !pv_proxy_authenticate("REALM", "PASSWORD", "0")) {
        proxy_challenge("REALM", "1"); exit;
    }
""",
}


_WHERE = """OPTIONS sip:{user}@{server} SIP/2.0
Via: SIP/2.0/UDP {local};branch=z9hG4bKwhere{number}
From: <sip:test@{server}>;tag=where
To: <sip:{user}@{server}>
Call-ID: where-{user}
CSeq: {number} OPTIONS
Max-Forwards: 9
Subject: where
Content-Length: 0

"""
_POLL_S = 0.02


def why_no_kamailio() -> str | None:
    """Say why there can be no kamailio here; None when there can."""
    if _PROGRAM is None or not _MODULE_PATHS:
        return "kamailio is not installed (apt install kamailio)"
    return None


@contextmanager
def kamailio(
    lab: Lab,
    *,
    password: str | None = None,
    call_challenge: int | None = 407,
    unanswered_s: float = 4,
    gruu: bool = False,
    path: bool = False,
) -> Iterator[None]:
    """Serve at `REGISTRAR`, over UDP and TCP, and answer STUN there, as long as the block lasts.

    With a `password`, which is then everybody's, it challenges REGISTER by 401, and INVITE by
    `call_challenge`: 401, 407 or not at all. A request that nobody answers for `unanswered_s` is answered by
    408. With `gruu` it gives each phone that asks an address of its own (RFC 5627); with `path` it knows
    RFC 3327. What is sent to a private address is lost, as on the Internet. Raises `AssertionError` where
    kamailio does not come up.
    """
    assert _PROGRAM is not None
    lose_what_has_no_route(lab)
    with tempfile.TemporaryDirectory(prefix="kamailio-") as directory:
        file = Path(directory, "kamailio.cfg")
        file.write_text(_configuration(password, call_challenge, unanswered_s, gruu=gruu, path=path))
        log = Path(directory, "log")
        with log.open("w") as written:
            process = lab.public.popen(
                [*_ALL_AT_ONCE, _PROGRAM, *f"-DD -E -f {file} -Y {directory} -m 32 -M 4".split()],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
            )
        try:
            try:
                for tcp in (False, True):
                    lab.wait_until_bound(process, [REGISTRAR], tcp=tcp)
            except LabError as error:
                raise AssertionError(f"{error}: {log.read_text()}") from error
            yield
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait(PATIENCE_SECONDS)
            psutil.wait_procs(children, PATIENCE_SECONDS)  # till then, its sockets take what comes


def wait_until_at(lab: Lab, user: str, ip: str) -> None:
    """Until the registrar knows the user there: voices come through a NAT's new address before calls do."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with opened_sockets() as open_sockets:
        [asking] = open_sockets(lab.public, [REGISTRAR.with_port(0)])
        local = endpoint_of(asking.getsockname())
        for number in count():
            request = _WHERE.format(user=user, server=REGISTRAR.ip, local=local, number=number)
            asking.sendto(request.replace("\n", "\r\n").encode(), (str(REGISTRAR.ip), REGISTRAR.port))
            received = next_datagram(asking, PATIENCE_SECONDS)
            assert received is not None, "the registrar does not answer"
            said = received[0].split(b"\r\n")[0].decode()
            if f"@{ip}:" in said:
                return
            assert time.monotonic() < deadline, f"{user} is not at {ip}: {said}"
            time.sleep(_POLL_S)


def lose_what_has_no_route(lab: Lab) -> None:
    """Make the public side lose what is for nobody, without an error: to a gateway that is not there."""
    gateway = "203.0.113.254"
    configure(
        lab.public,
        f"neigh replace {gateway} lladdr 02:00:00:00:00:fe dev {PUBLIC_INTERFACE} nud permanent",
        f"route replace default via {gateway}",
    )


def _configuration(
    password: str | None, call_challenge: int | None, unanswered_s: float, *, gruu: bool, path: bool
) -> str:
    challenges = ""
    if password is not None:
        challenges = _CHALLENGE_REGISTER
        if call_challenge is not None:
            challenges += _CHALLENGE_INVITE[call_challenge]
        challenges += "    consume_credentials();\n"
        challenges = challenges.replace("REALM", str(REGISTRAR.ip)).replace("PASSWORD", password)
    modules = "\n".join(f'loadmodule "{name}.so"' for name in _MODULES)
    return f"""#!KAMAILIO
debug=2 log_stderror=yes fork=yes children=2 tcp_children=1 auto_aliases=no dns_try_naptr=no
listen=udp:{REGISTRAR} listen=tcp:{REGISTRAR} alias="{REGISTRAR.ip}"
mpath="{_MODULE_PATHS[0]}"
{modules}
modparam("usrloc", "db_mode", 0)
modparam("registrar", "default_expires", 3600)
modparam("registrar", "gruu_enabled", {int(gruu)})
modparam("registrar", "use_path", {int(path)})
modparam("tm", "fr_timer", {round(unanswered_s * 1000)})
{_ROUTES}
route[CHALLENGE] {{ {challenges} return; }}
route[GRUU] {{ {_RESOLVE_GRUU if gruu else ""} return; }}
"""
