"""Specs as identity: stable text, no remarks, no value without a stable form, independent streams of chance."""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from stagealign.base.errors import BadSpec
from stagealign.base.identity import fingerprint, plain, stream
from stagealign.grid import preferences, registry, scales
from stagealign.grid.spec import Checkpoint, Decoding, Method


def test_plain_is_json_with_every_value():
    decoding = Decoding(temperature=0.5)
    assert plain(decoding) == {"temperature": 0.5, "top_p": 0.9, "top_k": 50, "max_new_tokens": 2048}
    assert plain((1, [True, None], {"b": "ü"})) == [1, [True, None], {"b": "ü"}]
    assert plain(MappingProxyType({"a": (1, 2)})) == {"a": [1, 2]}


def test_fingerprints_are_those_of_the_first_version():
    """What was built stays usable: a change here makes every store on every machine stale."""
    assert fingerprint({}) == "44136fa355b3678a"
    assert fingerprint({"b": 1, "a": [1.5, None, True, "é"]}) == "ecad37590713bc7e"
    assert fingerprint(Decoding()) == "8c403c52baab6782"


def test_order_of_keys_and_kind_of_sequence_do_not_matter():
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint(OrderedDict(b=[1, 2], a=1))
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0}), "a count is not a measure"
    assert fingerprint({"a": 1}) != fingerprint({"a": True})
    assert fingerprint({"a": 0.1 + 0.2}) != fingerprint({"a": 0.3})
    assert fingerprint({"a": np.float64(0.1)}) == fingerprint({"a": 0.1})


def test_remarks_are_not_identity():
    method = Method("dpo", "DPO", form="sigmoid", beta=0.1)
    remarked = replace(method, assumed={"beta": "somebody's recipe"})
    assert "assumed" not in plain(method)
    assert fingerprint(remarked) == fingerprint(method)
    assert remarked == method
    assert fingerprint(replace(method, beta=0.2)) != fingerprint(method)


def test_a_later_field_is_identity_only_where_it_differs():
    """Artifacts built before the field existed keep their fingerprint; another value is another artifact."""
    method = Method("dpo", "DPO", form="sigmoid", beta=0.1)
    assert plain(method) == {
        "key": "dpo",
        "name": "DPO",
        "form": "sigmoid",
        "beta": 0.1,
        "delta": 1.0,
        "sft_weight": 0.0,
    }
    assert plain(replace(method, reference="first"))["reference"] == "first"
    assert fingerprint(replace(method, variant_of="dpo")) == fingerprint(method), "a remark"
    with pytest.raises(BadSpec, match="'last' is unknown; write 'round'"):
        replace(method, reference="last")


def test_every_other_field_is_identity():
    checkpoint = Checkpoint("a/b")
    for change in ({"source": "a/c"}, {"revision": "1"}, {"stand_in_for": "x"}, {"gated": True}, {"parameters": 1.0}):
        assert fingerprint(replace(checkpoint, **change)) != fingerprint(checkpoint)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), Path("a"), {1, 2}, b"a", object(), 1j, {1: "a"}, {None: 1}, lambda: 1,
     np.float32(1), np.int64(1), np.zeros(2), Decoding, iter([1]), [[{"a": {1}}]]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_without_a_stable_form_raise(value):
    with pytest.raises(TypeError, match=r"stable form|only text"):
        fingerprint({"value": value})


def test_only_marked_fields_are_left_out():
    @dataclass(frozen=True)
    class Toy:
        kept: int = 1
        note: str = field(default="", metadata={"identity": False})
        also_kept: str = field(default="", compare=False, repr=False)

    assert plain(Toy()) == {"kept": 1, "also_kept": ""}


@pytest.mark.parametrize("scale", list(scales.SCALES))
def test_every_cell_has_its_own_fingerprint(scale):
    cells = registry.cells(scale)
    assert len({fingerprint(cell) for cell in cells}) == len(cells)


def test_streams_are_stable_and_independent():
    assert stream(0, "sample", "a", 1) == stream(0, "sample", "a", 1)
    assert stream(0, "order", 1) == 4489457307835839548
    seeds = {
        stream(seed, name, number) for seed in range(20) for name in ("sft", "static", "order") for number in range(50)
    }
    assert len(seeds) == 20 * 3 * 50
    assert all(0 <= one < 2**63 for one in seeds)
    draws = np.array([[np.random.default_rng(stream(seed, name)).random() for name in "ab"] for seed in range(400)])
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.15
    assert stream(1, "a", 1) != stream(1, "a", "1", 1)


def test_what_labels_the_pairs_must_not_evaluate():
    asked = preferences.PREFERENCES["pan"]
    with pytest.raises(BadSpec, match="oracle and gold reward are both 'tfidf'"):
        replace(asked, gold=asked.oracle)
