"""The CustomResourceDefinition of a kind: schema, rules, columns and names, from the model alone."""

from __future__ import annotations

from inspect import cleandoc

from cinderblock.core.api.meta import CelRule, CustomResource, PrinterColumn
from cinderblock.core.crd.schema import Json, SchemaError, structural
from cinderblock.core.names import GROUP, VERSION

CATEGORY = "cinderblock"


def manifest(kind: type[CustomResource]) -> Json:
    """The CRD as the API server takes it. Errors: SchemaError where the model has no structural form."""
    version: Json = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": object_schema(kind)},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(column) for column in kind.PRINTER_COLUMNS],
    }
    if kind.SELECTABLE_FIELDS:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.SELECTABLE_FIELDS]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.NAMESPACED else "Cluster",
            "names": {
                "kind": kind.KIND,
                "listKind": f"{kind.KIND}List",
                "plural": kind.PLURAL,
                "singular": kind.SINGULAR,
                "shortNames": list(kind.SHORT_NAMES),
                "categories": [CATEGORY],
            },
            "versions": [version],
        },
    }


def object_schema(kind: type[CustomResource]) -> Json:
    """The structural schema of a kind with its rules in place."""
    model = kind.model_json_schema(by_alias=True, mode="validation")
    definitions: dict[str, Json] = model.get("$defs", {})
    required = [name for name in model.get("required", ()) if name != "metadata"]
    properties: Json = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    for name in ("spec", "status"):
        # status is written by us alone, always whole: a default there would only make objects longer.
        part = structural(
            model["properties"][name],
            path=f"{kind.KIND}.{name}",
            definitions=definitions,
            defaults=name == "spec",
        )
        if name == "spec" and name not in required:
            part["default"] = {}  # else the defaults inside would not be filled in
        properties[name] = part
    schema: Json = {"type": "object", "properties": properties}
    if kind.__doc__:
        schema["description"] = " ".join(cleandoc(kind.__doc__).split())
    if required:
        schema["required"] = required
    for rule in kind.CEL_RULES:
        _place(schema, rule, kind.KIND)
    return schema


def _place(schema: Json, rule: CelRule, kind: str) -> None:
    target = schema
    for part in rule.field_path.split(".") if rule.field_path else ():
        if part not in target.get("properties", {}):
            raise SchemaError(f"{kind}: a rule sits on {rule.field_path}, which is no field")
        target = target["properties"][part]
    entry: Json = {"rule": rule.rule, "message": rule.message}
    if rule.message_expression:
        entry["messageExpression"] = rule.message_expression
    if rule.blames:
        if rule.blames.split(".")[1] not in target.get("properties", {}):
            raise SchemaError(f"{kind}: a rule blames {rule.blames}, which is no field of {rule.field_path}")
        entry["fieldPath"] = rule.blames
    target.setdefault("x-kubernetes-validations", []).append(entry)


def _column(column: PrinterColumn) -> Json:
    out: Json = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    if column.description:
        out["description"] = column.description
    if column.priority:
        out["priority"] = column.priority
    return out
