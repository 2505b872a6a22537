"""Every strategy is registered, and nothing else knows one by its name."""

import ast
from typing import get_args

import pytest

from pipeline.judging.strategies.registry import STRATEGIES, estimator_of, strategy_of
from schemas.config import TrimConfig, parse_config
from tests.test_layers import FILES, ROOT

# Where a strategy is named: its file and the option's values.
NAMES_ONE = ("pipeline/judging/strategies/", "schemas/config.py")


def test_the_option_allows_just_the_strategies_that_there_are() -> None:
    assert set(STRATEGIES) == set(get_args(TrimConfig.model_fields["strategy"].annotation))
    assert all(strategy.name == name for name, strategy in STRATEGIES.items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_configuration_gives_its_strategy_and_that_ones_estimator_unless_it_names_another(name: str) -> None:
    config = parse_config(None, [f"trim.strategy={name}"])
    assert strategy_of(config) is STRATEGIES[name]
    assert estimator_of(config) == STRATEGIES[name].estimator
    assert estimator_of(parse_config(None, [f"trim.strategy={name}", "gaussian.estimator=oas"])) == "oas"


def test_no_other_module_names_a_strategy_or_decides_by_its_name() -> None:
    for path in FILES:
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(NAMES_ONE):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in {"grow", "concentrate", "trim-once"}, f"{where}:{node.lineno}"
            if isinstance(node, ast.Compare | ast.Match | ast.Subscript):
                asked = [part for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.attr == "strategy"]
                assert not asked, f"{where}:{node.lineno} decides by the name of a strategy"


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_expected_of_a_strategy_is_in_order(name: str) -> None:
    usual = STRATEGIES[name].forecast
    assert 1 <= usual.fewest <= usual.usual <= usual.most
    assert 0 < usual.kept <= 1
