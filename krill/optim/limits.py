"""The size of the batches in which Muon orthogonalizes matrices, without torch: a plan needs it as well."""

from __future__ import annotations

MAX_BATCH_ELEMENTS = 1 << 26
"""256 MiB in fp32; a step holds up to four copies of a batch, two of them in ns_dtype."""
