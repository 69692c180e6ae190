"""Instances: the placed replicas of models."""
