"""The zoo's segmentation models, as SMP architectures: an encoder, a decoder and SMP's habits."""

from vitseg_zoo.architectures.eomt import Eomt
from vitseg_zoo.architectures.fused_segformer import FusedSegformer
from vitseg_zoo.architectures.segmenter import Segmenter
from vitseg_zoo.architectures.segnet import SegNet, SegNetDSC
from vitseg_zoo.architectures.vit_seg import VitSeg

__all__ = ["Eomt", "FusedSegformer", "SegNet", "SegNetDSC", "Segmenter", "VitSeg"]
