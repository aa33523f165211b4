"""Where registrations are kept: in a file, or in a server that several hosts share."""
