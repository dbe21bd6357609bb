"""Validates Kubernetes manifests by the published schemas: Kubernetes' own, and the types of KServe's SDK.

    test_manifests.py FILE...   prints the kind of every valid object, and errors of the others on standard error

Kubernetes' JSON schemas come with the package kubernetes-validate. The package kserve has its custom resources as
generated classes, which are read as text: to import them, pandas, FastAPI and much more would have to be installed.
"""

import ast
import importlib.util
import json
import pathlib
import re
import sys

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.33"


def package(name):
    return pathlib.Path(importlib.util.find_spec(name).submodule_search_locations[0])


class KServe:
    """The types of KServe's custom resources."""

    def __init__(self):
        self.models = {}
        for path in (package("kserve") / "models").glob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    self.models[node.name] = (node, path)
        schemas = package("kubernetes_validate") / "kubernetes-json-schema"
        definitions = schemas / f"v{KUBERNETES}.0-local-strict" / "_definitions.json"
        self.definitions = json.loads(definitions.read_text())["$defs"]

    def check(self, value, kind, where):
        """Raises ValueError unless `value`, found at `where`, has the type `kind`."""
        if match := re.fullmatch(r"list\[(.+)\]", kind):
            self.expect(value, list, where)
            for number, item in enumerate(value):
                self.check(item, match[1], f"{where}[{number}]")
        elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
            self.expect(value, dict, where)
            for key, item in value.items():
                self.check(item, match[1], f"{where}.{key}")
        elif kind in ("str", "int", "bool", "float"):
            self.expect(value, {"str": str, "int": int, "bool": bool, "float": (int, float)}[kind], where)
        elif kind in self.models:
            self.check_model(value, kind, where)
        else:
            self.check_kubernetes(value, kind, where)

    def check_model(self, value, kind, where):
        """A type that KServe defines."""
        self.expect(value, dict, where)
        node, path = self.models[kind]
        tables = {
            target.id: ast.literal_eval(part.value)
            for part in node.body
            if isinstance(part, ast.Assign)
            for target in part.targets
            if target.id in ("openapi_types", "attribute_map")
        }
        for name in re.findall(r"Invalid value for `(\w+)`, must not be `None`", path.read_text()):
            if tables["attribute_map"][name] not in value:
                raise ValueError(f"{where} lacks `{name}`")
        kinds = {tables["attribute_map"][name]: kind for name, kind in tables["openapi_types"].items()}
        for key, item in value.items():
            if key not in kinds:
                raise ValueError(f"{where} has no field `{key}`; its fields are {', '.join(sorted(kinds))}")
            self.check(item, kinds[key], f"{where}.{key}")

    def check_kubernetes(self, value, kind, where):
        """A type that KServe takes from Kubernetes, such as V1Container."""
        name = kind.removeprefix("V1")
        found = [key for key in self.definitions if key.endswith(f".v1.{name}")]
        if not found:
            raise ValueError(f"{where}: no schema of {kind} is known")
        try:
            # jsonschema.validate would first check all of the schemas.
            jsonschema.Draft202012Validator({"$defs": self.definitions, "$ref": f"#/$defs/{found[0]}"}).validate(value)
        except jsonschema.ValidationError as error:
            raise ValueError(f"{where}{error.json_path.removeprefix('$')}: {error.message}") from None

    @staticmethod
    def expect(value, kind, where):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{where} is {value!r}, which is not of type {kind}")


def check(kserve, manifest):
    group, _, version = manifest["apiVersion"].rpartition("/")
    if group == "serving.kserve.io":
        kserve.check(manifest, version.capitalize() + manifest["kind"], manifest["kind"])
    else:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            raise ValueError(f"{manifest['kind']}.{where}: {error.message}") from None


def main():
    kserve = KServe()
    wrong = False
    for name in sys.argv[1:]:
        for manifest in yaml.safe_load_all(pathlib.Path(name).read_text()):
            try:
                check(kserve, manifest)
                print(manifest["kind"])
            except ValueError as error:
                print(f"{name}: {error}", file=sys.stderr)
                wrong = True
    sys.exit(wrong)


main()
