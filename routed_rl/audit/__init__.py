"""The leak audit: which module groups of the retained change carry the shift and the hack, and where the stream moved."""

from routed_rl.audit.contributions import Contribution, Measured, contributions, models_to_measure
from routed_rl.audit.groups import Groups, State, by_kind, by_layer, changed, load, putting_back
from routed_rl.audit.probe import Coordinates, Shift, coordinates, shift_between
from routed_rl.audit.verb import audit

__all__ = ["Contribution", "Coordinates", "Groups", "Measured", "Shift", "State", "audit", "by_kind", "by_layer", "changed",
           "contributions", "coordinates", "load", "models_to_measure", "putting_back", "shift_between"]
