"""Roles, from least to most: each may do what those before it may."""

from typing import Literal, get_args

type Role = Literal["user", "viewer", "operator", "admin"]

ROLES: tuple[Role, ...] = get_args(Role.__value__)


def allows(role: Role, needed: Role) -> bool:
    """Whether `role` is at least `needed`."""
    return ROLES.index(role) >= ROLES.index(needed)
