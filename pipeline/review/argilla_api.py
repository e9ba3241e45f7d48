"""Argilla's REST interface through its client, with every failure as one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prefloop.pipeline.review.account import Account
from prefloop.pipeline.review.errors import ReviewError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

PAGE = 500
"""Records asked for, or sent, at a time at most."""
_SECONDS = 120
_RETRIES = 3


class Missing(ReviewError):
    """What was asked for is not (or no longer) on the server."""


class ArgillaApi:
    """One account on one server. Raises :class:`ReviewError` for whatever goes wrong."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.client = self._client()

    def _client(self) -> Any:
        try:
            import argilla
        except ImportError:
            raise ReviewError(
                "Argilla's client is not installed: pip install 'prefloop[argilla]'"
            ) from None
        return self.call(
            lambda: argilla.Argilla(
                api_url=self.account.url,
                api_key=self.account.api_key,
                timeout=_SECONDS,
                retries=_RETRIES,
            )
        )

    def call(self, ask: Callable[[], T]) -> T:
        """What ``ask`` returns; errors of the client, the server and the network in one line."""
        import httpx
        from argilla._exceptions import ArgillaCredentialsError, ArgillaError

        url = self.account.url
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "not found", where that is asked
                return ask()
        except httpx.HTTPStatusError as error:
            raise _refusal(url, error.response.status_code, error.response.text) from None
        except httpx.TimeoutException:
            raise ReviewError(
                f"{url}: gave no answer within {_SECONDS} s: see whether the server is overloaded"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ReviewError(
                f"{url}: cannot be reached ({_line(error)}): see that the server runs and that the "
                "address is right"
            ) from None
        except ArgillaCredentialsError:
            raise _refusal(url, 401, "") from None
        except ArgillaError as error:
            status = getattr(error, "status_code", 0)
            raise _refusal(url, status, str(error)) from None

    def request(self, method: str, path: str, **more: Any) -> Any:
        """The JSON that the server answers; null for an empty answer."""

        def ask() -> httpx.Response:
            answer: httpx.Response = self.client.http_client.request(
                method, f"/api/v1/{path}", **more
            )
            return answer.raise_for_status()

        answer = self.call(ask)
        return answer.json() if answer.content else None

    def upsert(self, dataset: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records, or change those that are there: a record is known by its external id."""
        self.request("PUT", f"datasets/{dataset}/records/bulk", json={"items": list(records)})

    def records(self, dataset: str) -> Iterator[dict[str, Any]]:
        """All records of a dataset with their responses, page by page, in the order added."""
        offset, seen = 0, set[str]()
        while True:
            page = self.request(
                "GET",
                f"datasets/{dataset}/records",
                params={"include": "responses", "limit": PAGE, "offset": offset},
            )
            found = page["items"]
            seen |= {record["id"] for record in found}
            yield from found
            offset += len(found)
            if len(found) < PAGE:
                break
        if len(seen) < page["total"]:
            raise ReviewError(
                f"{self.account.url}: {page['total']:,} records, and {len(seen):,} were read: "
                "somebody adds or removes records right now; ask again"
            )

    def users(self) -> dict[str, str]:
        """User names by id."""
        return {user["id"]: user["username"] for user in self.request("GET", "users")["items"]}


def _refusal(url: str, status: int, text: str) -> ReviewError:
    if status == 401:
        return ReviewError(
            f"{url}: does not accept the API key: check ARGILLA_API_KEY (or the credentials file "
            "of the embedded server)"
        )
    if status == 403:
        return ReviewError(f"{url}: this account may not do that: use an owner's or admin's key")
    if status == 404:
        return Missing(f"{url}: is not there (any more): {_line(text)}")
    return ReviewError(f"{url}: refused ({status}): {_line(text)}")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
