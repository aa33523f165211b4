"""NAT traversal for SIP: public bindings, and what the NAT does to them."""
