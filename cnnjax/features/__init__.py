"""Features of the frozen part: made once, kept, and gone on with where a killed pass stopped."""

from cnnjax.features.store import (
    GIB,
    PASS_BATCH,
    FeatureStore,
    Images,
    Pass,
    Progress,
    StoreTooSmall,
    ahead,
    fits_on_device,
    free_bytes,
)

__all__ = [
    "GIB",
    "PASS_BATCH",
    "FeatureStore",
    "Images",
    "Pass",
    "Progress",
    "StoreTooSmall",
    "ahead",
    "fits_on_device",
    "free_bytes",
]
