"""Placement: which node and which GPUs a replica gets. Pure functions."""

from cortex_api.placement.dry_run import DryReplica, DryRun, dry_run
from cortex_api.placement.facts import GpuFacts, NodeFacts, ProgramFacts, Reserved, node_facts
from cortex_api.placement.place import Placed, Placement, place

__all__ = [
    "DryReplica",
    "DryRun",
    "GpuFacts",
    "NodeFacts",
    "Placed",
    "Placement",
    "ProgramFacts",
    "Reserved",
    "dry_run",
    "node_facts",
    "place",
]
