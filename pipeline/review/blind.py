"""Taking what the labelers think off the server, where an older version had pushed it."""

from __future__ import annotations

from prefloop.pipeline.review.argilla_api import PAGE, ArgillaApi
from prefloop.pipeline.review.definition import SHOWN_TO_ALL


def take_off_opinions(api: ArgillaApi, dataset_id: str) -> None:
    """Remove all metadata from a blind review that tell what the labelers think.

    Older versions pushed them, to be seen by owners only; a server may still filter and sort by
    them for everybody. Killed in the middle, it is done by the next call.
    """
    properties = api.request("GET", f"me/datasets/{dataset_id}/metadata-properties")["items"]
    told = [one for one in properties if one["name"] not in SHOWN_TO_ALL]
    if not told:
        return
    records = [
        {
            "id": record["id"],
            "metadata": {name: found[name] for name in SHOWN_TO_ALL if name in found},
        }
        for record in api.records(dataset_id)
        if set(found := record["metadata"] or {}) - set(SHOWN_TO_ALL)
    ]
    for start in range(0, len(records), PAGE):
        api.upsert(dataset_id, records[start : start + PAGE])
    for one in told:  # last: they say that there may be something left
        api.request("DELETE", f"metadata-properties/{one['id']}")
