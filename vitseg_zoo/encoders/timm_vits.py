"""All plain ViTs of timm as SMP encoders, under `vz-` and the timm name; no model is built to list them."""

from collections import defaultdict
from typing import Any

from timm.models import list_pretrained

from vitseg_zoo.encoders.plain_vit import plain_vit_names
from vitseg_zoo.encoders.smp_entry import smp_entry


def _smp_encoders() -> dict[str, dict[str, Any]]:
    tags: defaultdict[str, list[str]] = defaultdict(list)
    for name in list_pretrained():
        architecture, _, tag = name.partition(".")
        tags[architecture].append(tag)
    entries: dict[str, dict[str, Any]] = {}
    for name in plain_vit_names():
        entries.update(smp_entry(name, tags[name]))
    return entries


smp_encoders = _smp_encoders()
