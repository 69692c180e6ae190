"""Whether a schema's change is additive: old readers read new messages, new readers read old ones."""

from typing import Any

# Bound → whether a greater value is a narrower one.
_BOUNDS = {"minimum": True, "exclusiveMinimum": True, "maximum": False, "exclusiveMaximum": False}


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is not additive, one sentence each; empty when all is well.

    Fields may be added with a default. None may go, change its type, or become required.
    """
    return list(_compare(old, new, old, new, "", set()))


def _compare(
    old: Any, new: Any, old_root: dict[str, Any], new_root: dict[str, Any], at: str, seen: set[str]
) -> list[str]:
    old, new, key = _resolve(old, old_root), _resolve(new, new_root), f"{old.get('$ref')}>{new.get('$ref')}"
    if "$ref" in old and "$ref" in new:
        if key in seen:
            return []
        seen = seen | {key}
    where = at or "the message"
    if "anyOf" in old or "anyOf" in new:
        return _compare_choices(old, new, old_root, new_root, at, seen)
    if old.get("type") != new.get("type"):
        return [f"{where} was {old.get('type')} and is {new.get('type')}"]
    if old.get("const") != new.get("const"):
        return [f"{where} was the constant {old.get('const')!r} and is {new.get('const')!r}"]
    found = _compare_values(old, new, where)
    if "properties" in old or "properties" in new:
        found += _compare_fields(old, new, old_root, new_root, at, seen)
    for part in ("items", "additionalProperties"):
        if isinstance(old.get(part), dict) and isinstance(new.get(part), dict):
            found += _compare(old[part], new[part], old_root, new_root, f"{at}[]", seen)
        elif isinstance(old.get(part), dict) != isinstance(new.get(part), dict):
            found.append(f"{where}: what it holds changed")
    return found


def _compare_values(old: dict[str, Any], new: dict[str, Any], where: str) -> list[str]:
    olds, news = old.get("enum", []), new.get("enum", [])
    found = [f"{where} no longer takes {value!r}" for value in olds if value not in news]
    found += [f"{where} may be {value!r}, which old readers refuse" for value in news if value not in olds]
    for bound, upward in _BOUNDS.items():
        was, now = old.get(bound), new.get(bound)
        if now is not None and (was is None or (now > was if upward else now < was)):
            found.append(f"{where}: {bound} is narrower: {was} became {now}")
    if old.get("format") != new.get("format"):
        found.append(f"{where} was of format {old.get('format')} and is of {new.get('format')}")
    return found


def _compare_fields(
    old: dict[str, Any],
    new: dict[str, Any],
    old_root: dict[str, Any],
    new_root: dict[str, Any],
    at: str,
    seen: set[str],
) -> list[str]:
    found: list[str] = []
    for name, schema in old.get("properties", {}).items():
        path = f"{at}.{name}" if at else name
        if name not in new.get("properties", {}):
            found.append(f"{path} is gone")
            continue
        found += _compare(schema, new["properties"][name], old_root, new_root, path, seen)
    was, needed = set(old.get("required", [])), set(new.get("required", []))
    found += [f"{at}.{name}".lstrip(".") + " is newly required" for name in sorted(needed - was)]
    kept = (was - needed) & set(new.get("properties", {}))
    found += [f"{at}.{name}".lstrip(".") + " is no longer required: old readers need it" for name in kept]
    return found


def _compare_choices(
    old: dict[str, Any],
    new: dict[str, Any],
    old_root: dict[str, Any],
    new_root: dict[str, Any],
    at: str,
    seen: set[str],
) -> list[str]:
    olds, news = old.get("anyOf", [old]), new.get("anyOf", [new])
    found: list[str] = []
    for choice in olds:
        if all(_compare(choice, other, old_root, new_root, at, seen) for other in news):
            found.append(f"{at} no longer takes {_name(choice)}")
    for choice in news:
        if all(_compare(other, choice, old_root, new_root, at, seen) for other in olds):
            found.append(f"{at} may be {_name(choice)}, which old readers refuse")
    return found


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    return {**root["$defs"][reference.rpartition("/")[2]], "$ref": reference}


def _name(schema: dict[str, Any]) -> str:
    return str(schema.get("type") or schema.get("$ref", "something else").rpartition("/")[2])
