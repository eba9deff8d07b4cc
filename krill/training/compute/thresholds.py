"""Sizes and thresholds of the computation that a plan needs as well, without torch."""

from __future__ import annotations

CHUNK = {"cpu": 512, "cuda": 4096}
"""Tokens per chunk of the loss. Measured on the CPU: 512 is as fast as 1024 and takes half the memory. Larger on
CUDA, where each chunk reads and writes the whole weight gradient (not measured)."""

VOCABULARY_MULTIPLE = {"cuda": 128}
"""The head is padded to a multiple of this within the loss: matrix products of other sizes are slow on CUDA. The
vocabularies of krill's tokenizer presets are multiples already."""

MIN_PASSES = 2000
"""The number of training passes that repay the compilation, for hardware.compile=auto. Estimated, not measured: on an
H100 a compiled pass of 16,384 tokens saves 56 ms with 187M parameters and 90 ms with 1B, compiling takes one to two
minutes."""
