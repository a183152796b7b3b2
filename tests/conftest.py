from __future__ import annotations

import os

from hypothesis import settings

# The machines that run these tests are shared and slow at times: a deadline would test them and not the code.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
