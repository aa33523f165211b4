"""Looks for a SIP ALG on the way to an endpoint, so many times, each from a new socket; a line each."""

from __future__ import annotations

import asyncio
import sys

from nattools.cli import output
from nattools.cli.natcheck_alg import AlgFinding
from nattools.endpoint import Endpoint
from nattools.sip.client import detect_alg

for _ in range(int(sys.argv[2])):
    found = asyncio.run(detect_alg(Endpoint.parse(sys.argv[1])))
    output.print_json_line(AlgFinding(found).document())
