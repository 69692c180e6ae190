"""Nodes: hosts with an agent."""
