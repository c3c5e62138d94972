"""Put a review report into one comment of a pull request, or merge request, updated in place: `comment.py FILE`.

Runs before any environment is there: standard library only. Where to is what GitHub Actions and GitLab CI say in the
environment; the token is in GITHUB_TOKEN or REVIEW_TOKEN.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

MARKER = "<!-- credit-risk review -->"
# GitHub takes 65,536 characters, GitLab more.
LONGEST = 65_000


class Thread(NamedTuple):
    """Where the comments of one pull request are."""

    comments: str
    """Address that lists comments and takes a new one."""
    comment: str
    """Address of one, with `{id}`."""
    update: str
    """HTTP method that changes one."""
    headers: dict[str, str]
    run: str
    """Address of the run, for people."""


def thread(environment: Mapping[str, str]) -> Thread:
    """Read from the variables of the CI service where to comment.

    Raises
    ------
    KeyError
        A variable of the service is absent.
    """
    if "GITLAB_CI" in environment:
        notes = "{CI_API_V4_URL}/projects/{CI_PROJECT_ID}/merge_requests/{CI_MERGE_REQUEST_IID}/notes".format_map(environment)
        token = environment["REVIEW_TOKEN"]
        return Thread(notes, notes + "/{id}", "PUT", {"PRIVATE-TOKEN": token}, environment["CI_PIPELINE_URL"])
    issues = "{GITHUB_API_URL}/repos/{GITHUB_REPOSITORY}/issues".format_map(environment)
    return Thread(
        f"{issues}/{environment['PULL_REQUEST']}/comments",
        issues + "/comments/{id}",
        "PATCH",
        {"Authorization": f"Bearer {environment['GITHUB_TOKEN']}", "Accept": "application/vnd.github+json"},
        "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}".format_map(environment),
    )


def put(report: str, where: Thread) -> str:
    """Change the comment that carries the marker, or write the first one; say which."""
    footer = f"\n\nPictures and JSON: artifact `review` of [this run]({where.run}).\n"
    room = LONGEST - len(MARKER) - len(footer)
    if len(report) > room:
        cut = "\n\n… (cut: the whole report is in the artifact)"
        report = report[: room - len(cut)] + cut
    body = {"body": f"{MARKER}\n{report}{footer}"}
    page = 1
    while comments := _call("GET", f"{where.comments}?per_page=100&page={page}", where.headers):
        for comment in comments:
            if comment["body"].startswith(MARKER):
                _call(where.update, where.comment.format(id=comment["id"]), where.headers, body)
                return "updated"
        page += 1
    _call("POST", where.comments, where.headers, body)
    return "written"


def _call(method: str, address: str, headers: dict[str, str], content: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(  # noqa: S310 (the address is the CI service's own)
        address,
        method=method,
        headers=headers | {"Content-Type": "application/json"},
        data=json.dumps(content).encode() if content else None,
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return json.load(response)


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        report = file.read()
    try:
        print(f"comment {put(report, thread(os.environ))}")
    except urllib.error.HTTPError as error:
        if error.code not in {401, 403}:
            raise
        # As for runs of bots and forks: their token only reads.
        print(f"this run's token may not comment (HTTP {error.code}); the report is in the job summary and the artifact")
    return 0


if __name__ == "__main__":
    sys.exit(main())
