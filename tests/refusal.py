"What a refusal of a wrong argument must be. Needs no mmdet, as the tests of the functions need none"
import pytest


def refused(call, text):
    "`call` raises a `ValueError` of one line that contains `text`"
    with pytest.raises(ValueError) as e: call()
    assert text in str(e.value) and '\n' not in str(e.value)
