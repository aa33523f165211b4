"""The session controller: calls for phones that can do nothing themselves, and NATs that let nothing in."""
