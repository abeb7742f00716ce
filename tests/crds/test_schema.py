"""What the generator makes of a model, and what it refuses to guess."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from cinderblock.core.api import KINDS, Backend, Volume
from cinderblock.core.api.meta import CelRule, CustomResource, Model
from cinderblock.core.crd.manifest import manifest, object_schema
from cinderblock.core.crd.schema import SchemaError, structural


def rewritten(annotation: Any, *, defaults: bool = True, **field: Any) -> dict[str, Any]:
    """The structural schema of one field of that type."""
    model = type(
        "M", (Model,), {"__annotations__": {"f": annotation}, **({"f": Field(**field)} if field else {})}
    )
    schema = model.model_json_schema(by_alias=True)
    return structural(
        schema["properties"]["f"], path="M.f", definitions=schema.get("$defs", {}), defaults=defaults
    )


class Inner(Model):
    """Class words."""

    a: int = 0


class Tree(Model):
    child: "Tree | None" = None


@pytest.mark.parametrize(
    ("annotation", "field", "expected"),
    [
        (str, {}, {"type": "string"}),
        (str | None, {"default": None}, {"type": "string"}),
        (int, {"gt": 0}, {"type": "integer", "format": "int64", "minimum": 0, "exclusiveMinimum": True}),
        (float, {"lt": 1}, {"type": "number", "maximum": 1, "exclusiveMaximum": True}),
        (int, {"ge": 0, "le": 9}, {"type": "integer", "format": "int64", "minimum": 0, "maximum": 9}),
        (Literal["x"], {}, {"type": "string", "enum": ["x"]}),
        (Literal["x", "y"], {}, {"type": "string", "enum": ["x", "y"]}),
        (dict[str, str], {}, {"type": "object", "additionalProperties": {"type": "string"}}),
        (dict[str, Any], {}, {"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        (set[str], {}, {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
        (
            tuple[int, ...],
            {"default": ()},
            {"type": "array", "items": {"type": "integer", "format": "int64"}},
        ),
        (bool, {"default": False}, {"type": "boolean", "default": False}),
        (str, {"default": ""}, {"type": "string"}),
        (int, {"default": 5}, {"type": "integer", "format": "int64", "default": 5}),
    ],
)
def test_what_has_a_structural_form_gets_it(annotation: Any, field: dict[str, Any], expected: Any) -> None:
    assert rewritten(annotation, **field) == expected


def test_models_stand_inline_and_the_fields_own_words_win() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer", "format": "int64"}}}
    assert rewritten(Inner, defaults=False) == {**inner, "description": "Class words."}
    optional = rewritten(Inner | None, defaults=False, default=None, description="Field words.")
    assert optional == {**inner, "description": "Field words."}
    assert rewritten(tuple[Inner, ...], defaults=False)["items"]["properties"] == inner["properties"]


def test_defaults_are_left_out_where_they_are_not_wanted() -> None:
    assert "default" not in rewritten(int, defaults=False, default=5)


@pytest.mark.parametrize(
    ("annotation", "word"),
    [
        (int | str, "union"),
        (int | str | None, "union"),
        (Inner | Tree, "union"),
        (Any, "untyped"),
        (list[Any], "untyped"),
        (tuple[int, str], "prefixItems"),
        (Tree, "Tree holds itself"),
    ],
)
def test_what_has_none_is_an_error_that_names_the_field(annotation: Any, word: str) -> None:
    with pytest.raises(SchemaError, match=r"^M\.f") as caught:
        rewritten(annotation)
    assert word in str(caught.value)


def test_a_list_key_is_a_required_field_of_the_items() -> None:
    keyed = Annotated[
        tuple[Inner, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]}),
    ]
    with pytest.raises(SchemaError, match="list key a"):
        rewritten(keyed)


@pytest.mark.parametrize(
    "rule", [CelRule("true", "m", "spec.nothing"), CelRule("true", "m", "spec", ".nothing")]
)
def test_a_rule_on_a_field_that_is_none_is_an_error(rule: CelRule) -> None:
    class Odd(Volume):
        CEL_RULES: ClassVar[tuple[CelRule, ...]] = (rule,)

    with pytest.raises(SchemaError, match="nothing"):
        object_schema(Odd)


def test_rules_sit_where_they_say() -> None:
    schema = object_schema(Volume)
    size = schema["properties"]["spec"]["properties"]["size"]["x-kubernetes-validations"]
    assert [rule["message"] for rule in size] == ["size must be above 0 and below 8Ei, such as 10Gi"]
    placed = [r for part in walk(schema) for r in part.get("x-kubernetes-validations", ())]
    assert len(placed) == len(Volume.CEL_RULES)


def walk(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """This schema and every one below it."""
    below = list(schema.get("properties", {}).values())
    below += [schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)]
    return [schema, *(deeper for child in below for deeper in walk(child))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_every_kind_says_what_it_is_and_tells_conditions_apart(kind: type[CustomResource]) -> None:
    crd = manifest(kind)
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    assert schema["description"]
    assert version["subresources"] == {"status": {}}
    assert crd["spec"]["scope"] == ("Namespaced" if kind.NAMESPACED else "Cluster")
    assert crd["spec"]["names"]["categories"] == ["cinderblock"]
    assert all(short.startswith("cb") for short in crd["spec"]["names"]["shortNames"])
    assert [c["name"] for c in version["additionalPrinterColumns"]].count("Age") == 1
    conditions = schema["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert not [part for part in walk(schema["properties"]["status"]) if "default" in part]


def test_only_the_settings_of_a_driver_are_free() -> None:
    free = [
        kind.KIND
        for kind in KINDS
        for part in walk(object_schema(kind))
        if "x-kubernetes-preserve-unknown-fields" in part
    ]
    assert free == [Backend.KIND]
