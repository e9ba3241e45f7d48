"""A search engine for Argilla that has no index: it looks into Argilla's own SQLite database.

So there is nothing to keep in step with the database, to rebuild after a crash or to back up: what
is committed is found. Filters and sorting are SQL; a text query reads the texts of the dataset,
which takes a tenth of a second for ten thousand records. Records come in the order in which they
were added unless the query sorts them, also for annotators (Elasticsearch shuffles for each).
Similarity search is not there. It needs an SQLite database in WAL mode (``__main__`` sees to it).
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, TypeVar
from uuid import UUID

from argilla_lite.query import Test, compile_query, fold
from argilla_server.enums import MetadataPropertyType
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import (
    Dataset,
    MetadataProperty,
    Record,
    Response,
    Suggestion,
    User,
    VectorSettings,
)
from argilla_server.search_engine.base import (
    AndFilter,
    Filter,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataFilterScope,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    SuggestionFilterScope,
    TermsFilter,
    TermsMetrics,
    TextQuery,
)
from argilla_server.settings import settings
from sqlalchemy import make_url

T = TypeVar("T")
Sql = tuple[str, list[Any]]
"""A piece of a statement and its parameters."""

_SECONDS = 30
_RECORD_COLUMNS = {"id", "external_id", "status", "inserted_at", "updated_at"}


@SearchEngine.register(engine_name="sqlite")
class DatabaseSearch(SearchEngine):  # type: ignore[misc]  # Argilla is not in this environment
    """Searches the database that ``ARGILLA_DATABASE_URL`` names."""

    @classmethod
    async def new_instance(cls) -> DatabaseSearch:
        return cls()

    async def close(self) -> None:
        """Nothing is held open."""

    async def ping(self) -> bool:
        found: tuple[int] = await self._ask(lambda db: db.execute("SELECT 1").fetchone())
        return found == (1,)

    async def info(self) -> dict[str, Any]:
        version = {"number": sqlite3.sqlite_version, "distribution": "sqlite"}
        return {"name": "sqlite", "version": version}

    # What would change an index -------------------------------------------------------------------

    async def create_index(self, dataset: Dataset) -> None:
        """There is no index."""

    async def delete_index(self, dataset: Dataset) -> None:
        """There is no index."""

    async def configure_metadata_property(
        self, dataset: Dataset, metadata_property: MetadataProperty
    ) -> None:
        """There is no index."""

    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """There is no index."""

    async def partial_record_update(self, record: Record, **update: Any) -> None:
        """There is no index."""

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """There is no index."""

    async def update_record_response(self, response: Response) -> None:
        """There is no index."""

    async def delete_record_response(self, response: Response) -> None:
        """There is no index."""

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:
        """There is no index."""

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:
        """There is no index."""

    # Counts ---------------------------------------------------------------------------------------

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        if dataset.is_draft:
            return {}
        return await self._counts(
            "SELECT status, count(*) FROM records WHERE dataset_id = ? GROUP BY 1",
            [_hex(dataset.id)],
        )

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        if dataset.is_draft:
            return {}
        return await self._counts(
            "SELECT r.status, count(*) FROM responses r JOIN records d ON d.id = r.record_id "
            "WHERE d.dataset_id = ? AND r.user_id = ? GROUP BY 1",
            [_hex(dataset.id), _hex(user.id)],
        )

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> Any:
        args = [_path(metadata_property.name), _hex(metadata_property.dataset_id)]
        source = "FROM records d, json_each(d.metadata, ?) j WHERE d.dataset_id = ?"
        source += " AND j.type <> 'null'"
        if metadata_property.type == MetadataPropertyType.terms:
            select = (
                f"SELECT CAST(j.value AS TEXT), count(*) {source} GROUP BY 1 ORDER BY 2 DESC, 1"
            )
            rows = await self._ask(lambda db: db.execute(select, args).fetchall())
            counts = [TermsMetrics.TermCount(term=term, count=count) for term, count in rows]
            return TermsMetrics(total=sum(count for _, count in rows), values=counts)
        low, high = await self._ask(
            lambda db: db.execute(f"SELECT min(j.value), max(j.value) {source}", args).fetchone()
        )
        whole = metadata_property.type == MetadataPropertyType.integer
        return (IntegerMetadataMetrics if whole else FloatMetadataMetrics)(min=low, max=high)

    # Search ---------------------------------------------------------------------------------------

    async def search(
        self,
        dataset: Dataset,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        sort: list[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: str | None = None,
    ) -> SearchResponses:
        if user_id is not None:
            await self._refuse_hidden(dataset, user_id, filter, sort or [])
        where, args = "d.dataset_id = ?", [_hex(dataset.id)]
        text = TextQuery(q=query) if isinstance(query, str) else query
        test: Test | None = None
        if text is not None:
            test = compile_query(text.q)
            where += " AND matches(d.fields, ?)"
            args.append(text.field)
        if filter is not None:
            condition, more = _where(filter)
            where += f" AND ({condition})"
            args += more
        keys = [_order(order) for order in sort or []]
        order = ", ".join([*(key for key, _ in keys), "d.rowid"])
        sort_args = [arg for _, key_args in keys for arg in key_args]
        page = (
            f"SELECT d.id, count(*) OVER () FROM records d WHERE {where} ORDER BY {order} "
            "LIMIT ? OFFSET ?"
        )
        total = f"SELECT count(*) FROM records d WHERE {where}"

        def go(db: sqlite3.Connection) -> tuple[list[Any], int]:
            db.create_function("matches", 2, lambda fields, name: _matches(test, fields, name))
            rows = db.execute(page, [*args, *sort_args, limit, offset]).fetchall()
            if rows:
                return rows, rows[0][1]
            return rows, db.execute(total, args).fetchone()[0]  # a page behind the last

        rows, count = await self._ask(go)
        items = [SearchResponseItem(record_id=UUID(row[0]), score=1.0) for row in rows]
        return SearchResponses(items=items, total=count)

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        raise _no_vectors()

    async def similarity_search(self, *_: Any, **__: Any) -> SearchResponses:
        raise _no_vectors()

    async def _refuse_hidden(
        self, dataset: Dataset, user_id: Any, filter: Filter | None, sort: list[Order]
    ) -> None:
        """Refuse filters and orders by metadata that the user may not see: they would tell it."""
        scopes = [*_scopes(filter), *(one.scope for one in sort)]
        asked = {one.metadata_property for one in scopes if isinstance(one, MetadataFilterScope)}
        if not asked:
            return

        def look(db: sqlite3.Connection) -> tuple[Any, dict[str, str]]:
            role = db.execute("SELECT role FROM users WHERE id = ?", [_hex(user_id)]).fetchone()
            select = "SELECT name, allowed_roles FROM metadata_properties WHERE dataset_id = ?"
            return role, dict(db.execute(select, [_hex(dataset.id)]).fetchall())

        role, allowed = await self._ask(look)
        if role is not None and role[0] == "owner":
            return
        for name in sorted(asked):
            roles = json.loads(allowed.get(name) or "[]")
            if role is None or role[0] not in roles:
                raise UnprocessableEntityError(f"there is no metadata {name} to filter or sort by")

    # The database ---------------------------------------------------------------------------------

    async def _counts(self, select: str, args: list[Any]) -> dict[str, int]:
        rows = await self._ask(lambda db: db.execute(select, args).fetchall())
        return {"total": sum(count for _, count in rows), **dict(rows)}

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Ask the database in a thread: readers do not wait for each other, nor for writers."""

        def call() -> T:
            path = make_url(settings.database_url).database
            # isolation_level=None: no transaction, hence always what is committed last.
            with closing(
                sqlite3.connect(
                    f"file:{path}?mode=ro", uri=True, timeout=_SECONDS, isolation_level=None
                )
            ) as db:
                return question(db)

        return await asyncio.to_thread(call)


def _no_vectors() -> Exception:
    refusal: Exception = UnprocessableEntityError(
        "this Argilla has no vector search: use a full deployment with Elasticsearch for it"
    )
    return refusal


def _hex(identity: Any) -> str:
    """A UUID as SQLAlchemy keeps it in SQLite."""
    return UUID(str(identity)).hex


def _path(*keys: str) -> str:
    return "$" + "".join('."{}"'.format(key.replace('"', "")) for key in keys)


def _matches(test: Test | None, fields: str, name: str | None) -> bool:
    values = json.loads(fields)
    wanted = [values.get(name)] if name else values.values()
    return test is not None and test(fold("\n".join(map(_text, wanted))))


def _text(value: Any) -> str:
    """The text of a field: a string, or a chat's messages."""
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, dict):
        return _text(value["content"]) if "content" in value else json.dumps(value)
    return value if isinstance(value, str) else ""


def _scopes(filter: Filter | None) -> Iterable[Any]:
    if isinstance(filter, AndFilter):
        for each in filter.filters:
            yield from _scopes(each)
    elif filter is not None:
        yield filter.scope


def _where(filter: Filter) -> Sql:
    if isinstance(filter, AndFilter):
        parts = [_where(each) for each in filter.filters]
        condition = " AND ".join(f"({sql})" for sql, _ in parts) or "1"
        return condition, [arg for _, args in parts for arg in args]
    scope = filter.scope
    if isinstance(scope, RecordFilterScope):
        return _test(filter, _record_column(scope))
    if isinstance(scope, MetadataFilterScope):
        test, args = _test(filter, "j.value")
        each = f"SELECT 1 FROM json_each(d.metadata, ?) j WHERE {test}"
        return f"EXISTS ({each})", [_path(scope.metadata_property), *args]
    if isinstance(scope, SuggestionFilterScope):
        column, source = _suggestion(scope)
        test, args = _test(filter, column)
        return f"EXISTS (SELECT 1 {source} AND {test})", [scope.question, *args]
    if isinstance(scope, ResponseFilterScope):
        return _response(filter, scope)
    raise ValueError(f"Cannot process filter scope {scope}")


def _test(filter: Filter, column: str) -> Sql:
    if isinstance(filter, TermsFilter):
        values = [str(value) for value in filter.values]
        return f"CAST({column} AS TEXT) IN ({_marks(values)})", values
    assert isinstance(filter, RangeFilter)
    ends = [(">=", filter.ge), ("<=", filter.le)]
    given = [(sign, value) for sign, value in ends if value is not None]
    condition = " AND ".join(f"{column} {sign} ?" for sign, _ in given) or "1"
    return condition, [value for _, value in given]


def _response(filter: Filter, scope: ResponseFilterScope) -> Sql:
    mine, who = _of_user(scope)
    if scope.question:
        test, args = _test(filter, "j.value")
        source = 'FROM responses r, json_each(r."values", ?) j WHERE r.record_id = d.id'
        path = _path(scope.question, "value")
        return f"EXISTS (SELECT 1 {source} AND {test}{mine})", [path, *args, *who]
    if scope.property != "status" or not isinstance(filter, TermsFilter):
        raise ValueError(f"Cannot process filter scope {scope}")
    values = [str(value) for value in filter.values]
    given = f"EXISTS (SELECT 1 FROM responses r WHERE r.record_id = d.id{mine}"
    parts: list[str] = []
    args = []
    if "pending" in values:  # no response yet
        parts.append(f"NOT {given})")
        args += who
        values.remove("pending")
    if values:
        parts.append(f"{given} AND r.status IN ({_marks(values)}))")
        args += [*who, *values]
    return " OR ".join(parts) or "1", args


def _order(order: Order) -> Sql:
    scope, way = order.scope, "DESC" if str(order.order) == "desc" else "ASC"
    if isinstance(scope, RecordFilterScope):
        key, args = _record_column(scope), []
    elif isinstance(scope, MetadataFilterScope):
        key, args = "json_extract(d.metadata, ?)", [_path(scope.metadata_property)]
    elif isinstance(scope, SuggestionFilterScope):
        column, source = _suggestion(scope)
        key, args = f"(SELECT {column} {source})", [scope.question]
    elif isinstance(scope, ResponseFilterScope):
        mine, who = _of_user(scope)
        value, args = "min(r.status)", []
        if scope.question:
            value = 'avg(json_extract(r."values", ?))'
            args.append(_path(scope.question, "value"))
        key = f"(SELECT {value} FROM responses r WHERE r.record_id = d.id{mine})"
        args += who
    else:
        raise ValueError(f"Cannot process sort scope {scope}")
    return f"{key} {way} NULLS LAST", args


def _record_column(scope: RecordFilterScope) -> str:
    name = str(getattr(scope.property, "value", scope.property))
    if name not in _RECORD_COLUMNS:
        raise ValueError(f"Cannot process record property {name}")
    return f"d.{name}"


def _suggestion(scope: SuggestionFilterScope) -> tuple[str, str]:
    """The value to look at, and where it comes from (with the question's name as parameter)."""
    source = (
        "FROM suggestions s JOIN questions q ON q.id = s.question_id{} "
        "WHERE s.record_id = d.id AND q.name = ?"
    )
    if scope.property in ("agent", "type"):
        return f"s.{scope.property}", source.format("")
    if scope.property == "score":
        return "json_extract(s.score, '$')", source.format("")
    # A value may be a list, of which any may be meant.
    return "v.value", source.format(", json_each(s.value) v")


def _of_user(scope: ResponseFilterScope) -> Sql:
    return (" AND r.user_id = ?", [_hex(scope.user.id)]) if scope.user else ("", [])


def _marks(values: list[str]) -> str:
    return ", ".join("?" * len(values)) or "NULL"
