"""One way each to a port mapping."""
