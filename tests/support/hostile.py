"""Models that keep the contract on paper and harm the process that runs them: what somebody hostile might publish."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.models import PLAIN, START_MS, STEP_MS, Variant, counting_graph, counting_model, counting_spec, save

_WITHOUT_END = 400_000  # steps


def endless(place: Path, variant: Variant = PLAIN) -> Path:
    """Its graph has a loop that never ends."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Identity", ["v"], ["same"])],
        "body",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, None)],
        [value("still_on", TensorProto.BOOL, []), value("same", TensorProto.FLOAT, None)],
    )
    graph = _with_last_nodes(variant, helper.make_node("Loop", ["", "yes", "true_y"], ["y"], body=body))
    graph.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    return save(place, graph, counting_spec(variant))


def hungry(place: Path, variant: Variant = PLAIN, gigabytes: int = 64) -> Path:
    """Its graph makes a tensor of so many GB, whose size it computes from the forecast's shape."""
    graph = _with_last_nodes(
        variant,
        helper.make_node("Shape", ["true_y"], ["shape"]),
        helper.make_node("ReduceMax", ["shape"], ["most"], keepdims=1),
        helper.make_node("Div", ["most", "most"], ["one_row"]),
        helper.make_node("Mul", ["one_row", "floats"], ["length"]),
        helper.make_node("ConstantOfShape", ["length"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["true_y", "nothing"], ["y"]),
    )
    graph.graph.initializer.append(numpy_helper.from_array(np.asarray([gigabytes << 28], np.int64), "floats"))
    return save(place, graph, counting_spec(variant))


def crashing(place: Path, variant: Variant = PLAIN) -> Path:
    """The lowest int64 divided by -1: on x86-64 the processor raises a signal that ends the process."""
    graph = counting_graph(variant=variant)
    nodes = list(graph.graph.node)
    divide = next(node for node in nodes if node.op_type == "Div")
    divide.input[:] = ["low", "minus_one"]
    del graph.graph.node[:]
    graph.graph.node.extend(
        [
            helper.make_node("Sub", ["ts", "ts"], ["nought"]),
            helper.make_node("Add", ["nought", "lowest"], ["low"]),
            *nodes,
        ]
    )
    for name, number in (("lowest", -(2**63)), ("minus_one", -1)):
        graph.graph.initializer.append(numpy_helper.from_array(np.asarray(number, np.int64), name))
    return save(place, graph, counting_spec(variant))


def long_self_test(place: Path, steps: int = _WITHOUT_END) -> Path:
    """Its self-test has so many readings, of one digit each."""
    test = counting_spec().self_test
    times = [START_MS // STEP_MS % 10] * steps
    return counting_model(place, self_test=msgspec.structs.replace(test, x=[[1.0, 2.0]] * steps, ts=times))


def much_metadata(place: Path, size: int = 4 << 20) -> Path:
    """Its metadata has so many bytes."""
    return counting_model(place, units={"value": "°" * (size // 2)})


def _with_last_nodes(variant: Variant, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """The counting graph, where these nodes make `y` from `true_y`."""
    graph = counting_graph(variant=variant)
    for node in graph.graph.node:
        node.output[:] = ["true_y" if name == "y" else name for name in node.output]
    graph.graph.node.extend(nodes)
    return graph
