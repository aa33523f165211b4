"""One public binding, however it was found: what it is, how it is judged, and who keeps it true."""
