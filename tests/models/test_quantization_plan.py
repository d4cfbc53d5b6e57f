"""Which layout each weight is kept in."""

from __future__ import annotations

import pytest

from headstock.ops.linear import INT4_GROUP, INT8_GROUP
from headstock.quantization.plan import Layout, Role, choose_layout

DENSE, INT8, INT4 = Layout(), Layout(INT8_GROUP, 32), Layout(INT4_GROUP, 32)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("asked", [None, "none"])
def test_a_checkpoint_keeps_its_layouts_unless_asked(role: Role, asked: str | None) -> None:
    assert [choose_layout(role, kept, 64, asked) for kept in (DENSE, INT8, INT4)] == [
        DENSE,
        INT8,
        INT4,
    ]


@pytest.mark.parametrize("role", [Role.SCALE, Role.BIAS, Role.ROUTER])
def test_norms_biases_and_routers_are_never_quantised(role: Role) -> None:
    assert choose_layout(role, DENSE, 64, "int4") == DENSE


def test_embeddings_get_eight_bits_where_matrices_get_four() -> None:
    assert choose_layout(Role.EMBEDDING, DENSE, 64, "int4") == INT8
    assert choose_layout(Role.MATRIX, DENSE, 64, "int4") == INT4


def test_eight_bits_become_four_when_asked() -> None:
    assert choose_layout(Role.MATRIX, INT8, 64, "int4") == INT4


def test_features_that_do_not_divide_into_groups_stay_dense() -> None:
    assert choose_layout(Role.MATRIX, DENSE, 80, "int8") == DENSE
