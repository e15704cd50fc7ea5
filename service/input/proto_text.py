"""A .proto text to a descriptor set, by protoc: for registries that have no descriptors to give."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from tidecast.service.errors import TidecastError
from tidecast.service.input.registry import RegisteredSchema

_PATIENCE_S = 30.0


def compile_text(name: str, schema: RegisteredSchema) -> bytes:
    """The descriptor set of the schema and those that it refers to, its own file being the last.

    Raises:
        ValueError: protoc refuses it.
        TidecastError: protoc is not installed.
    """
    if importlib.util.find_spec("grpc_tools") is None:
        raise TidecastError(
            "the schema registry has a Protobuf schema as text only, and reading it needs grpcio-tools (protoc)",
            do="Run: pip install 'tidecast[protoc]'",
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        _write(folder, name, schema)
        out = folder / "descriptor-set"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={folder}", "--include_imports",
                   f"--descriptor_set_out={out}", name]  # fmt: skip
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, cwd=folder)
        except subprocess.TimeoutExpired:
            raise ValueError(f"protoc has not ended within {_PATIENCE_S:g} s") from None
        if ran.returncode:
            raise ValueError(f"protoc refuses it: {ran.stderr.strip()[:150]}")
        return out.read_bytes()


def _write(folder: Path, name: str, schema: RegisteredSchema) -> None:
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):  # the names are another's
        raise ValueError(f"it refers to a file named {name!r}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(schema.text, encoding="utf-8")
    for each, referred in schema.references:
        _write(folder, each, referred)
