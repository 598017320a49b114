"""ePIC UMC / PowerPlay: HTTP on the port of the cgminer API."""
