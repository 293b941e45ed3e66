"""The gRPC contract: fields keep their numbers, everything is documented, and the committed code is the files'.

After a wanted change: `python tools/generate_proto.py` and `QWENSTACK_UPDATE_SNAPSHOTS=1 pytest
tests/contract/test_proto.py`, then read the difference. A number that was given once is never given to another field.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from qwenstack.serving.grpc.v1 import embeddings_pb2, generation_pb2, messages_pb2, models_pb2, tokens_pb2

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("test_proto.snapshot.json")
COMMITTED = ROOT / "src/qwenstack/serving/grpc/v1"
FILES = [module.DESCRIPTOR for module in (embeddings_pb2, generation_pb2, messages_pb2, models_pb2, tokens_pb2)]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_proto", ROOT / "tools/generate_proto.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def field_type(field: FieldDescriptor) -> str:
    names = {value: name for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    other = field.message_type or field.enum_type
    kind = other.full_name if other else names[field.type].removeprefix("TYPE_").lower()
    return f"repeated {kind}" if field.is_repeated else f"optional {kind}" if field.has_presence else kind


def enum(descriptor: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in descriptor.values}


def message(descriptor: Descriptor) -> dict[str, object]:
    described: dict[str, object] = {field.name: [field.number, field_type(field)] for field in descriptor.fields}
    described |= {nested.name: message(nested) for nested in descriptor.nested_types}
    return described | {nested.name: enum(nested) for nested in descriptor.enum_types}


def contract() -> dict[str, object]:
    described: dict[str, object] = {}
    for file in FILES:
        described |= {each.full_name: message(each) for each in file.message_types_by_name.values()}
        described |= {each.full_name: enum(each) for each in file.enum_types_by_name.values()}
        for service in file.services_by_name.values():
            described[service.full_name] = {
                method.name: [
                    method.input_type.full_name,
                    f"{'stream ' if method.server_streaming else ''}{method.output_type.full_name}",
                ]
                for method in service.methods
            }
    return described


def test_the_contract_is_the_one_that_was_read_and_agreed() -> None:
    if os.environ.get("QWENSTACK_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(contract(), indent=1, sort_keys=True) + "\n")
    assert contract() == json.loads(SNAPSHOT.read_text())


def test_the_committed_code_is_what_the_files_give(tmp_path: Path) -> None:
    generator().generate(tmp_path)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert fresh == {path.name: path.read_text() for path in COMMITTED.glob("*.py*") if path.is_file()}


def test_every_name_in_the_files_has_its_sentence() -> None:
    named = re.compile(r"^\s*(message|enum|service|rpc|oneof|\w+ = \d|(optional |repeated |map<)?[\w<>, .]+ \w+ = \d)")
    for path in (ROOT / "proto").rglob("*.proto"):
        lines = path.read_text().splitlines()
        for before, line in pairwise(lines):
            if named.match(line):
                assert before.strip().startswith("//"), f"{path.name}: {line}"
