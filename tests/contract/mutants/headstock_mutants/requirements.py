"""Requirements that name what there is not, or claim what is not computed."""

from __future__ import annotations

from dataclasses import replace

from headstock.ops.base import Sizes
from headstock_mutants.mutation import MUTATIONS, Mutation, equals, mutates
from headstock_mutants.probes import PROBES, TESTS

KNOWN = "4_requirements::every_required_{}"


@mutates(
    "requires",
    KNOWN.format("feature_is_one_that_the_op_knows[attention]"),
    op="attention",
    quick=True,
)
def a_feature_is_misspelt(requires):
    return replace(requires, features=frozenset({"sliding_windows"}))


@mutates(
    "requires", KNOWN.format("size_is_one_that_the_op_is_resolved_with[attention]"), op="attention"
)
def a_size_is_misspelt(requires):
    return replace(requires, sizes={"head_dims": Sizes(multiple_of=8)})


@mutates("requires", KNOWN.format("dtype_exists[rms_norm]"), op="rms_norm")
def a_dtype_is_misspelt(requires):
    return replace(requires, dtypes=frozenset({"float32", "float_16"}))


@mutates("requires", KNOWN.format("name_is_one_that_there_is[linear]"), op="linear")
def a_layout_is_misspelt(requires):
    return replace(requires, layouts=frozenset({"dense", "int8_group"}))


@mutates("requires", KNOWN.format("name_is_one_that_there_is[attention]"), op="attention")
def a_page_dtype_is_misspelt(requires):
    return replace(requires, page_dtypes=frozenset({"float32", "float_16"}))


@mutates(
    "requires",
    KNOWN.format("capability_is_one_that_the_device_has[linear]"),
    op="linear",
    quick=True,
)
def a_capability_is_misspelt(requires):
    return replace(requires, capabilities=frozenset({"acme_v1"}))


@mutates("requires", "3_ops::it_accepts_something_that_can_be_checked[rms_norm]", op="rms_norm")
def nothing_is_ever_accepted(requires):
    return replace(requires, sizes={"size": Sizes(at_most=0)})


@mutates("requires", equals("attention"), op="attention")
def sinks_are_claimed_and_not_computed(requires):
    return replace(requires, features=requires.features | {"sliding_window", "soft_cap"})


for name in PROBES:
    MUTATIONS[name] = Mutation(name=name, tests=(TESTS[name],), probe=PROBES[name])
