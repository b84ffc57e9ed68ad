"""Modules that `torch.jit.script` cannot take say so in one sentence."""

from torch import nn


class NotScriptable:
    """A base of such a module; comes before `nn.Module` or what is built on it."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Say what `torch.jit.script` calls first, of this module or of one that has it inside."""
        raise RuntimeError(f"{type(self).__name__} cannot be scripted: use torch.export or torch.compile.")
