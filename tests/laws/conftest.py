"""The laws' own modules beside them can be imported; hypothesis searches as long as the profile says."""

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("short", deadline=None, max_examples=60, suppress_health_check=quiet, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1000, suppress_health_check=quiet)
settings.load_profile(os.environ.get("KUBERN_LAWS", "short"))
