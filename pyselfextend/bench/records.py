"""What a benchmark yields, and how it is kept in a file. Pure: imports nothing native."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import BenchError
from ..output_file import write_output
from ..placement import Attention, DeviceMemory, attention_from
from .machine import Machine
from .plan import Configuration, Plan

__all__ = ["Change", "Measurement", "Memory", "Opened", "Record", "Results", "opened_from"]

FORMAT = "pyselfextend-bench"

#: 2: ``Opened`` has ``attention`` and ``memory``. Files of version 1 are read without.
#: 3: ``Configuration`` has ``ga_n_max`` and ``table``, ``Measurement`` has ``ga_n``, and there is ``Change``.
VERSION = 3
VERSIONS = (1, 2, 3)


@dataclass(frozen=True)
class Opened:
    """A configuration's process has its model and its context."""

    configuration: Configuration
    library: str
    """Path of libllama."""

    build: Mapping[str, str]
    """What our library says it was built from; empty for the stock one."""

    system_info: str
    """CPU features and options, as ``llama_print_system_info`` names them."""

    devices: tuple[str, ...]
    """Devices beside the CPU that the model uses."""

    cache_mib: float
    """All parts of the KV cache in MiB, as the library says."""

    bytes_base: int
    """The process's peak memory before the model was loaded, in bytes."""

    attention: tuple[Attention, ...] = ()
    """Which way the attention of each extended layer is computed, and where; empty for the plain model."""

    memory: tuple[DeviceMemory, ...] = ()
    """What model and context had taken on each device then; empty where the library does not say: the stock one."""


@dataclass(frozen=True)
class Measurement:
    """One timed stretch of tokens."""

    configuration: Configuration
    phase: str
    """``prefill``: a prompt in batches; ``decode``: tokens one by one."""

    depth: int
    """Tokens in the cache at its beginning."""

    threads: int
    round: int
    """From 1. Those of a round were measured one after the other."""

    n_tokens: int
    """Tokens that were evaluated, as the library counts them."""

    seconds: float
    """In ``llama_decode`` and ``llama_synchronize``."""

    cpu_seconds: float
    """CPU time of the process, all threads together."""

    other_cores: float
    """How many cores other processes kept busy meanwhile, of those that this process may use."""

    started: float
    """Seconds since the benchmark began."""

    ga_n: int
    """Group size that was in force."""

    @property
    def tokens_per_second(self) -> float:
        """The speed."""
        return self.n_tokens / self.seconds


@dataclass(frozen=True)
class Memory:
    """What a configuration's process had taken by the end of a depth."""

    configuration: Configuration
    depth: int
    bytes_peak: int
    """Largest resident memory so far, in bytes. It counts Python, the cache, and the model file's pages too."""


@dataclass(frozen=True)
class Change:
    """One timed change of the group of a sequence: its cached keys are turned."""

    configuration: Configuration
    depth: int
    """Tokens in the cache, which are all turned."""

    threads: int
    round: int
    """From 1."""

    ga_n: int
    """Group size before it."""

    ga_n_new: int
    """Group size after it."""

    seconds: float
    """In ``llama_self_extend_set_group``, ``llama_self_extend_apply_shifts`` and ``llama_synchronize``."""

    seconds_reading: float
    """What the configuration took to read these tokens, once, with as many threads."""


Record: TypeAlias = Opened | Measurement | Memory | Change


@dataclass(frozen=True)
class Results:
    """A benchmark as it is kept: where it ran, what was planned, and everything that was measured."""

    machine: Machine
    plan: Plan
    records: tuple[Record, ...]

    def of(self, kind: type[Any]) -> list[Any]:
        """The records of a kind, in their order."""
        return [record for record in self.records if isinstance(record, kind)]

    def to_json(self) -> str:
        """As text; configurations are numbers in the records and stand in the plan."""
        numbers = {configuration: i for i, configuration in enumerate(self.plan.configurations)}
        records = []
        for record in self.records:
            kind = type(record).__name__.lower()
            fields = dataclasses.asdict(record) | {"configuration": numbers[record.configuration]}
            records.append({"record": kind, **fields})
        document = {
            "format": FORMAT,
            "version": VERSION,
            "machine": dataclasses.asdict(self.machine),
            "plan": {**dataclasses.asdict(self.plan), "model": str(self.plan.model)},
            "records": records,
        }
        return json.dumps(document, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write a file with ``to_json`` in it, see ``write_output``.

        Raises:
            BenchError: it cannot be written.
        """
        try:
            write_output(path, self.to_json().encode("utf-8"))
        except OSError as error:
            raise BenchError(f"the results cannot be written to {path}: {error.strerror or error}") from error

    @classmethod
    def from_json(cls, text: str) -> Results:
        """What ``to_json`` wrote, of this version or an earlier one.

        Raises:
            BenchError: it is something else.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT or document["version"] not in VERSIONS:
                raise BenchError(f"it is {document['format']} {document['version']}, not {FORMAT} {VERSION}")
            plan = _plan(document["plan"])
            records = tuple(_record(fields, plan.configurations) for fields in document["records"])
            return cls(Machine(**document["machine"]), plan, records)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BenchError(f"this is not what a benchmark writes: {error}") from error


def _plan(fields: Mapping[str, Any]) -> Plan:
    return Plan(
        **{
            **fields,
            "model": Path(fields["model"]),
            "configurations": tuple(map(_configuration, fields["configurations"])),
            "depths": tuple(fields["depths"]),
            "threads": tuple(fields["threads"]),
        }
    )


def _configuration(fields: Mapping[str, Any]) -> Configuration:
    return Configuration(**{**fields, "table": tuple(map(tuple, fields.get("table", ())))})


def _record(fields: Mapping[str, Any], configurations: Sequence[Configuration]) -> Record:
    kinds: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Opened, Measurement, Memory, Change)}
    configuration = configurations[fields["configuration"]]
    values = {**fields, "configuration": configuration}
    kind = kinds[values.pop("record")]
    if kind is Measurement:
        values.setdefault("ga_n", configuration.ga_n)
    record: Record = opened_from(values) if kind is Opened else kind(**values)
    return record


def opened_from(values: Mapping[str, Any]) -> Opened:
    """The record of what JSON holds of it, with its configuration. Without what an earlier version did not have."""
    return Opened(
        **{
            **values,
            "devices": tuple(values["devices"]),
            "attention": attention_from(values.get("attention", ())),
            "memory": tuple(DeviceMemory(**each) for each in values.get("memory", ())),
        }
    )
