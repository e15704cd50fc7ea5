import pytest

pytest.register_assert_rewrite("tests.contract.broker_contract", "tests.contract.transaction_contract")
