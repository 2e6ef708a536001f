"""Makes the metadata by which a checkpoint describes its model's writers, if the table of families does not. With this metadata
the checkpoint can be exported although the model is not loaded."""

import json

from transformers import PreTrainedModel

from routed_rl.model.adapter import is_adapted
from routed_rl.model.families import FAMILIES, FAMILY, PLACES
from routed_rl.model.names import Place, names_in_files
from routed_rl.model.targets import decoder_layers, family


def family_metadata(model: PreTrainedModel) -> dict[str, str]:
    """Return the metadata under the keys `FAMILY` and `PLACES` (see `families`), as text. For a model with a LoRA it has the key
    `FAMILY` alone, because checkpoints of a LoRA do not say the model's type and hold none of the model's weights. For any other
    model whose type is in the table of families it is empty."""
    row, places = family(model), dict[str, Place]()
    if is_adapted(model):
        return {FAMILY: row.to_json()}
    if row is FAMILIES.get(model.config.model_type):
        return {}
    for index, layer in enumerate(decoder_layers(model)):
        has = {name for name, _ in layer.named_modules()}
        for short in (short for short in row.writers if short in has):
            name, mixture = f"{row.layers}.{index}.{short}", short == row.experts
            found = names_in_files(model, name, mixture=mixture)
            writers = [f"{name}.{expert}.down_proj" for expert in range(len(found))] if mixture else [name]
            places |= zip(writers, found, strict=True)
    return {FAMILY: row.to_json(), PLACES: json.dumps(places)}
