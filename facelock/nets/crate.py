"""CRATE, a white-box transformer, as a face recogniser: the judge.

Yu, Buchanan, Pai, Chu, Wu, Tong, Haeffele, Ma: "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023
(arXiv:2306.01129). Each layer takes one step of two alternating optimisations:

- **MSSA** (eq. 13): multi-head subspace self-attention compresses the tokens toward a mixture of subspaces; query,
  key and value are one and the same projection ``Uₖᵀ Z``;
- **ISTA** (eq. 17): one proximal gradient step of sparse coding against a learned dictionary ``D`` in place of the
  MLP, so a layer's output is a sparse, non-negative code.

Deviations: two strided convolutions make the tokens instead of one linear patch embedding (small training set), and
the class token is replaced by attention-free mean pooling over the grid, concatenated with a learned readout per
position, since an aligned face has the same part at the same place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SubspaceAttention(nn.Module):
    """MSSA: ``softmax(ZᵀU Uᵀ Z / √p) ZᵀU`` per head with tied query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.subspaces = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def project(self, z: Tensor) -> Tensor:
        """(B, L, dim) → (B, heads, L, dim / heads): the tokens in each subspace."""
        b, n, d = z.shape
        return self.subspaces(z).view(b, n, self.heads, d // self.heads).transpose(1, 2)

    def attention(self, z: Tensor) -> Tensor:
        """(B, heads, L, L) attention maps, for explanations."""
        w = self.project(z)
        return (w @ w.transpose(-1, -2) * w.shape[-1] ** -0.5).softmax(-1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, L, dim) → the same shape."""
        w = self.project(z)
        mixed = F.scaled_dot_product_attention(w, w, w)
        return self.out(mixed.transpose(1, 2).reshape(z.shape))


class SparseCode(nn.Module):
    """ISTA: ``relu(Z + η Dᵀ(Z - D Z) - η λ)``, one step toward a sparse non-negative code."""

    def __init__(self, dim: int, step: float = 0.1, threshold: float = 0.1) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(dim, dim))
        nn.init.kaiming_uniform_(self.dictionary)
        self.step, self.threshold = step, threshold

    def forward(self, z: Tensor) -> Tensor:
        """(B, L, dim) → the same shape, ≥ 0."""
        residual = z - F.linear(z, self.dictionary)
        gradient = F.linear(residual, self.dictionary.t())
        return F.relu(z + self.step * gradient - self.step * self.threshold)


class Layer(nn.Module):
    """One CRATE layer: compress (with a skip), then sparsify."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.sparse = SubspaceAttention(dim, heads), SparseCode(dim)

    def forward(self, z: Tensor) -> Tensor:
        """(B, L, dim) → the same shape."""
        z = z + self.attention(self.norm1(z))
        return self.sparse(self.norm2(z))


class Crate(nn.Module):
    """(B, 3, 112, 112) RGB in [0, 1] → (B, code) identity embedding, not normalised."""

    def __init__(self, dim: int = 192, depth: int = 6, heads: int = 6, code: int = 64) -> None:
        super().__init__()
        self.config = {"dim": dim, "depth": depth, "heads": heads, "code": code}
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 4, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.PReLU(64),
            nn.Conv2d(64, dim, 3, 2, 1),
        )
        self.position = nn.Parameter(torch.randn(1, 49, dim) * 0.02)
        self.layers = nn.ModuleList([Layer(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.reduce = nn.Linear(dim, 32)
        self.code = nn.Linear(49 * 32 + dim, code)
        self.whiten = nn.Linear(code, code)
        nn.init.eye_(self.whiten.weight)
        nn.init.zeros_(self.whiten.bias)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, 3, 56, 56) in [-1, 1] → (B, 49, dim) after all layers: the sparse codes."""
        z = self.stem(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            z = layer(z)
        return z

    def forward_code(self, x: Tensor) -> Tensor:
        """(B, 3, 56, 56) in [-1, 1] → (B, code), before whitening; what training sees."""
        z = self.norm(self.tokens(x))
        return self.code(torch.cat([self.reduce(z).flatten(1), z.mean(1)], 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) in [0, 1] → (B, code)."""
        return self.whiten(self.forward_code(F.avg_pool2d(x, 2) * 2 - 1))
