"""Splits each change of a writer's weight into the part inside a subspace and the part outside. The package holds the targets,
the quarantine with its optimizer, the routing modes and the ledger."""

from routed_rl.routing.adapted import shape_of
from routed_rl.routing.axes import Axes
from routed_rl.routing.context import RoutingContext
from routed_rl.routing.linear import unroute
from routed_rl.routing.quarantine import Quarantine, kept_of
from routed_rl.routing.rates import Rates
from routed_rl.routing.router import Router
from routed_rl.routing.rows import RowBook, StepRows
from routed_rl.routing.target import Target

__all__ = ["Axes", "Quarantine", "Rates", "Router", "RoutingContext", "RowBook", "StepRows", "Target", "kept_of", "shape_of",
           "unroute"]
