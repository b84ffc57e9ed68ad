"""ViT-seg written down from its description, with `nn.Unfold`, `nn.MultiheadAttention` and `nn.Fold`."""

import torch
from torch import nn


class ReferenceBlock(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim),
            nn.GELU(),
            nn.Linear(4 * embed_dim, embed_dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ReferenceViTSeg(nn.Module):
    def __init__(
        self,
        image_size: int = 128,
        patch_size: int = 16,
        channels: int = 3,
        classes: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 8,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        patches = (image_size // patch_size) ** 2
        self.norm = nn.BatchNorm2d(channels)
        self.unfold = nn.Unfold(patch_size, stride=patch_size)
        self.embed = nn.Linear(channels * patch_size**2, embed_dim)
        self.position = nn.Parameter(torch.randn(patches, embed_dim))
        self.blocks = nn.Sequential(*[ReferenceBlock(embed_dim, num_heads, dropout) for _ in range(depth)])
        self.project = nn.Linear(embed_dim, classes * patch_size**2)
        self.fold = nn.Fold(image_size, patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(self.unfold(self.norm(x)).transpose(1, 2)) + self.position
        return self.fold(self.project(self.blocks(x)).transpose(1, 2))

    def renamed(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights or gradients of this model under the names and shapes of `smp.VitSeg`."""
        renames = [
            ("norm.", "encoder.model.patch_embed.input_norm."),
            ("embed.", "encoder.model.patch_embed.proj."),
            ("position", "encoder.model.pos_embed"),
            ("blocks.", "encoder.model.blocks."),
            ("project.", "segmentation_head.0."),
        ]
        parts = [
            ("attention.in_proj_", "attn.qkv."),
            ("attention.out_proj", "attn.proj"),
            ("mlp.0", "mlp.fc1"),
            ("mlp.2", "mlp.fc2"),
        ]
        result = {}
        for key, tensor in tensors.items():
            for old, new in renames:
                if key.startswith(old):
                    key = new + key.removeprefix(old)
                    break
            for old, new in parts:
                key = key.replace(old, new)
            if key.endswith("patch_embed.proj.weight"):
                side = self.unfold.kernel_size
                tensor = tensor.reshape(tensor.shape[0], -1, side, side)
            result[key] = tensor[None] if key.endswith("pos_embed") else tensor
        return result
