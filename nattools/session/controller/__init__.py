"""The doors of the session controller, which `nattools.session.server` joins."""
