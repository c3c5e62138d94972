"""Check the Dask resources of a rendered manifest against the operator's own schemas, and print the rest of it.

check_dask.py RENDERED FOLDER_OF_CRDS. The pods of a DaskCluster are printed as pods, so that what lints pods lints these, too.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

GROUP = "kubernetes.dask.org"


def schemas(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the schema of each (apiVersion, kind) that the folder defines."""
    found = {}
    for path in folder.glob("*.yaml"):
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
        for one in definition["spec"]["versions"]:
            key = (f"{definition['spec']['group']}/{one['name']}", definition["spec"]["names"]["kind"])
            found[key] = strict(one["schema"]["openAPIV3Schema"])
    return found


def strict(schema: Any) -> Any:
    """Refuse unknown keys, which a server would drop without a word."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    if named and schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
        # Of every resource, and no part of its definition.
        if "spec" in schema["properties"] and "containers" not in schema["properties"]:
            closed["properties"] |= {key: {} for key in ("apiVersion", "kind", "metadata") if key not in schema["properties"]}
    return closed


def pods(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in ("scheduler", "worker"):
        name = {"name": f"{resource['metadata']['name']}-{part}", "namespace": resource["metadata"]["namespace"]}
        found = resource["spec"][part]
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": found.get("metadata", {}) | name, "spec": found["spec"]}


def main() -> int:
    rendered, known = Path(sys.argv[1]), schemas(Path(sys.argv[2]))
    others, problems = [], []
    for resource in yaml.safe_load_all(rendered.read_text(encoding="utf-8")):
        if not resource["apiVersion"].startswith(GROUP):
            others.append(resource)
            continue
        key = (resource["apiVersion"], resource["kind"])
        if key not in known:
            problems.append(f"{' '.join(key)}: unknown, expected one of {', '.join(' '.join(one) for one in sorted(known))}")
            continue
        name = f"{resource['kind']} {resource['metadata']['name']}"
        errors = jsonschema.Draft202012Validator(known[key]).iter_errors(resource)
        problems += [f"{name}: {error.json_path}: {error.message}" for error in errors]
        if resource["kind"] == "DaskCluster" and not problems:
            others += pods(resource)
    yaml.safe_dump_all(others, sys.stdout)
    print("\n".join(problems), end="\n" * bool(problems), file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
