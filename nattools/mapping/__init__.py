"""One port mapping from whichever of UPnP, PCP and NAT-PMP the router speaks."""
