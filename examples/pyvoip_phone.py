"""An echo behind a NAT, by pyVoIP as it comes: `python pyvoip_phone.py SERVER USER PASSWORD MY_IP`.

Only the marked line is there because of the NAT. MY_IP is this machine's address in its own network. The STUN
server is set elsewhere: NATTOOLS_STUN_SERVERS. Ctrl-D or Ctrl-C ends it.
"""

import sys
from contextlib import suppress

import pyVoIP
from pyVoIP.VoIP import CallState, VoIPCall, VoIPPhone
from pyVoIP.VoIP.status import PhoneStatus

import nattools.blocking

# This line. Type checkers do not expect it, and need the comment; others do not.
pyVoIP.SIP.socket = pyVoIP.RTP.socket = nattools.blocking.SipSockets()  # type: ignore[attr-defined]  # pyVoIP has no types


def repeat(call: VoIPCall) -> None:
    """Answer, and say everything again, until the caller has had enough."""
    call.answer()
    while call.state == CallState.ANSWERED:
        call.write_audio(call.read_audio())


if len(sys.argv) != 5:
    sys.exit(__doc__)
server, user, password, my_ip = sys.argv[1:]
phone = VoIPPhone(server, 5060, user, password, myIP=my_ip, callCallback=repeat)
phone.start()
if phone.get_status() != PhoneStatus.REGISTERED:
    print(f"{server} does not register {user}; where the NAT is the reason, that is said above", flush=True)
    phone.stop()  # or it would try again, for ever
    sys.exit(1)
with suppress(KeyboardInterrupt):
    print(f"call {user} at {server}", flush=True)
    sys.stdin.read()
phone.stop()
