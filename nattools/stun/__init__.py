"""STUN: RFC 3489, 5389, 8489 and the NAT behaviour discovery of RFC 5780."""
