"""One way each to a public endpoint that needs more than the socket itself."""
