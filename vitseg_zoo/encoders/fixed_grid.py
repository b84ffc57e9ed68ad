"""Runs timm ViTs whose position tables belong to one grid of tokens on images of any size.

BEiT and the ViTs with relative positions have no `dynamic_img_size`; timm changes their grid with
`set_input_size`, which replaces parameters, so that neither an optimizer nor a later size would find the old
ones. Here that is done to a copy, which runs with the parameters that the model has at each call, the tables
resampled from the model's own: the same values as timm's, and gradients reach the model. Hooks are shared,
and where a module was replaced the copy is made anew.
"""

import copy
import threading
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn
from torch.func import functional_call

_REL_POS_TABLE = "relative_position_bias_table"


class FixedGridRunner:
    """Calls `forward_intermediates` of a timm ViT; keeps the copy made for the last size of image.

    Threads take turns: `functional_call` changes the copy while it runs.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._key: tuple[Any, ...] | None = None
        self._modules: list[tuple[nn.Module, bool]] | None = None
        self._resized: _Intermediates
        self._matrices: dict[str, torch.Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FixedGridRunner, ()  # copying or pickling a model leaves the copy behind

    def __call__(self, model: nn.Module, x: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
        """Give the maps of a model's blocks for an image (B, C, H, W) of whole patches."""
        embed = model.patch_embed
        if not embed.strict_img_size or tuple(x.shape[2:]) == tuple(embed.img_size):
            return model.forward_intermediates(x, intermediates_only=True, **kwargs)
        if torch.compiler.is_compiling():  # a graph holds no lock
            return self._run(model, x, **kwargs)
        with self._lock:
            return self._run(model, x, **kwargs)

    def _run(self, model: nn.Module, x: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
        key = (
            tuple(x.shape[2:]),
            x.device,
            next(model.parameters()).dtype,
            model.training,
            model.grad_checkpointing,
        )
        # A compiler keeps the modules of its trace, and cannot compare them.
        modules = None if torch.compiler.is_compiling() else [(m, m.training) for m in model.modules()]
        if key != self._key or (modules is not None and modules != self._modules):
            self._resize(model, key[0])
            self._key, self._modules = key, modules
        parameters = dict(model.named_parameters())
        for name in self._matrices:
            parameters[name] = self._resample(name, parameters[name], model)
        parameters = {f"model.{name}": value for name, value in parameters.items()}
        return functional_call(self._resized, parameters, (x,), kwargs)

    @torch.compiler.disable
    @torch.inference_mode(False)  # what is kept may be used with gradients later
    def _resize(self, model: nn.Module, img_size: tuple[int, int]) -> None:
        if torch.compiler.is_compiling():  # an export, which would take the copy for a part of the model
            raise RuntimeError(
                f"{type(model).__name__} can be exported for {img_size} once it has been run at that size: "
                "call the model on such an image first, in the mode (train or eval) of the export."
            )
        parameters = dict(model.named_parameters())
        shared = [*parameters.values(), *model.buffers()]
        for module in model.modules():
            shared += [value for name, value in vars(module).items() if "_hooks" in name]
        resized = copy.deepcopy(model, memo={id(value): value for value in shared})
        resized.set_input_size(img_size=img_size)
        self._resized = _Intermediates(resized)
        self._matrices = {}
        by_shape: dict[torch.Size, torch.Tensor] = {}  # the blocks' tables are all of one shape
        for name, table in resized.named_parameters():
            old = parameters[name]
            if table is old:
                continue
            if not name.endswith(_REL_POS_TABLE):
                self._matrices[name] = table  # the position embedding: timm resamples it with gradients
                continue
            if old.shape not in by_shape:
                window = model.get_submodule(name.removesuffix(f".{_REL_POS_TABLE}")).window_size
                # timm's resampling is linear and slow: what it does to unit vectors is its matrix
                by_shape[old.shape] = resize_rel_pos_bias_table(
                    torch.eye(len(old), device=old.device),
                    new_window_size=resized.patch_embed.grid_size,
                    new_bias_shape=(len(table), len(old)),
                    old_window_size=window,
                ).to(old.dtype)
            self._matrices[name] = by_shape[old.shape]

    def _resample(self, name: str, table: torch.Tensor, model: nn.Module) -> torch.Tensor:
        if name.endswith(_REL_POS_TABLE):
            return self._matrices[name] @ table
        return resample_abs_pos_embed(
            table,
            new_size=self._resized.model.patch_embed.grid_size,
            old_size=model.patch_embed.grid_size,
            num_prefix_tokens=model.num_prefix_tokens,
        )


class _Intermediates(nn.Module):
    """Gives `functional_call` a forward pass that returns intermediate features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
        return self.model.forward_intermediates(x, intermediates_only=True, **kwargs)
