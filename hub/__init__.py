"""The light hub: takes workloads, places them on sites, bills what was metered, shows it live."""
