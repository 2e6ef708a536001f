"""The metadata that a checkpoint stores about a model whose family was found by probing. With it the checkpoint can be exported
without the model."""

import json

from transformers import PreTrainedModel

from routed_rl.model.adapter import is_adapted
from routed_rl.model.families import FAMILIES, FAMILY, PLACES
from routed_rl.model.names import Place, names_in_files
from routed_rl.model.targets import decoder_layers, family


def family_metadata(model: PreTrainedModel) -> dict[str, str]:
    """The values of both keys as text; empty for a model whose type has a row in the table of families. A model with a LoRA
    always gets the row, because its checkpoints hold none of the model's weights and describe the model in no other way."""
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
