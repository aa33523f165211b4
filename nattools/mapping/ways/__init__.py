"""One way each to a port mapping, and the choice among them."""
