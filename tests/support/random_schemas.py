"""Random JSON schemas of the kinds that callers send."""

from __future__ import annotations

import random

Schema = dict[str, object]
_FORMATS = ["date", "date-time", "time", "ipv4", "uuid"]
_PATTERNS = ["^[a-z]{2,5}$", "^[A-Z][a-z]*( [A-Z][a-z]*)?$", r"^\d{3}-\d{4}$", "^(red|green|blue)$", "ab+"]


def random_schema(rng: random.Random, depth: int = 0) -> Schema:
    """Return a schema that some value fits."""
    kinds = ["string", "string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    if depth < 3:
        kinds += ["object"] * 6 + ["array"] * 3 + ["anyOf", "tuple", "map", "reference", "types"]
    kind = rng.choice(kinds) if depth else rng.choice(["object", "object", "object", *kinds])
    schema = _MAKERS[kind](rng, depth)
    if rng.random() < 0.2:
        schema["description"] = "描述, a remark"
    return schema


def _string(rng: random.Random, _depth: int) -> Schema:
    schema: Schema = {"type": "string", "maxLength": rng.randrange(1, 12)}
    if rng.random() < 0.5:
        schema["minLength"] = rng.randrange(0, 2)
    return schema


def _integer(rng: random.Random, _depth: int) -> Schema:
    low = rng.randrange(-500, 500)
    bounds: list[Schema] = [
        {},
        {"minimum": low},
        {"minimum": low, "maximum": low + rng.randrange(300)},
        {"exclusiveMinimum": 0, "multipleOf": rng.choice([2, 5])},
    ]
    return {"type": "integer", **rng.choice(bounds)}


def _number(rng: random.Random, _depth: int) -> Schema:
    low = round(rng.uniform(-50, 50), 2)
    return {"type": "number", **rng.choice([{}, {"minimum": low}, {"minimum": low, "maximum": low + 3.25}])}


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["id", "name", "城市", "tags", "a b", 'q"', "size", "x/y"], rng.randrange(1, 5))
    schema: Schema = {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randrange(len(names) + 1)),
    }
    if rng.random() < 0.8:
        schema["additionalProperties"] = False
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    low = rng.randrange(3)
    return {
        "type": "array",
        "items": random_schema(rng, depth + 1),
        "minItems": low,
        "maxItems": low + rng.randrange(3),
    }


def _tuple(rng: random.Random, depth: int) -> Schema:
    parts = [random_schema(rng, depth + 1) for _ in range(2)]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": 2}


def _map(rng: random.Random, depth: int) -> Schema:
    values = random_schema(rng, depth + 1)
    return {"type": "object", "additionalProperties": values, **rng.choice([{}, {"maxProperties": 2}])}


def _reference(rng: random.Random, _depth: int) -> Schema:
    node: Schema = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    # References start at the root, so the definition stands for the whole schema.
    return (
        {"$ref": "#/$defs/node", "$defs": {"node": node}}
        if _depth == 0
        else rng.choice([{"type": "null"}, node_leaf()])
    )


def node_leaf() -> Schema:
    """Return a small object."""
    return {"type": "object", "properties": {"leaf": {"type": "boolean"}}, "additionalProperties": False}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randrange(1, 4))]}


_MAKERS = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda _rng, _depth: {"type": "boolean"},
    "null": lambda _rng, _depth: {"type": "null"},
    "enum": lambda rng, _depth: {"enum": rng.sample(["a", "b\n", 1, 2.5, None, True, "中", [1]], 3)},
    "const": lambda rng, _depth: {"const": rng.choice(["x", 7, {"k": [1, "v"]}, False])},
    "pattern": lambda rng, _depth: {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 20},
    "format": lambda rng, _depth: {"type": "string", "format": rng.choice(_FORMATS)},
    "object": _object,
    "array": _array,
    "tuple": _tuple,
    "map": _map,
    "reference": _reference,
    "anyOf": _any_of,
    "types": lambda rng, _depth: {"type": rng.sample(["string", "integer", "null", "boolean"], 2)},
}
