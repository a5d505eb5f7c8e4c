"""Where what is made once is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where features and drawn data sets are kept: `$CNNJAX_CACHE`, or `cnnjax` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CNNJAX_CACHE") or Path(base) / "cnnjax")
