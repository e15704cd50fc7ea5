"""A model file that keeps the contract runs; one that breaks it in any way is refused with what, got and do."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.models import (
    START_MS,
    STEP_MS,
    CountingReference,
    counting_graph,
    counting_model,
    counting_spec,
    save,
    save_text,
)
from tidecast.service.errors import ModelError
from tidecast.service.model.onnx_file import content_hash, read_metadata
from tidecast.service.model.session import Model
from tidecast.service.model.spec import METADATA_KEY, Diagnostic, ModelSpec, SelfTest, StateSlice


def refused(path: Path, match: str, **arguments: object) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        Model.load(path, **arguments)
    return caught.value


def test_a_directory_and_the_file_itself_both_load(tmp_path: Path) -> None:
    directory = counting_model(tmp_path)
    assert Model.load(directory).spec == Model.load(str(directory / "model.onnx")).spec


def test_stepping_a_batch_gives_what_each_series_alone_gives(tmp_path: Path) -> None:
    model = Model.load(counting_model(tmp_path))
    references = [CountingReference() for _ in range(5)]
    state = np.repeat(model.initial_state[np.newaxis], 5, axis=0)
    for i in range(4):
        x = np.array([[s, math.nan if (s + i) % 3 == 0 else i] for s in range(5)], dtype=np.float32)
        ts = np.array([START_MS + (i + s) * STEP_MS for s in range(5)], dtype=np.int64)
        y, state, score = model.step(x, ts, state)
        expected = [r.step(row, t) for r, row, t in zip(references, x.tolist(), ts.tolist(), strict=True)]
        assert y[:, :, 0, :].tolist() == expected
        assert state.tolist() == [r.state for r in references]
        assert score.shape == (5, 2)
        assert score.dtype == np.float32


def test_a_path_that_is_not_there_says_which_and_what_to_do(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere", "cannot be read")
    assert "nowhere" in str(error)
    assert "tidecast train" in str(error)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"model\.onnx.*No such file")


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    refused(counting_model(tmp_path), "larger than 1000 bytes", max_bytes=1000)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello world, this is text", b"\x80", b"\x08", b"\x08\x08", b"\xff" * 40, b"\x00" * 64, b"\x3a\xff\x01ab"],
    ids=repr,
)
def test_bytes_that_are_no_onnx_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    refused(tmp_path, "not ONNX")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    file = counting_model(tmp_path) / "model.onnx"
    whole = file.read_bytes()
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        refused(tmp_path, ".")


def test_graphs_nested_without_end_are_refused_not_followed(tmp_path: Path) -> None:
    def wrap(tag: int, inside: bytes) -> bytes:
        length, out = len(inside), bytearray([tag])
        while length >= 128:
            out.append(length & 127 | 128)
            length >>= 7
        return bytes([*out, length]) + inside

    data = b""
    for _ in range(2000):  # graph.node.attribute.g
        data = wrap(0x0A, wrap(0x2A, wrap(0x32, data)))
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08" + wrap(0x3A, data))
    refused(tmp_path, "nested too deeply")


def test_a_model_without_the_spec_is_refused(tmp_path: Path) -> None:
    refused(save_text(tmp_path, counting_graph(), None), f"no '{METADATA_KEY}' in its metadata")


def test_a_spec_given_twice_is_refused(tmp_path: Path) -> None:
    file = counting_model(tmp_path) / "model.onnx"
    model = onnx.load(file)
    model.metadata_props.append(model.metadata_props[0])
    file.write_bytes(model.SerializeToString())
    refused(tmp_path, "twice")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"name": "x"}', '{"contract": "1"}', "[" * 100_000, '{"a": NaN}'],
    ids=["empty", "cut", "list", "null", "fields missing", "type", "deep", "nan"],
)
def test_a_spec_that_is_not_the_right_json_is_refused(tmp_path: Path, text: str) -> None:
    refused(save_text(tmp_path, counting_graph(), text), "cannot be read|version")


def test_a_later_contract_is_refused_before_its_fields_are_looked_at(tmp_path: Path) -> None:
    refused(save_text(tmp_path, counting_graph(), '{"contract": 2, "new": true}'), "has version 2")


def spec_changes() -> dict[str, tuple[dict[str, object], str]]:
    """How a spec may be wrong: its changed fields, and what the refusal must say."""
    test = counting_spec().self_test
    part = StateSlice

    def self_test(**changes: object) -> dict[str, object]:
        return {"self_test": msgspec.structs.replace(test, **changes)}

    def state(*parts: StateSlice) -> dict[str, object]:
        return {"state": list(parts)}

    return {
        "no name": ({"name": " "}, "name is empty"),
        "a name of a megabyte": ({"name": "n" * 1_000_000}, "spec's name: at most 500 characters are allowed"),
        "a feature of a megabyte": ({"features": ["a", "n" * 1_000_000]}, "spec's features: at most 500 characters"),
        "kind": ({"kind": "oracle"}, "kind is unknown"),
        "no features": ({"features": []}, "no features"),
        "features twice": ({"features": ["a", "a"]}, "features are not unique"),
        "feature called ts": ({"features": ["value", "ts"]}, 'called "ts"'),
        "more features than the graph": ({"features": ["a", "b", "c"]}, "self-test's readings must have 3"),
        "targets twice": ({"targets": ["a", "a"]}, "targets are not unique"),
        "horizon": ({"horizon": 0}, "horizon is not at least 1"),
        "quantiles fall": ({"quantiles": [0.9, 0.5, 0.1]}, "quantiles do not ascend"),
        "quantiles twice": ({"quantiles": [0.1, 0.1, 0.9]}, "quantiles are not unique"),
        "quantile 0": ({"quantiles": [0.0, 0.5, 0.9]}, "quantiles do not ascend"),
        "quantile 1": ({"quantiles": [0.1, 0.5, 1.0]}, "quantiles do not ascend"),
        "step": ({"step_ms": -1}, "step is negative"),
        "warm-up": ({"warmup_steps": -1}, "warm-up is negative"),
        "diagnostics twice": ({"diagnostics": [Diagnostic("a", "inside", "v", 1)] * 2}, "diagnostics are not unique"),
        "state empty": ({"state_size": 0, "state": [], "initial_state": []}, "state is empty"),
        "slices overlap": (state(part("a", 0, (3,)), part("b", 2, (2,))), "without gap or overlap"),
        "slices with a gap": (state(part("a", 0, (1,)), part("b", 2, (2,))), "without gap or overlap"),
        "slices too short": (state(part("a", 0, (3,))), "must cover all 4"),
        "slices too long": (state(part("a", 0, (5,))), "must cover all 4"),
        "slice empty": (state(part("a", 0, (4,)), part("b", 4, (0,))), "slice of the state is empty"),
        "slice negative": (state(part("a", 0, (-2, -2))), "slice of the state is empty"),
        "slices of one name": (state(part("a", 0, (2,)), part("a", 2, (2,))), "slices are not unique"),
        "initial state short": ({"initial_state": [0.0] * 3}, "initial state must have length 4"),
        "initial state beyond float32": ({"initial_state": [0.0, 0.0, 0.0, 1e39]}, "initial state is not finite"),
        "no self-test": (self_test(x=[], ts=[]), "no reading for each time"),
        "self-test uneven": (self_test(ts=test.ts[:-1]), "no reading for each time"),
        "self-test y short": (self_test(y=test.y[:-1]), "forecast must have 6"),
        "self-test tolerance": (self_test(rtol=1e9), "tolerance"),
        "self-test time": (self_test(ts=[2**70] * 3), "64-bit"),
        "self-test differs": (self_test(y=[v * 1.01 for v in test.y]), "fails its self-test"),
        "state size": (
            {"state_size": 5, "state": [part("a", 0, (5,))], "initial_state": [0.0] * 5},
            "'state' must have the shape",
        ),
        "horizon of the graph": ({"horizon": 3, **self_test(y=[0.0] * 9)}, "'y' must have the shape"),
        "targets of the graph": ({"targets": ["a", "b"], **self_test(y=[0.0] * 12)}, "'y' must have the shape"),
        "quantiles of the graph": ({"quantiles": [0.5], **self_test(y=[0.0] * 2)}, "'y' must have the shape"),
        "features of the graph": ({"features": ["a"], **self_test(x=[[1.0]] * 3)}, "'x' must have the shape"),
        "diagnostics of the graph": ({"diagnostics": []}, "'score' must have the shape"),
        "classifier": ({"kind": "classifier", "classes": ["a"], **self_test(y=[1.0])}, "'y' must have 2 axes"),
        "classifier without classes": ({"kind": "classifier"}, "no classes"),
    }


@pytest.mark.parametrize("fault", spec_changes())
def test_a_spec_that_contradicts_itself_or_the_graph_is_refused(tmp_path: Path, fault: str) -> None:
    changes, says = spec_changes()[fault]
    error = refused(counting_model(tmp_path, **changes), says)
    assert error.do


@pytest.mark.parametrize("infinite", ["1e999", "-1e999"])
def test_an_infinite_initial_state_is_refused(tmp_path: Path, infinite: str) -> None:
    text = msgspec.json.encode(counting_spec(initial_state=[0.0, 0.0, 0.0, 123.0])).decode()
    refused(save_text(tmp_path, counting_graph(), text.replace("123.0", infinite)), "cannot be read|not finite")


def test_a_malformed_hash_is_refused(tmp_path: Path) -> None:
    text = msgspec.json.encode(counting_spec(hash="A" * 64)).decode()
    refused(save_text(tmp_path, counting_graph(), text), "hash is not a sha256")


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for tensor in [*graph.input, *graph.output]:
        tensor.name = new if tensor.name == old else tensor.name
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new if name == old else name


def fixed_batch(tensor: onnx.ValueInfoProto) -> None:
    tensor.type.tensor_type.shape.dim[0].dim_value = 1


def dynamic_width(tensor: onnx.ValueInfoProto) -> None:
    tensor.type.tensor_type.shape.dim[1].dim_param = "width"


GRAPH_FAULTS: dict[str, tuple[Callable[[onnx.GraphProto], object], str]] = {
    "input renamed": (lambda g: rename(g, "x", "features"), "inputs must be x, ts, state"),
    "output renamed": (lambda g: rename(g, "score", "points"), "outputs must be y, next_state, score"),
    "output missing": (lambda g: g.output.pop(), "outputs must be"),
    "one output too many": (
        lambda g: g.output.append(helper.make_tensor_value_info("clock", TensorProto.FLOAT, ["batch", 1])),
        "outputs must be",
    ),
    "x with a fixed batch": (lambda g: fixed_batch(g.input[0]), "dynamic first axis"),
    "ts with a fixed batch": (lambda g: fixed_batch(g.input[1]), "dynamic first axis"),
    "state with a fixed batch": (lambda g: fixed_batch(g.input[2]), "dynamic first axis"),
    "x of any width": (lambda g: dynamic_width(g.input[0]), "'x' must have the shape"),
    "ts as a column": (
        lambda g: g.input[1].type.tensor_type.shape.dim.add(dim_value=1),
        "onnxruntime refuses|'ts' must have 1 axes",
    ),
    "ts as int32": (
        lambda g: setattr(g.input[1].type.tensor_type, "elem_type", TensorProto.INT32),
        r"onnxruntime refuses|'ts' must be a tensor\(int64\)",
    ),
    "a cycle": (lambda g: g.node.append(helper.make_node("Neg", ["y"], ["x"])), "onnxruntime refuses"),
    "an unknown operator": (lambda g: setattr(g.node[0], "op_type", "Prophecy"), "onnxruntime refuses"),
}


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_a_graph_that_is_not_the_contract_s_is_refused(tmp_path: Path, fault: str) -> None:
    change, says = GRAPH_FAULTS[fault]
    model = counting_graph()
    change(model.graph)
    refused(save(tmp_path, model, counting_spec()), says)


def test_a_float64_output_is_refused(tmp_path: Path) -> None:
    model = counting_graph(diagnostics=1)
    rename(model.graph, "score", "score32")
    model.graph.node.append(helper.make_node("Cast", ["score32"], ["score"], to=TensorProto.DOUBLE))
    model.graph.output.pop()
    model.graph.output.append(helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["batch", 1]))
    spec = counting_spec(diagnostics=[Diagnostic("missing", "surprise", "value", 1)])
    refused(save(tmp_path, model, spec), r"'score' must be a tensor\(float\)")


def foreign(domain: str = "com.microsoft") -> onnx.NodeProto:
    return helper.make_node("Gelu", ["x"], ["unused"], domain=domain)


def inside_a_branch(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("unused", TensorProto.FLOAT, None)
    branch = helper.make_graph([foreign()], "branch", [], [value])
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch)], "outer", [], [value]
    )
    model.graph.node.append(helper.make_node("If", ["c"], ["e"], then_branch=outer, else_branch=outer))


def inside_a_function(model: onnx.ModelProto, domain: str = "") -> None:
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function(domain, "F", ["x"], ["unused"], [foreign("evil")], opset))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.graph.node.append(foreign()), "an operator outside.*com.microsoft"),
        (lambda m: m.graph.node.append(foreign("ai.onnx.ml")), "an operator outside.*ai.onnx.ml"),
        (inside_a_branch, "an operator outside.*com.microsoft"),
        (inside_a_function, "an operator outside.*evil"),
        (lambda m: inside_a_function(m, "mine"), "outside of the standard ONNX domain"),
        (lambda m: m.training_info.add().algorithm.node.append(foreign()), "an operator outside"),
    ],
    ids=["custom", "ml", "subgraph", "function body", "function", "training"],
)
def test_operators_that_are_not_standard_are_refused_wherever_they_hide(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], says: str
) -> None:
    model = counting_graph()
    change(model)
    refused(save(tmp_path, model, counting_spec()), says)


def external(tensor: onnx.TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def external_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT, name="t")
    external(tensor)
    model.graph.node.append(helper.make_node("Constant", [], ["secret"], value=tensor))


def external_sparse(model: onnx.ModelProto) -> None:
    external(model.graph.sparse_initializer.add().values)


@pytest.mark.parametrize(
    "change",
    [lambda m: external(m.graph.initializer[0]), external_constant, external_sparse],
    ids=["initializer", "constant", "sparse"],
)
def test_external_data_is_refused_before_any_other_file_is_opened(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object]
) -> None:
    model = counting_graph()
    change(model)
    refused(save(tmp_path, model, counting_spec()), "tensors in other files")


def test_a_changed_weight_no_longer_fits_the_spec(tmp_path: Path) -> None:
    file = counting_model(tmp_path) / "model.onnx"
    model = onnx.load(file)
    model.graph.initializer[1].raw_data = np.float32(2).tobytes()
    file.write_bytes(model.SerializeToString())
    refused(tmp_path, "not the one that the model's spec describes")


def test_the_file_s_own_sha256_can_be_asked_for(tmp_path: Path) -> None:
    directory = counting_model(tmp_path)
    digest = Model.load(directory).sha256
    assert Model.load(directory, sha256=digest.upper()).sha256 == digest
    refused(directory, "not the one that was asked for", sha256="0" * 64)


def test_the_content_hash_does_not_see_the_metadata_and_sees_all_else() -> None:
    model = counting_graph()
    bare = content_hash(model.SerializeToString())
    helper.set_model_props(model, {METADATA_KEY: "{}", "other": "x"})
    assert content_hash(model.SerializeToString()) == bare
    assert read_metadata(model.SerializeToString()) == {METADATA_KEY: "{}", "other": "x"}
    model.opset_import[0].version = 19
    assert content_hash(model.SerializeToString()) != bare


def test_the_self_test_allows_what_its_tolerance_says(tmp_path: Path) -> None:
    spec: ModelSpec = counting_spec()
    near = [v * (1 + 5e-4) for v in spec.self_test.y]
    test = SelfTest(x=spec.self_test.x, ts=spec.self_test.ts, y=near, rtol=1e-3)
    assert Model.load(counting_model(tmp_path, self_test=test)).spec.self_test.y == near


def test_a_pipe_in_the_place_of_the_file_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    refused(tmp_path, "it is not a file")
