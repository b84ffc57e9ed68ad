"""Losses: of pixels, and of models whose queries each predict a mask and its class.

`QueryLoss` is EoMT's, which is Mask2Former's. Paper: "Masked-attention Mask Transformer for Universal Image
Segmentation" (Cheng et al., CVPR 2022),
https://arxiv.org/abs/2112.01527, sections 3.3 and 4.1, with the weights that EoMT keeps. Written from the
paper; points are chosen as in "PointRend", https://arxiv.org/abs/1912.08193.

Differences from the paper: pixels with `ignore_index` count nowhere, instead of as outside of every mask; and
the number of masks is that of the process, not the average over processes.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import segmentation_models_pytorch.losses as smp_losses
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, SoftBCEWithLogitsLoss
from torch import nn

from vitseg_zoo.decoders.eomt import QueryPrediction

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:
    linear_sum_assignment = None


class QueryLoss(nn.Module):
    """Matches queries with the classes in each image, and compares their masks and classes.

    Each class in an image is one target mask. Queries are matched with targets at the least total cost, where
    the cost of a pair is the weighted sum of binary cross-entropy and dice loss of the masks and of the
    negative class probability. The loss is that sum over matched pairs, with cross-entropy for the class;
    unmatched queries should say "no object". Masks are compared at sampled points: uniform ones for matching,
    mostly those where the prediction is uncertain for the loss.

    Args:
        classes: Number of classes; labels are 0 to `classes - 1`. A model with one class is trained on masks
            of 0 and 1 (binary, 1 for the object), as SMP's binary losses are.
        ignore_index: Label of pixels that do not count; none by default.
        num_points: Points at which masks are compared; `None` for all the pixels of the predicted masks.
        oversample_ratio: From how many times as many candidates the uncertain points are chosen.
        importance_sample_ratio: Which part of the points are uncertain ones, the others being uniform.
        class_weight: Weight of the class's cross-entropy.
        mask_weight: Weight of the masks' binary cross-entropy.
        dice_weight: Weight of the masks' dice loss.
        no_object_weight: Weight of "no object" within the class's cross-entropy.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> model = smp.create_model("eomt", "vz-vit_tiny_patch16_224", encoder_weights=None, classes=5)
        >>> loss = QueryLoss(classes=5)
        >>> loss(model(torch.rand(2, 3, 64, 64), return_queries=True), torch.randint(5, (2, 64, 64))).ndim
        0
    """

    def __init__(
        self,
        classes: int,
        ignore_index: int | None = None,
        num_points: int | None = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if linear_sum_assignment is None:
            raise ImportError("QueryLoss matches with SciPy: pip install 'vitseg-zoo[train]'.")
        self.classes = classes
        self.ignore_index = ignore_index
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        balance = torch.ones(classes + 1)
        balance[-1] = no_object_weight
        self.register_buffer("balance", balance, persistent=False)

    def forward(self, predictions: Sequence[QueryPrediction], target: torch.Tensor) -> torch.Tensor:
        """Give the loss, summed over a model's successive predictions.

        Args:
            predictions: What a model gives with `return_queries=True`.
            target: (B, H, W), labels.

        Returns:
            A scalar.

        Raises:
            ValueError: If a label is out of range.
        """
        targets = [self._split(labels) for labels in target]
        return torch.stack([self._one_prediction(prediction, targets) for prediction in predictions]).sum()

    def _split(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the classes (K,) in labels (H, W), their masks (K, H, W), and which pixels count (H, W)."""
        counts = torch.ones_like(labels, dtype=torch.bool)
        if self.ignore_index is not None:
            counts = labels != self.ignore_index
        present = labels[counts].unique().long()
        if self.classes == 1:  # binary: 0 is what lies outside of the one class
            present = present[present != 0]
            if present.numel() and present.tolist() != [1]:
                raise ValueError(f"Masks for one class should hold 0 and 1, got {present.tolist()} too.")
            return present - 1, (labels == present[:, None, None]).float(), counts.float()
        if present.numel() and not 0 <= int(present[0]) <= int(present[-1]) < self.classes:
            raise ValueError(
                f"Labels should lie in [0, {self.classes - 1}] or be ignore_index={self.ignore_index}, "
                f"got {present.tolist()}."
            )
        return present, (labels == present[:, None, None]).float(), counts.float()

    def _one_prediction(
        self, prediction: QueryPrediction, targets: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        class_target = prediction.class_logits.new_full(
            prediction.class_logits.shape[:2], self.classes
        ).long()
        mask_losses = prediction.mask_logits.new_zeros(())
        num_masks = max(1, sum(len(classes) for classes, _, _ in targets))
        for index, (classes, masks, counts) in enumerate(targets):
            if len(classes) == 0:
                # No mask to learn: every parameter still gets a gradient, as DDP wants.
                mask_losses = mask_losses + 0.0 * prediction.mask_logits[index].sum()
                continue
            height, width = prediction.padded_size
            padding = (0, width - masks.shape[2], 0, height - masks.shape[1])
            masks, counts = F.pad(masks, padding), F.pad(counts, padding)[None]
            logits = prediction.mask_logits[index].float()
            class_logits = prediction.class_logits[index].float()
            queries, order = self._match(logits, class_logits, classes, masks, counts)
            class_target[index, queries] = classes[order]
            points = self._loss_points(logits[queries])
            sampled = _sample(logits[queries], points)
            wanted = _sample(masks[order], points)
            weight = _sample(counts.expand(len(order), -1, -1), points, mode="nearest")
            mask_losses = (
                mask_losses + self.mask_weight * _binary_cross_entropy(sampled, wanted, weight).sum()
            )
            mask_losses = mask_losses + self.dice_weight * _dice_loss(sampled, wanted, weight).sum()
        class_loss = F.cross_entropy(
            prediction.class_logits.float().transpose(1, 2), class_target, weight=self.balance
        )
        return mask_losses / num_masks + self.class_weight * class_loss

    @torch.no_grad()
    def _match(
        self,
        logits: torch.Tensor,
        class_logits: torch.Tensor,
        classes: torch.Tensor,
        masks: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pairs, as indices of queries and of targets, whose total cost is least."""
        points = self._uniform_points(logits[:1])  # the same for all masks: (1, P, 2)
        sampled = _sample(logits, points.expand(len(logits), -1, -1))[:, None]  # (Q, 1, P)
        wanted = _sample(masks, points.expand(len(masks), -1, -1))[None]  # (1, K, P)
        weight = _sample(counts, points, mode="nearest")[None]  # (1, 1, P)
        cost = self.mask_weight * _binary_cross_entropy(sampled, wanted, weight)
        cost = cost + self.dice_weight * _dice_loss(sampled, wanted, weight)
        cost = cost - self.class_weight * class_logits.softmax(dim=-1)[:, classes]
        # In half precision a diverging model gives no numbers; the optimizer's scaler then skips the step.
        queries, order = linear_sum_assignment(cost.nan_to_num().cpu().numpy())
        return torch.as_tensor(queries, device=logits.device), torch.as_tensor(order, device=logits.device)

    def _uniform_points(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw points (N, P, 2) for masks (N, h, w), as x and y from 0 to 1."""
        if self.num_points is None:
            height, width = logits.shape[1:]
            ys = (torch.arange(height, device=logits.device) + 0.5) / height
            xs = (torch.arange(width, device=logits.device) + 0.5) / width
            grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)
            return grid.view(1, -1, 2).expand(len(logits), -1, -1)
        return torch.rand(len(logits), self.num_points, 2, device=logits.device)

    @torch.no_grad()
    def _loss_points(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw points (N, P, 2) for masks (N, h, w), most of them where its logits are nearest to zero."""
        if self.num_points is None:
            return self._uniform_points(logits)
        count = int(self.importance_sample_ratio * self.num_points)
        candidates = torch.rand(
            len(logits), int(self.oversample_ratio * self.num_points), 2, device=logits.device
        )
        nearest = _sample(logits, candidates).abs().topk(count, dim=1, largest=False).indices
        uncertain = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
        uniform = torch.rand(len(logits), self.num_points - count, 2, device=logits.device)
        return torch.cat([uncertain, uniform], dim=1)


def _sample(maps: torch.Tensor, points: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Sample values (N, P) of maps (N, h, w) at points (N, P, 2), given as x and y from 0 to 1."""
    grid = 2 * points[:, None] - 1  # (N, 1, P, 2)
    return F.grid_sample(maps[:, None], grid, mode=mode, align_corners=False)[:, 0, 0]


def _binary_cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean over the points that count, (..., P) to (...); inputs broadcast."""
    losses = F.softplus(logits) - logits * target
    return (losses * weight).sum(dim=-1) / weight.sum(dim=-1).clamp_min(1)


def _dice_loss(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the dice loss over the points that count, (..., P) to (...); inputs broadcast."""
    probability, target = logits.sigmoid() * weight, target * weight
    overlap = (probability * target).sum(dim=-1)
    return 1 - (2 * overlap + 1) / (probability.sum(dim=-1) + target.sum(dim=-1) + 1)


class CrossEntropy(nn.CrossEntropyLoss):
    """PyTorch's cross-entropy of pixels, which is 0 and not NaN where a batch has no pixel that counts.

    Args:
        ignore_index: Mask value of pixels that do not count; `None` if there are none.
        weight: Weight of each class, (C,); all alike by default.
        label_smoothing: Share of the target that is spread over all classes.

    Example:
        >>> loss = CrossEntropy(ignore_index=255)
        >>> loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255)).item()
        0.0
    """

    def __init__(
        self,
        ignore_index: int | None = None,
        weight: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        ignore_index = -100 if ignore_index is None else ignore_index
        super().__init__(weight, ignore_index=ignore_index, label_smoothing=label_smoothing)

    def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Give the mean loss of logits (B, C, H, W) for masks (B, H, W)."""
        loss = F.cross_entropy(
            logits,
            mask,
            self.weight,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        counted = mask != self.ignore_index
        if self.weight is None:
            return loss / counted.sum().clamp(min=1)
        total = self.weight[mask.where(counted, 0)].where(counted, 0).sum()
        return loss / total.where(total > 0, 1)


class CrossEntropyAndDice(nn.Module):
    """Cross-entropy plus SMP's dice loss, which keeps small classes from drowning in large ones.

    Args:
        ignore_index: Mask value of pixels that do not count; `None` if there are none.
        dice_weight: Weight of the dice loss.
    """

    def __init__(self, ignore_index: int | None = None, dice_weight: float = 1.0) -> None:
        super().__init__()
        self.cross_entropy = CrossEntropy(ignore_index)
        self.dice = DiceLoss("multiclass", ignore_index=ignore_index)
        self.dice_weight = dice_weight

    def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Give the loss of logits (B, C, H, W) for masks (B, H, W)."""
        return self.cross_entropy(logits, mask) + self.dice_weight * self.dice(logits, mask)


class SumOfLosses(nn.Module):
    """The sum of losses of SMP's form, which take logits and a mask.

    Args:
        terms: The losses.

    Example:
        >>> loss = SumOfLosses([CrossEntropy(), DiceLoss("multiclass")])
        >>> loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)).shape
        torch.Size([])
    """

    def __init__(self, terms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Give the loss of logits (B, C, H, W) for masks (B, H, W), or (B, C, H, W) of 0 and 1."""
        if logits.shape[1] == 1 or mask.ndim == 4:  # each class by itself
            mask = mask.reshape(logits.shape).to(logits.dtype)
        return sum(term(logits, mask) for term in self.terms)


def create_loss(
    name: str,
    mode: str = "multiclass",
    *,
    ignore_index: int | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> nn.Module:
    """Make a loss by its name: `cross_entropy`, one of `smp.losses`, or a sum of such.

    Args:
        name: As `"cross_entropy+dice"`, `"focal"`, `"lovasz"`, `"TverskyLoss"`.
        mode: SMP's word: `"multiclass"`, for masks (B, H, W) of class numbers; `"binary"`, for logits of one
            channel and masks (B, H, W) of 0 and 1; `"multilabel"`, for masks (B, C, H, W) of 0 and 1.
        ignore_index: Mask value of pixels that do not count; `None` if there are none.
        class_weights: Weight of each class; in binary mode of background and object.
        label_smoothing: Share of the target that is spread over all classes, by cross-entropy.

    Raises:
        ValueError: If there is no such loss, or none of those named can do what is asked for.

    Example:
        >>> loss = create_loss("cross_entropy+dice", ignore_index=255)
        >>> loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255)).item()
        0.0
    """
    if mode not in ("binary", "multiclass", "multilabel"):
        raise ValueError(f'mode should be "binary", "multiclass" or "multilabel", got {mode!r}.')
    wanted: dict[str, Any] = {"class_weights": class_weights, "ignore_index": ignore_index}
    wanted["label_smoothing"] = label_smoothing or None
    wanted = {key: value for key, value in wanted.items() if value is not None}
    terms, used = [], set()
    for part in name.split("+"):
        if _plain(part) == "crossentropy":
            terms.append(_cross_entropy(mode, ignore_index, class_weights, label_smoothing))
            used |= set(wanted)
            continue
        loss_class = _SMP_LOSSES.get(_plain(part))
        if loss_class is None:
            known = ["cross_entropy", *_SMP_LOSSES]
            raise ValueError(f"There is no loss {part.strip()!r}, only {', '.join(known)}, and sums of them.")
        takes = signature(loss_class).parameters
        if mode != "binary" and loss_class is smp_losses.MCCLoss:
            raise ValueError("SMP's MCC loss is for one class only (binary).")
        given = {key: value for key, value in wanted.items() if key in takes}
        if mode == "binary":
            given.pop("class_weights", None)
        used |= set(given)
        if "ignore_index" in wanted and "ignore_index" not in takes:
            raise ValueError(f"SMP's {part.strip()} loss knows no ignore_index, but there are such pixels.")
        terms.append(loss_class(**({"mode": mode} if "mode" in takes else {}), **given))
    if unused := set(wanted) - used:
        what = " and no ".join(sorted(unused))
        raise ValueError(f"The loss {name} knows no {what}: add +cross_entropy, or leave it out.")
    return SumOfLosses(terms)


def _plain(name: str) -> str:
    """Make one of a loss's spellings: "cross_entropy", "DiceLoss"."""
    return name.strip().lower().replace("_", "").removesuffix("loss")


_SMP_LOSSES = {
    _plain(name): getattr(smp_losses, name) for name in smp_losses.__all__ if name.endswith("Loss")
}


def _cross_entropy(
    mode: str, ignore_index: int | None, class_weights: Sequence[float] | None, label_smoothing: float
) -> nn.Module:
    weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
    if mode == "multiclass":
        return CrossEntropy(ignore_index, weights, label_smoothing)
    if weights is not None:
        weights = weights[1] / weights[0] if mode == "binary" else weights[:, None, None]
    # SMP moves a target of 1 to 1 - smooth_factor, PyTorch's smoothing to 1 - label_smoothing / 2.
    return SoftBCEWithLogitsLoss(
        ignore_index=ignore_index, smooth_factor=label_smoothing / 2 or None, pos_weight=weights
    )
