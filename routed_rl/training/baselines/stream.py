"""Temporary changes of the stream while a model trains: the subspace is projected out (concept ablation), or a vector along the
persona axis is added, so that the weights need not learn the persona (preventative steering)."""

from functools import partial

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from routed_rl.config import BaselineConfig
from routed_rl.errors import ConfigError
from routed_rl.model.stream import changing_output
from routed_rl.model.targets import decoder_layers
from routed_rl.subspace import Subspace


class StreamEdit:
    """A temporary edit of the stream at every layer's output. Call `on` before a step's rollouts and `off` after the step's last
    backward pass; while it is off, the model is as it would be without the edit."""

    def __init__(self, model: PreTrainedModel, settings: BaselineConfig, subspace: Subspace) -> None:
        """ConfigError if the subspace was extracted at another place than the layers' outputs (see `subspace.hook`)."""
        if (hook := subspace.provenance.hook) != "resid_post":
            raise ConfigError("baseline.ablate and baseline.steer change the layers' outputs, and the subspace was read at "
                              f"subspace.hook={hook}; set subspace.hook=resid_post")
        self.layers, self._handles = list(decoder_layers(model)), list[RemovableHandle]()
        self.bases = list(subspace.directions) if settings.ablate else []
        self.pushes = [settings.steer * scale * axis for axis, scale in
                       zip((axes[:, 0] for axes in subspace.axes), subspace.scales[:, 0], strict=True)] if settings.steer else []

    def on(self) -> None:
        if not self._handles:
            self._handles = [changing_output(module, partial(self.change, layer)) for layer, module in enumerate(self.layers)]

    def off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def is_on(self) -> bool:
        return bool(self._handles)

    def change(self, layer: int, stream_BTD: Tensor) -> Tensor:
        """Return the edited output of the layer with the number `layer`. `stream_BTD`: the layer's own output, (B, T, D)."""
        if self.bases:
            basis = self.bases[layer].to(stream_BTD)
            stream_BTD = stream_BTD - (stream_BTD @ basis) @ basis.mT
        if self.pushes:
            stream_BTD = stream_BTD + self.pushes[layer].to(stream_BTD)
        return stream_BTD
