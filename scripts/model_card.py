"""Print the model card of a release: what it is, what it learned from, how good and how fair it is, what it must not do."""

from __future__ import annotations

import argparse
import json
from typing import Any

import yaml

from reproduce import metrics_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("name", "version", "commit"):
        parser.add_argument(name)
    options = parser.parse_args()
    print(card(options.name, options.version, options.commit))


def card(name: str, version: str, commit: str) -> str:
    """Write the card from what stands in the working folder: dvc.yaml, dvc.lock, params.yaml and metrics/.

    Raises
    ------
    KeyError
        dvc.yaml has no artifact of that name.
    """
    artifact = _yaml("dvc.yaml")["artifacts"][name]
    params = _yaml("params.yaml")
    raw = _yaml("dvc.lock")["stages"]["prepare"]["deps"][0]
    rows = _json("metrics/prepare.json")["rows"]
    evaluation = _json("metrics/evaluate.json")
    kind = params["train"]["model"]
    chosen = {"featurize": params["featurize"], "train": params["train"], "models": {kind: params["models"][kind]}}
    fairness = "\n".join(
        f"| {column} | {group['disparity_ratio']:.2f} | {group['low']:.2f} to {group['high']:.2f} "
        f"| {group['lowest']} / {group['reference']} | {'yes' if group['passes_four_fifths'] else '**no**'} |"
        for column, group in evaluation["fairness"].items()
        if group["disparity_ratio"] is not None
    )
    return f"""# {name} {version}

{artifact["desc"]} A `{kind}`; commit `{commit}`.

| | |
|---|---|
| meant for | ranking credit applicants by their risk of default, with the policy in `policy.json`; people decide on referrals |
| not meant for | a portfolio that is unlike the data below, unless its own outcomes have been checked |
| data | `{raw["path"]}`, MD5 `{raw["md5"]}`: {rows["read"]} rows, {rows["applicants"]} applicants |
| held out | {evaluation["rows"]} applicants, whom no fit has seen |
| loading | `mlops_project.modeling.model.load_model`, its manifest beside it; a pickle: check `SHA256SUMS` first |

## Parameters

```yaml
{yaml.safe_dump(chosen, sort_keys=False).strip()}
```

## How good

```text
{chr(10).join(metrics_table())}
```

## How fair

Lowest over highest approval rate of two groups, by the four-fifths rule.

| column | ratio | interval | lowest / highest | passes |
|---|---|---|---|---|
{fairness}
"""


def _yaml(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def _json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


if __name__ == "__main__":
    main()
