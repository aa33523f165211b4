"""What carries the media of a call: sockets of this process, the kernel, or an rtpengine."""
