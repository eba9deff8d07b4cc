"""The largest numbers that keys accept, without pydantic: the resolvers of configs need them as well."""

from __future__ import annotations

MAX_INT = 2**31 - 1
"""The largest number of 32 bits, of which kernels, seeds of samplers and indices of rows are made."""

MAX_COUNT = 2**53
"""The largest number up to which JSON keeps every integer: of bytes, tokens and documents."""

MAX_PROCESSES = 2**16
"""More processes or threads than any machine runs."""

MAX_FLOAT = 3.4e38
"""The largest number of fp32, in which weights, gradients and updates are computed."""
