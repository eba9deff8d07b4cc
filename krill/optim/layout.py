"""The layout of projections in one weight: a fused q, k and v is three matrices, not one.

Muon orthogonalizes each projection separately: orthogonalizing a fused matrix as a whole would share one step
between unrelated projections.

Shapes: B weights of one shape, R × C each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Describes where the projections are in a weight. By default the weight is one projection, (out, in)."""

    transposed: bool = False
    """The weight is (in, out), as in GPT-2's Conv1D."""
    blocks: int = 1
    """Number of equal blocks of output rows: 1, or the number of heads if q, k and v alternate by head."""
    parts: tuple[int, ...] = ()
    """Output rows of each projection in a block; empty if the weight is one projection."""

    def shapes(self, rows: int, columns: int) -> list[tuple[int, int]]:
        """Returns (out, in) of each projection in a weight of rows × columns.

        Raises:
            ValueError: the parts do not add up to the output rows of the weight.
        """
        outputs, inputs = (columns, rows) if self.transposed else (rows, columns)
        if not self.parts:
            return [(outputs, inputs)]
        if self.blocks * sum(self.parts) != outputs:
            raise ValueError(
                f"{self.blocks} × {' + '.join(map(str, self.parts))} rows are not the {outputs} of the weight"
            )
        return [(self.blocks * part, inputs) for part in self.parts]

    def split(self, w_BRC: Tensor) -> list[Tensor]:
        """Returns the projections, each B × out × in: views if the rows are contiguous, otherwise copies."""
        w_BOI = w_BRC.mT if self.transposed else w_BRC
        if not self.parts:
            return [w_BOI]
        pieces = w_BOI.unflatten(1, (self.blocks, -1)).split(self.parts, dim=2)
        return [piece.flatten(1, 2) for piece in pieces]

    def join(self, projections: Sequence[Tensor]) -> Tensor:
        """Inverts `split`; returns B × R × C."""
        w_BOI = projections[0]
        if self.parts:
            pieces = [w_BPI.unflatten(1, (self.blocks, -1)) for w_BPI in projections]
            w_BOI = torch.cat(pieces, dim=2).flatten(1, 2)
        return w_BOI.mT.contiguous() if self.transposed else w_BOI
