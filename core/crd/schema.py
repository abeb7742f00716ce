"""A pydantic JSON schema rewritten as the structural schema that the API server takes.

The API server refuses or misreads much of JSON schema: references, unions, constants, numeric exclusive bounds.
What has an equivalent is rewritten; anything else is an error at generation, never a schema that says less than
the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

_KEPT = frozenset(
    {
        "type",
        "description",
        "enum",
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "multipleOf",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
    }
)
_REWRITTEN = frozenset(
    {
        "$defs",
        "title",
        "default",
        "const",
        "properties",
        "additionalProperties",
        "items",
        "uniqueItems",
        "exclusiveMinimum",
        "exclusiveMaximum",
    }
)
_REFERENCE = "#/$defs/"


class SchemaError(Exception):
    """The model says something that a structural schema cannot say; the message names the field."""


def structural(schema: Json, *, path: str, definitions: Mapping[str, Json], defaults: bool) -> Json:
    """`schema` as a structural schema.

    `path` is the field's, for messages. With `defaults` the defaults of the model become defaults of the API
    server, but for null and empty ones, which would only make every object longer.
    """
    return _Rewriter(definitions, defaults).rewrite(schema, path, ())


class _Rewriter:
    def __init__(self, definitions: Mapping[str, Json], defaults: bool) -> None:
        self._definitions = definitions
        self._defaults = defaults

    def rewrite(self, schema: Json, path: str, inside: tuple[str, ...]) -> Json:
        flat, inside = self._flatten(schema, path, inside)
        unknown = flat.keys() - _KEPT - _REWRITTEN
        if unknown:
            raise SchemaError(f"{path}: no structural form of {sorted(unknown)}")
        if "const" in flat:
            flat["enum"] = [flat["const"]]
        if "type" not in flat:
            raise SchemaError(f"{path}: untyped")
        out = {key: value for key, value in flat.items() if key in _KEPT}
        self._bounds(flat, out)
        if flat["type"] == "object":
            self._object(flat, out, path, inside)
        elif flat["type"] == "array":
            self._array(flat, out, path, inside)
        elif flat["type"] == "integer":
            out["format"] = "int64"
        default = flat.get("default")
        if self._defaults and default not in (None, "", [], {}):
            out["default"] = default
        return out

    def _flatten(self, schema: Json, path: str, inside: tuple[str, ...]) -> tuple[Json, tuple[str, ...]]:
        """The schema without a reference or an optional around it; what stands beside those wins."""
        while True:
            outer = {k: v for k, v in schema.items() if k not in ("$ref", "anyOf")}
            if "$ref" in schema:
                name = str(schema["$ref"]).removeprefix(_REFERENCE)
                if name in inside:
                    raise SchemaError(f"{path}: {name} holds itself")
                inside = (*inside, name)
                inner = dict(self._definitions[name])
                if "enum" in inner:
                    inner.pop("description", None)  # speaks of the Python class, not of the field
            elif "anyOf" in schema:
                members = [m for m in schema["anyOf"] if m != {"type": "null"}]
                if len(members) != 1 or len(schema["anyOf"]) != 2:
                    raise SchemaError(
                        f"{path}: a union; make its members optional fields with a rule instead"
                    )
                inner = dict(members[0])
            else:
                return dict(schema), inside
            schema = {**inner, **outer}

    @staticmethod
    def _bounds(flat: Json, out: Json) -> None:
        for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if exclusive in flat:
                out[inclusive] = flat[exclusive]
                out[exclusive] = True

    def _object(self, flat: Json, out: Json, path: str, inside: tuple[str, ...]) -> None:
        properties, rest = flat.get("properties"), flat.get("additionalProperties")
        if properties is not None:
            if isinstance(rest, dict) or rest is True:
                raise SchemaError(f"{path}: named fields beside free ones")
            out["properties"] = {
                name: self.rewrite(field, f"{path}.{name}", inside) for name, field in properties.items()
            }
        elif isinstance(rest, dict) and rest:
            out["additionalProperties"] = self.rewrite(rest, f"{path}[*]", inside)
        else:
            out["x-kubernetes-preserve-unknown-fields"] = True

    def _array(self, flat: Json, out: Json, path: str, inside: tuple[str, ...]) -> None:
        if "items" not in flat:
            raise SchemaError(f"{path}: a list of anything")
        out["items"] = self.rewrite(flat["items"], f"{path}[*]", inside)
        if flat.get("uniqueItems"):
            out["x-kubernetes-list-type"] = "set"
        if out.get("x-kubernetes-list-type") == "map":
            fields = out["items"].get("properties", {})
            for key in out.get("x-kubernetes-list-map-keys", ()):
                if key not in fields or key not in out["items"].get("required", ()):
                    raise SchemaError(f"{path}: list key {key} is not a required field of its items")
