"""The NAT laboratory: NATs of every kind on one Linux machine."""
