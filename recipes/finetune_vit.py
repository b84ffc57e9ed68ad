"""Fine-tunes a pretrained ViT on your own images and masks, on one GPU, so that the first run is a good one.

    python finetune_vit.py --data DIR --out runs/vit
    python finetune_vit.py --data DIR --out runs/lora --lora 16 --lr 1e-3
    python finetune_vit.py --data DIR --out runs/large --encoder-name vz-vit_large_patch14_dinov2
    vitseg predict photo.jpg --weights runs/vit/model.safetensors --out masks

DIR has any layout that `vitseg check DIR` understands. The default encoder is DINOv2 (Apache-2.0) of 22
million parameters, in a U-Net; `vz-` and the name of any ViT of timm will do. Images keep their ratio of
sides. --out gets model.safetensors, the average of the weights, with LoRA (https://arxiv.org/abs/2106.09685,
by peft) merged into them, metrics.csv, curves.png, training.gif and results.json. Copy this file and edit it.
"""

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import cv2
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from vitseg_zoo import freeze_blocks, parameter_groups
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.segmentation_folder import open_folders
from vitseg_zoo.inference.evaluate import save_evaluated
from vitseg_zoo.losses import create_loss
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import warmup_cosine
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule


@dataclass(kw_only=True)
class Config(RunConfig):
    data: Path  # folder of the data
    arch: str = "unet"  # fpn, upernet, segmenter, eomt and vitseg take a ViT, too
    encoder_name: str = "vz-vit_small_patch14_dinov2"  # vz- and the name of a ViT of timm
    encoder_weights: str | None = "imagenet"  # a tag of timm's, or imagenet for its default one
    freeze: int = 0  # keep the patch embedding and so many blocks as they are; half of them for few images
    layer_decay: float = 0.75  # of the learning rate, from block to block
    lora: int = 0  # rank of LoRA, as 16: only small matrices beside the blocks' own are trained
    epochs: int = 40  # passes over the training images
    batch_size: int = 8  # crops a step and device; with --grad-checkpointing more fit
    lr: float = 2e-4  # of the decoder; the blocks have less by the decay
    gradient_clip_val: float | None = 1.0  # clip the norm of a step's gradients to this
    ema: float | None = 0.998  # decay of the average of the weights, which is the model
    image_size: int = 512  # shorter side of the images
    crop_size: int = 448  # side of the squares, a multiple of 32; of 224 for patches of 14


def augmentation(shorter: int, crop: int) -> A.Compose:
    """The shorter side resized and scaled by 0.5 to 2, a square of it, flip, color jitter."""
    scale = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST}
    resize = [A.SmallestMaxSize(shorter, **scale), A.RandomScale((-0.5, 1.0), p=1.0, **scale)]
    pad = A.PadIfNeeded(crop, crop, border_mode=cv2.BORDER_REFLECT_101)
    jitter = A.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05), p=0.8)
    return A.Compose([*resize, pad, A.RandomCrop(crop, crop), A.HorizontalFlip(), jitter])


class ViTModule(SegmentationModule):
    """AdamW with learning rates by layer, a warm-up over 10 % of the steps, and a cosine to zero."""

    layer_decay = 1.0

    def configure_optimizers(self) -> dict:
        groups = parameter_groups(self.model, self.hparams.learning_rate, 0.05, self.layer_decay)
        optimizer = torch.optim.AdamW(groups)
        scheduler = warmup_cosine(optimizer, self.trainer.estimated_stepping_batches, warmup=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Adds the products of LoRA's matrices to the weights, so that the model is what it was before."""
        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                self.model.set_submodule(name, layer.get_base_layer())


def main(config: Config) -> dict:
    """Trains, and returns what results.json holds."""
    prepare(config)
    train, val = open_folders(config.data, ("train", "val"))
    options = {"classes": len(train.class_names), "ignore_index": train.ignore_index, "seed": config.seed}
    augment = augmentation(config.image_size, config.crop_size)
    train_set = SegmentationDataset(train, None, augment=augment, **options)
    val_set = SegmentationDataset(val, config.image_size, **options)  # on the way: squeezed, to be one batch
    loading = (min(config.batch_size, len(train)), config.num_workers, config.seed)
    data = SegmentationDataModule(train_set, val_set, None, *loading)
    module = ViTModule(
        *(config.arch, config.encoder_name, config.encoder_weights, train.class_names, train.palette),
        **{"image_size": config.image_size, "ignore_index": train.ignore_index, "learning_rate": config.lr},
        **{"seed": config.seed, "mode": train.mode},
    )
    module.loss = create_loss("cross_entropy+dice", train.mode, ignore_index=train.ignore_index)
    if config.lora:
        layers = r".*blocks\.\d+\..*(q|kv|qkv|proj|fc\w+)"  # the linear ones, whatever timm calls them
        lora = LoraConfig(r=config.lora, lora_alpha=2 * config.lora, target_modules=layers)
        inject_adapter_in_model(lora, module.model.encoder.model)
    else:
        freeze_blocks(module.model, config.freeze)
        module.layer_decay = config.layer_decay
    about = module.describe() | {"fit": "shorter_side"}
    file = save_evaluated(module.model, config.out / "model.safetensors", val, about)
    return fit(module, data, config, select=None, score=file, check_val_every_n_epoch=-(-config.epochs // 10))


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
