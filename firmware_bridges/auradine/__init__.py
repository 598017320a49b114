"""Auradine Teraflux (FluxOS): REST on TCP 8080 and the cgminer API."""
