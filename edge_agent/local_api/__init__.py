"""The local API: HTTP over Unix sockets, for technicians; needs no hub, no network."""
