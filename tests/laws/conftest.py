"""Hypothesis searches as long as the profile says."""

import os

from hypothesis import HealthCheck, settings

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("short", deadline=None, max_examples=60, suppress_health_check=quiet, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1000, suppress_health_check=quiet)
settings.load_profile(os.environ.get("KUBERN_LAWS", "short"))
