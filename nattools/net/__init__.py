"""The doors to the network: the only room that creates sockets."""
