"""Settings shared by every test: the hypothesis profiles."""

import os

from hypothesis import HealthCheck, settings

# CI draws the same examples on every run; a nightly or local run (HCP_RANDOM=1) draws new ones.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "random", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("random" if os.environ.get("HCP_RANDOM") == "1" else "fixed")
