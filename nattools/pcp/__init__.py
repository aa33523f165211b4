"""PCP (RFC 6887) and NAT-PMP (RFC 6886): asking the router by one datagram."""
