"""`hcp-agent`: the technician's command line; standard library only, so that it starts at once."""
