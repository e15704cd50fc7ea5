"""A schema registry with Confluent's API: schemas by the ids that are in the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from tidecast.service.config.secrets import Secret, masked
from tidecast.service.errors import InputUnavailable, TidecastError, UsageError
from tidecast.service.input.config import SchemaConfig
from tidecast.service.input.rejected import DeadLetterReason, RecordRejected

if TYPE_CHECKING:  # comes with `tidecast[formats]`
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

    Ask = Callable[[SchemaRegistryClient, str | None], Schema]  # the client, and the form of the schema

_TIMEOUT_S = 5.0
_NOT_THERE = {40401, 40402, 40403}  # the API's codes: no such subject, version, schema
# What a registry may answer to a form of schemas that it does not have; 500 is Apicurio's.
_CANNOT = {400, 404, 406, 415, 422, 500}
_SERIALIZED = "serialized"  # the API's name of a file descriptor in base64


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema as it is registered, with those that it refers to."""

    kind: str  # AVRO, JSON or PROTOBUF
    text: str
    serialized: str = ""  # of a .proto text: what the registry makes of it when asked for a descriptor
    references: tuple[tuple[str, RegisteredSchema], ...] = ()  # the name by which it refers to each


class Registry:
    """Asks one registry. Each schema is asked for once; a failure is not remembered here.

    Raises:
        TidecastError: the library for it is not installed.
        UsageError: the address is none, or a file that it needs cannot be read.
    """

    def __init__(self, config: SchemaConfig) -> None:
        self._config = config
        self.url = ",".join(map(_without_user, config.registry.split(",")))
        for url in config.registry.split(","):
            if not url.strip().startswith(("http://", "https://")):
                raise UsageError(
                    "schema.registry is no address", got=self.url, do="Write it like http://127.0.0.1:8081."
                )
        self._schemas: dict[int, RegisteredSchema] = {}
        self._clients: dict[str | None, SchemaRegistryClient] = {}
        self._client(None)  # what is missing is said now, not when records come

    def schema(self, schema_id: int) -> RegisteredSchema:
        """The schema with this id.

        Raises:
            InputUnavailable: the registry does not answer as one should.
            RecordRejected: it does not know the id, or a schema that this one refers to.
        """
        if schema_id not in self._schemas:
            what = f"schema {schema_id}"
            self._schemas[schema_id] = self._with_references(what, _by_id(schema_id), {})
        return self._schemas[schema_id]

    def _with_references(
        self,
        what: str,
        ask: Ask,
        known: dict[tuple[str, int], RegisteredSchema],
    ) -> RegisteredSchema:
        found = self._ask(what, ask)
        kind, text, serialized = found.schema_type or "AVRO", found.schema_str or "", ""
        if kind == "PROTOBUF" and any(sign in text for sign in ";{"):  # a text, not a descriptor in base64
            with suppress(RecordRejected):  # not every registry can
                serialized = self._ask(what, ask, _SERIALIZED).schema_str or ""
        references: Sequence[Any] = found.references or ()
        for each in references:
            one = (each.subject, each.version)
            if one not in known:
                where = f"version {each.version} of {each.subject!r}, to which {what} refers"
                known[one] = self._with_references(where, _version(*one), known)
        referred = tuple((each.name, known[each.subject, each.version]) for each in references)
        return RegisteredSchema(kind, text, serialized, referred)

    def _ask(self, what: str, ask: Ask, form: str | None = None) -> Schema:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        advice = "Check schema.registry, and that it can be reached from here."
        try:
            return ask(self._client(form), form)
        except SchemaRegistryError as error:
            status = error.http_status_code
            if error.error_code in _NOT_THERE or (form and status in _CANNOT):
                message = f"the schema registry at {self.url} has no {what}"
                raise RecordRejected(DeadLetterReason.UNKNOWN_SCHEMA, message) from None
            reason = f"answers with HTTP status {status}"
            if status in (401, 403):
                self._clients.clear()  # a new password is read the next time
                advice = "Check schema.username and schema.password_file, and what this user may read."
            elif status == 404:
                advice = "Check the path in schema.registry: Apicurio's, for example, ends in /apis/ccompat/v7."
        except Exception as error:  # of the HTTP client, whose kinds are many, or an answer that is none of a registry
            reason = masked(f"does not answer: {str(error)[:120] or type(error).__name__}")
        raise InputUnavailable(f"the schema registry at {self.url} {reason}", do=advice)

    def _client(self, form: str | None) -> SchemaRegistryClient:
        """The library's client for this form of schemas; it keeps what it gets, whatever its form."""
        if form not in self._clients:
            try:
                from confluent_kafka.schema_registry import SchemaRegistryClient
            except ModuleNotFoundError as missing:
                raise TidecastError(
                    f"schema.registry needs {missing.name}", do="Run: pip install 'tidecast[formats]'"
                ) from None
            config = self._config
            options: dict[str, Any] = {"url": config.registry, "timeout": _TIMEOUT_S, "max.retries": 0}
            if config.username:
                options["basic.auth.user.info"] = f"{config.username}:{_password(config.password_file).reveal()}"
            if config.ca_file:
                options["ssl.ca.location"] = config.ca_file
            try:
                self._clients[form] = SchemaRegistryClient(options)
            except (ValueError, OSError) as error:  # ssl's errors are OSErrors
                raise UsageError(
                    f"the schema registry cannot be used as [input] describes it: {masked(str(error))}",
                    got=config.ca_file or self.url,
                    do="Correct schema.registry, schema.username or schema.ca_file.",
                ) from error
        return self._clients[form]


@lru_cache(maxsize=8)
def registry_of(config: SchemaConfig) -> Registry:
    """The process' one: a model that takes over need not ask again for what the older one has.

    Raises:
        TidecastError: as `Registry`.
    """
    return Registry(config)


def _by_id(schema_id: int) -> Ask:
    return lambda client, form: client.get_schema(schema_id, fmt=form)


def _version(subject: str, version: int) -> Ask:
    return lambda client, form: client.get_version(subject, version, deleted=True, fmt=form).schema


def _password(file: str) -> Secret:
    try:
        return Secret(Path(file).read_text(encoding="utf-8").strip() if file else "")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("schema.password_file cannot be read", got=file, do=f"{error}.") from error


def _without_user(url: str) -> str:
    """The URL as it may be shown: without a user and password."""
    parts = urlsplit(url.strip())
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
