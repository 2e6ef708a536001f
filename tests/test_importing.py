import gc
import sys

import pytest

from routed_rl.importing import importing


@pytest.fixture
def thawed():
    yield
    gc.unfreeze()
    gc.enable()
    sys.modules.pop("this_module_is_new", None)


def test_new_modules_are_imported_without_collecting_and_left_out_later(thawed):
    gc.unfreeze()
    with importing():
        assert not gc.isenabled()
        sys.modules["this_module_is_new"] = sys
    assert gc.isenabled() and gc.get_freeze_count() > 0


def test_nothing_is_left_out_where_nothing_was_imported(thawed):
    gc.unfreeze()
    gc.disable()
    with importing():
        assert not gc.isenabled()
    assert not gc.isenabled(), "as it was before"
    assert gc.get_freeze_count() == 0, "or the garbage of a first run would stay during all later ones of the process"
