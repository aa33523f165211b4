"""What does the NAT do? `python examples/verdict.py 203.0.113.10:3478`, or `natcheck` as a library call."""

import asyncio
import sys

from nattools import Endpoint, NatType, classify, discover


async def main() -> None:
    verdict = classify(await discover([Endpoint.parse(sys.argv[1], default_port=3478)]))
    print(f"{verdict.nat_type.value}: we are {verdict.local} here and {verdict.public} there")
    if verdict.nat_type is NatType.SYMMETRIC:
        print("a relay is needed")
    for reason in verdict.reasons:
        print(f"- {reason}")


asyncio.run(main())
